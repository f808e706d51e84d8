"""Figures show what they are given: checked on the artists they are made of, since no test compares pictures."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from PIL import Image

from partlib import plots, widgets
from partlib.data import Photos
from partlib.mining import Parts
from partlib.regions import Regions, grid


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def solid(value, size=(40, 30)):
    return Image.new("RGB", size, (value, value, value))


def photos(labels):
    names = [f"{i}.png" for i in range(len(labels))]
    return Photos("grey", names, lambda row: solid(10 * row), names, labels=np.array(labels), classes=["ash", "birch"])


def test_photographs_keep_order_titles_and_columns():
    figure = plots.photographs([solid(v) for v in (10, 20, 30)], ["a", "b", "c"], columns=2)
    drawn = [(axis.get_title(), axis.images[0].get_array()[0, 0, 0]) for axis in figure.axes if axis.images]
    assert drawn == [("a", 10), ("b", 20), ("c", 30)]
    assert len(figure.axes) == 4  # two rows of two, the last one empty


def test_no_photographs_is_an_error():
    with pytest.raises(ValueError, match="no pictures"):
        plots.photographs([])


def test_neighbours_frame_right_and_wrong_apart_by_colour_and_by_line():
    figure = plots.neighbours(photos([0, 0, 1]), [0], [[1, 2]])
    query, right, wrong = figure.axes
    assert [axis.get_title() for axis in (query, right, wrong)] == ["ash", "ash", "birch"]
    frame = lambda axis: axis.spines["top"]
    assert frame(query).get_edgecolor() == to_rgba("black")
    assert frame(right).get_edgecolor() == to_rgba(plots.RIGHT) and frame(wrong).get_edgecolor() == to_rgba(plots.WRONG)
    assert frame(right).get_linestyle() != frame(wrong).get_linestyle()
    assert [axis.images[0].get_array()[0, 0, 0] for axis in (query, right, wrong)] == [0, 10, 20]


def test_neighbours_of_photographs_without_labels():
    unlabelled = Photos("grey", ["a", "b"], lambda row: solid(row), ["a", "b"])
    assert len(plots.neighbours(unlabelled, 0, [1]).axes) == 2


def test_boxes_lie_on_the_pixels_they_name():
    figure = plots.boxes(solid(0), [[0, 0, 40, 30], [5, 6, 9, 8]])
    corners = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in figure.axes[0].patches]
    assert corners == [(-0.5, -0.5, 40, 30), (4.5, 5.5, 4, 2)]  # a pixel's area begins half a pixel before its middle


def test_the_gallery_of_parts_cuts_out_their_best_regions():
    """Two parts, three photographs of 2 x 2 cells, each cell of its own grey; members come strongest first."""
    grey = lambda i, y, x: 10 + 60 * i + 20 * y + 10 * x
    pictures = []
    for i in range(3):
        cells = np.array([[grey(i, y, x) for x in (0, 1)] for y in (0, 1)], dtype=np.uint8)
        pictures.append(Image.fromarray(cells.repeat(20, 0).repeat(30, 1)).convert("RGB"))
    maps = torch.zeros(3, 2, 2, 2)
    at = {(0, 0): (1, 0), (0, 1): (0, 0), (0, 2): (1, 1), (1, 0): (0, 1), (1, 1): (1, 1), (1, 2): (0, 0)}
    cosine = {(0, 0): 0.7, (0, 1): 0.9, (0, 2): 0.8, (1, 0): 0.9, (1, 1): 0.7, (1, 2): 0.8}
    for (part, i), (y, x) in at.items():
        maps[i, part, y, x], maps[i, 1 - part, y, x] = cosine[part, i], -((1 - cosine[part, i] ** 2) ** 0.5)
    birds = Photos("cells", ["a", "b", "c"], lambda row: pictures[row], ["a", "b", "c"])
    figure = plots.parts(Parts(torch.eye(2), torch.zeros(2)), Regions(maps, grid(2, 2)), birds, count=2)
    assert len(figure.axes) == 4
    drawn = [axis.images[0].get_array() for axis in figure.axes]
    expected = [grey(i, *at[part, i]) for part, i in ((0, 1), (0, 2), (1, 0), (1, 2))]
    assert [picture.shape for picture in drawn] == [(96, 96, 3)] * 4
    assert [(picture.min(), picture.max()) for picture in drawn] == [(value, value) for value in expected]
    assert [axis.get_ylabel() for axis in figure.axes] == ["part 0", "", "part 1", ""]


def test_the_gallery_has_no_more_columns_than_photographs():
    maps = torch.rand(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    parts = Parts(torch.rand(5, 4), torch.zeros(5))
    assert len(plots.parts(parts, Regions(maps), photos([0, 0, 1]), count=9).axes) == 5 * 3
    assert len(plots.parts(parts[0], Regions(maps), photos([0, 0, 1]), count=1).axes) == 1


def test_signed_maps_share_one_scale_with_zero_in_the_middle():
    maps = [torch.tensor([[1.0, -2.0], [0.0, 0.5]]), torch.tensor([[0.1, 0.1], [0.1, -0.1]])]
    figure = plots.signed_maps([solid(0), solid(0)], maps)
    overlays = [axis.images[1] for axis in figure.axes if len(axis.images) == 2]
    assert [overlay.get_clim() for overlay in overlays] == [(-2, 2), (-2, 2)]
    assert overlays[1].get_array().max() == pytest.approx(0.1)  # not stretched
    assert overlays[0].get_array().shape == (30, 40)
    assert np.asarray(overlays[1].get_alpha()).max() < 0.2  # weak evidence is drawn weakly


def test_signed_maps_of_zeros_are_drawn():
    figure = plots.signed_maps([solid(0)], [torch.zeros(2, 2)])
    assert figure.axes[0].images[1].get_clim() == (-1, 1)


def test_cells_cover_the_picture():
    figure = plots.cells(solid(0), torch.zeros(3, 4))
    assert figure.axes[0].images[1].get_extent() == [-0.5, 39.5, 29.5, -0.5]


def stepper_output(monkeypatch, **options):
    shown = []
    monkeypatch.setattr(widgets, "display", lambda bundle, raw: shown.append(bundle))
    frames = [plots.photographs([solid(v)]) for v in (0, 200)]
    widgets.stepper(frames, "step", **{"alts": ["a <dark> square", "a light square"], **options})
    return shown[0], frames


def test_stepper_has_a_live_view_and_a_twin_that_needs_nothing_else(monkeypatch):
    from bs4 import BeautifulSoup
    from ipywidgets.widgets.widget import _instances

    bundle, frames = stepper_output(monkeypatch)
    page = BeautifulSoup(bundle["text/html"], "html.parser")
    assert [image["alt"] for image in page.find_all("img")] == ["a <dark> square", "a light square"]
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.find_all("img"))
    assert [figure.has_attr("hidden") for figure in page.find_all("figure")] == [False, True]
    assert page.find("input")["max"] == "1" and not page.find_all(["script", "link"])
    assert not any(plt.fignum_exists(frame.number) for frame in frames)
    model = bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
    slider, image, text = _instances[model].children
    before = image.value
    slider.value = 1
    assert image.value != before and text.value == "a light square"


def test_stepper_wants_a_text_for_each_frame(monkeypatch):
    with pytest.raises(ValueError, match="one text for each frame"):
        stepper_output(monkeypatch, alts=["only one"])
