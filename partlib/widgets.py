"""Sliders that work in JupyterLab, and on a page without a kernel or a network."""

import base64
import html
import io

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display


def stepper(frames, label, alts, quality=80):
    """Shows one of several figures, chosen by a slider; the figures are closed.

    A notebook stores two things for it: the widget, which JupyterLab shows, and a page fragment that does the same
    with nothing but itself, which the site shows.

    Args:
        frames: one figure for each stop of the slider.
        label: what the slider changes.
        alts: one text for each frame: what is to be seen, for those who do not see it.
        quality: of the JPEG pictures, 1 to 95.
    """
    frames, alts = list(frames), list(alts)
    if not frames or len(frames) != len(alts):
        raise ValueError(f"{len(frames)} frames with {len(alts)} texts: give one text for each frame, and one frame at least")
    pictures = [_jpeg(frame, quality) for frame in frames]
    view = _live(pictures, alts, label)
    bundle = {"text/plain": f"{label}: a slider over {len(frames)} pictures", "text/html": _twin(pictures, alts, label)}
    view_type = "application/vnd.jupyter.widget-view+json"
    display(bundle | {view_type: {"model_id": view.model_id, "version_major": 2, "version_minor": 0}}, raw=True)


def _jpeg(figure, quality):
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", dpi=90, bbox_inches="tight", pil_kwargs={"quality": quality, "optimize": True})
    plt.close(figure)
    return file.getvalue()


def _live(pictures, alts, label):
    slider = ipywidgets.SelectionSlider(options=[(alt, i) for i, alt in enumerate(alts)], description=label, readout=False)
    slider.layout.width, slider.style.description_width = "90%", "initial"
    image, text = ipywidgets.Image(value=pictures[0], format="jpeg"), ipywidgets.Label(alts[0])

    def show(change):
        image.value, text.value = pictures[change.new], alts[change.new]

    slider.observe(show, "value")
    return ipywidgets.VBox([slider, image, text])


def _twin(pictures, alts, label):
    """The same in plain HTML: all pictures, one of them visible; the slider is the browser's own, so keys work too."""
    shown = "".join(
        f'<figure{"" if i == 0 else " hidden"} style="margin:0"><img alt="{html.escape(alt)}" style="max-width:100%" '
        f'src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}"><figcaption>{html.escape(alt)}</figcaption></figure>'
        for i, (picture, alt) in enumerate(zip(pictures, alts))
    )
    turn = "[...this.closest('.stepper').querySelectorAll('figure')].forEach((f, i) => {f.hidden = i != this.value})"
    return (
        f'<div class="stepper"><label>{html.escape(label)} <input type="range" min="0" max="{len(pictures) - 1}" value="0" '
        f'oninput="{turn}" style="width:60%"></label>{shown}</div>'
    )
