"""What can be moved: a slider that also works on a page without a kernel, and the explorer of one's own photographs in JupyterLab."""

import base64
import html
import io
from dataclasses import replace

import ipywidgets
import matplotlib.pyplot as plt
import torch
from IPython.display import display
from torch.nn import functional as F

from . import plots
from .cam import part_match, score_sheet, what_if


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


def explore(head, maps, photos, near=6):
    """Choose a photograph, see its parts, its neighbours and the reasons; switch parts off, and watch scores and ranking change.

    It needs a kernel, and works on any photographs; `report.explorer` writes the same as a page for those who have none.

    Args:
        head: of parts, with classes. maps: a tensor (n, d, h, w), or `Maps` read as one; photos: in the same order.
    """
    unit = F.normalize(torch.cat([head.bag(some) for some in maps.split(64)]), dim=1)
    mean = unit.mean(0)
    codes = F.normalize(unit - mean, dim=1)
    name = lambda i: f"{i}: {photos.classes[photos.labels[i]]}" if photos.labels is not None else str(i)
    class_name = lambda c: photos.classes[c] if photos.classes else f"class {c}"
    photo = ipywidgets.IntSlider(0, 0, len(codes) - 1, description="photograph", continuous_update=False)
    off = ipywidgets.SelectMultiple(options=[(f"part {p}", p) for p in range(head.parts)], description="parts off", rows=8)
    neighbour = ipywidgets.Dropdown(description="neighbour")
    scores, decision, match = ipywidgets.HTML(), ipywidgets.Image(format="jpeg"), ipywidgets.Image(format="jpeg")

    def draw(_=None):
        i, gone = photo.value, list(off.value)
        logits = what_if(head, maps[[i]], gone)[0]
        best = logits.argsort(descending=True)[:5].tolist()
        scores.value = "<br>".join(f"{html.escape(class_name(c))}: <b>{logits[c]:.3f}</b>" for c in best)
        sheet = score_sheet(head, maps[[i]], best[0])
        on = ~torch.isin(sheet.parts, torch.tensor(gone, dtype=torch.long))
        kept = {field: getattr(sheet, field)[on] for field in ("parts", "contributions", "weights", "bag", "boxes")}
        decision.value = _jpeg(plots.score_sheet(replace(sheet, **kept), photos[i], f"{name(i)}\n→ {class_name(best[0])}"), 80)
        left = torch.ones(head.parts)
        left[gone] = 0
        cosines = (codes * left) @ codes[i]
        cosines[i] = -torch.inf
        found = cosines.topk(min(near, len(codes) - 1)).indices.tolist()
        neighbour.unobserve(draw_match, "value")  # one drawing, not one for the options and one for the value
        neighbour.options = [(f"{name(j)}, {cosines[j]:.3f}", j) for j in found]
        neighbour.index = 0
        neighbour.observe(draw_match, "value")
        draw_match()

    def draw_match(_=None):
        i, j = photo.value, neighbour.value
        sheet = part_match(head, maps[[i]], maps[[j]], mean)
        on = [k for k, term in enumerate(sheet.names) if int(term.split()[1]) not in off.value]
        sheet = replace(sheet, names=[sheet.names[k] for k in on], shares=sheet.shares[on], boxes=sheet.boxes[:, on])
        match.value = _jpeg(plots.match_sheet(sheet, [photos[i], photos[j]], [name(i), name(j)]), 80)

    photo.observe(draw, "value")
    off.observe(draw, "value")
    neighbour.observe(draw_match, "value")
    draw()
    return ipywidgets.VBox([photo, ipywidgets.HBox([off, scores]), decision, neighbour, match])


def sortable(table, label):
    """Shows a data frame whose rows a page's reader can sort by any column (press its head) and filter (type a word), without a kernel or a network.

    A notebook stores plain text beside it, which is the static twin.

    Args:
        table: a pandas data frame; numbers are shown as they are, so round them first. label: what the rows are, for the filter's box.
    """
    compare = "isNaN(x) || isNaN(y) || !x || !y ? x.localeCompare(y) : x - y"
    turn = (
        "const t = this.closest('table').tBodies[0], i = this.closest('th').cellIndex, d = this.dataset.d = this.dataset.d == -1 ? 1 : -1, "
        f"of = r => r.cells[i].textContent.trim().split(' ')[0]; [...t.rows].sort((a, b) => {{const x = of(a), y = of(b); return d * ({compare})}})"
        ".forEach(r => t.append(r))"
    )
    keep = (
        "const w = this.value.toLowerCase().split(' '); [...this.closest('.sortable').querySelectorAll('tbody tr')]"
        ".forEach(r => {r.hidden = !w.every(p => r.textContent.toLowerCase().includes(p))})"
    )
    button = 'style="all:unset;cursor:pointer;font-weight:bold" title="sort"'
    style = "<style>.sortable table {font-size: 85%} .sortable :is(td, th) {padding: 0.1em 0.6em; white-space: nowrap; text-align: left}</style>"
    head = "".join(f'<th><button type="button" {button} onclick="{html.escape(turn)}">{html.escape(str(name))}</button></th>' for name in table.columns)
    blank = lambda value: "" if value != value else html.escape(str(value))  # NaN
    rows = "".join("<tr>" + "".join(f"<td>{blank(value)}</td>" for value in row) + "</tr>" for row in table.itertuples(index=False))
    page = (
        f'<div class="sortable">{style}<label>filter {html.escape(label)} <input type="search" oninput="{html.escape(keep)}"></label>'
        f'<div style="max-height:32em;overflow:auto"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>'
    )
    display({"text/plain": table.to_string(index=False, na_rep=""), "text/html": page}, raw=True)
