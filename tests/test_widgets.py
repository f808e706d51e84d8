"""The live explorer: choosing and switching off change what Python computes, and the pictures with it."""

import matplotlib

matplotlib.use("agg")

import pytest
import torch
from test_explorer import a_set
from torch.nn.functional import normalize

from partlib.cam import what_if
from partlib.widgets import explore


def numbers(scores):
    return [float(line.split("<b>")[1].removesuffix("</b>")) for line in scores.value.split("<br>")]


@pytest.fixture(scope="module")
def live():
    head, maps, photos = a_set(20)
    return head, maps, explore(head, maps, photos)


def test_choosing_and_switching_off(live):
    head, maps, view = live
    photo, (off, scores), decision, neighbour, match = (view.children[0], view.children[1].children, *view.children[2:])
    assert numbers(scores) == pytest.approx(head(maps[:1])[0].sort(descending=True).values.tolist(), abs=1e-3)
    before = decision.value, match.value
    photo.value = 7
    assert numbers(scores) == pytest.approx(head(maps[[7]])[0].sort(descending=True).values.tolist(), abs=1e-3)
    assert decision.value != before[0] and match.value != before[1]
    off.value = (0, 3, 9)
    assert numbers(scores) == pytest.approx(what_if(head, maps[[7]], [0, 3, 9])[0].sort(descending=True).values.tolist(), abs=1e-3)
    unit = normalize(head.bag(maps), dim=1)
    codes = normalize(unit - unit.mean(0), dim=1)
    codes[:, [0, 3, 9]] = 0
    cosines = codes @ codes[7]
    cosines[7] = -torch.inf
    near = cosines.argsort(descending=True)[:6].tolist()
    assert [j for _, j in neighbour.options] == near and neighbour.value == near[0]
    before = match.value
    neighbour.value = near[2]
    assert match.value != before
    off.value = tuple(range(head.parts))
    assert numbers(scores) == pytest.approx(head.folded()[1].sort(descending=True).values.tolist(), abs=1e-3)


def test_photographs_without_names_are_numbered():
    head, maps, photos = a_set(5)
    unnamed = type(photos)(photos.name, photos.names, photos.read, photos.stamps)
    view = explore(head, maps, unnamed)
    assert "class" in view.children[1].children[1].value and view.children[3].options[0][0].split(",")[0].isdigit()
