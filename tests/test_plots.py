"""Figures show what they are given: checked on the artists they are made of, since no test compares pictures."""

import dataclasses

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from PIL import Image

from partlib import plots, widgets
from partlib.cam import CategoryParts, MatchSheet, score_sheet
from partlib.data import Photos
from partlib.heads import PartHead
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


def a_sheet(values, against=None, constant=0.5):
    """Of a head whose part p answers with 1 in cell p of a row, and adds values[p] to class 0."""
    p = len(values)
    head = PartHead(4, p, 2)
    maps = torch.zeros(1, 4, 1, p)
    with torch.no_grad():
        head.filters.weight.zero_()
        for part in range(p):
            head.filters.weight[part, part % 4] = 1
            maps[0, part % 4, 0, part] = 1
        head.classes.weight.zero_()
        head.classes.weight[0] = torch.tensor(values)
    return dataclasses.replace(score_sheet(head, maps, 0, against), constant=torch.tensor(constant))


def bars(figure):
    """Names, lengths and colours of the bars, from above."""
    axis = figure.axes[1]
    assert axis.yaxis_inverted()
    patches = sorted(axis.patches, key=lambda bar: bar.get_y())
    return [tick.get_text() for tick in axis.get_yticklabels()], [bar.get_width() for bar in patches], [bar.get_facecolor() for bar in patches]


def test_the_bars_of_a_score_sheet_add_up_and_say_their_sign():
    figure = plots.score_sheet(a_sheet([1.0, -3.0, 0.25, 2.0]), solid(0), "an ash", count=2)
    names, lengths, colours = bars(figure)
    assert names == ["part 3", "part 1", "2 others", "constant", "logit"]
    assert lengths == pytest.approx([2, -3, 1.25, 0.5, 0.75]) and sum(lengths[:-1]) == pytest.approx(lengths[-1])
    assert [text.get_text() for text in figure.axes[1].texts] == ["+2.0", "-3.0", "+1.2", "+0.5", "+0.8"]
    assert colours[0] == colours[2] == colours[3] and len({colours[0], colours[1], colours[4]}) == 3
    scale = plt.get_cmap(plots.SIGNED)
    assert colours[0] == scale(0.85) and colours[1] == scale(0.12)  # the two ends of the scale of signed maps
    assert figure.axes[0].get_title() == "an ash" and figure.axes[1].get_xlabel() == "adds to the logit"


def test_the_boxes_of_a_score_sheet_are_those_of_its_largest_terms():
    figure = plots.score_sheet(a_sheet([1.0, -3.0, 0.25, 2.0]), solid(0), count=2)
    drawn = {(p.get_x(), p.get_width(), p.get_edgecolor()) for p in figure.axes[0].patches}
    scale = plt.get_cmap(plots.SIGNED)
    assert drawn == {(9.5, 10, scale(0.12)), (29.5, 10, scale(0.85))}
    assert {text.get_text() for text in figure.axes[0].texts} == {"1", "3"}


def test_parts_with_one_region_share_a_box_and_absent_ones_have_none():
    sheet = a_sheet([1.0, -3.0, 0.25, 2.0, 1.5])  # parts 0 and 4 answer to the same channel, first to cell 0
    figure = plots.score_sheet(sheet, solid(0))
    assert "4, 0" in {text.get_text() for text in figure.axes[0].texts} and len(figure.axes[0].patches) == 4
    assert bars(figure)[0] == ["part 3", "part 4", "part 0", "part 2", "part 1", "constant", "logit"]
    sheet.boxes[sheet.parts == 3] = 0
    assert len(plots.score_sheet(sheet, solid(0)).axes[0].patches) == 3


def test_a_contrast_says_that_it_is_a_lead():
    figure = plots.score_sheet(a_sheet([1.0, -3.0], against=1, constant=0.0), solid(0))
    assert bars(figure)[0][-1] == "lead" and figure.axes[1].get_xlabel() == "adds to the lead"


def test_a_match_sheet_has_boxes_in_both_pictures_and_bars_that_add_up():
    shares, boxes = torch.tensor([0.5, 0.3, 0.1, -0.2]), torch.zeros(2, 4, 4, dtype=torch.long)
    boxes[0] = torch.tensor([[0, 0, 1, 1], [1, 0, 2, 1], [0, 1, 1, 2], [2, 1, 4, 2]])
    boxes[1, [0, 3]] = torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2]])  # one region for two terms; a part that is absent has none
    sheet = MatchSheet(["part 7", "landmark 2", "whole picture", "part 0"], shares, boxes, ((2, 4), (3, 4)))
    figure = plots.match_sheet(sheet, [solid(0), solid(9)], ["one", "other"], count=3)
    one, other, bars_axis = figure.axes
    assert [axis.get_title() for axis in (one, other)] == ["one", "other"]
    scale = plt.get_cmap(plots.SIGNED)
    assert {(p.get_x(), p.get_y(), p.get_edgecolor()) for p in one.patches} == {
        (-0.5, -0.5, scale(0.85)), (9.5, -0.5, scale(0.85)), (19.5, 14.5, scale(0.12))
    }  # fmt: skip
    assert [text.get_text() for text in other.texts] == ["7, 0"] and other.patches[0].get_edgecolor() == scale(0.85)
    assert [tick.get_text() for tick in bars_axis.get_yticklabels()] == ["part 7", "landmark 2", "part 0", "1 others", "similarity"]
    lengths = [bar.get_width() for bar in sorted(bars_axis.patches, key=lambda bar: bar.get_y())]
    assert lengths == pytest.approx([0.5, 0.3, -0.2, 0.1, 0.7]) and sum(lengths[:-1]) == pytest.approx(lengths[-1])
    assert plots.match_sheet(sheet, [solid(0), solid(9)], total="lead").axes[2].get_xlabel() == "adds to the lead"


def test_a_category_sheet_shows_the_parts_with_the_largest_terms():
    head, grey = PartHead(2, 2, 2), np.array([[0, 60], [120, 180]], dtype=np.uint8)
    with torch.no_grad():
        head.filters.weight.copy_(torch.eye(2)[:, :, None, None])
    maps = torch.zeros(3, 2, 2, 2)
    maps[:, 0, 1, 1], maps[:, 1, 0, 1] = torch.tensor([1.0, 3, 2]), 1.0
    pictures = Photos("grey", ["a", "b", "c"], lambda row: Image.fromarray(grey.repeat(20, 0).repeat(20, 1) + np.uint8(row)).convert("RGB"), "abc")
    category = CategoryParts(torch.zeros(2, 2), torch.tensor([[1.0, -2.0], [0, 0]]), torch.zeros(2))
    figure = plots.category_sheet(category, 0, head, maps, pictures, count=2, columns=2)
    drawn = [axis.images[0].get_array()[0, 0, 0] for axis in figure.axes if axis.images]
    assert drawn == [60, 61, 181, 182]  # part 1 in its first two photographs, then part 0 in those where it is strongest
    bars_axis = figure.axes[-1]
    assert [tick.get_text() for tick in bars_axis.get_yticklabels()] == ["part 1", "part 0"]
    assert [bar.get_width() for bar in bars_axis.patches] == [-2, 1]


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
