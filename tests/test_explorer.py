"""The explorer, driven in a browser as a reader does: what it shows is what Python computes."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Browser, program
from common import refusal
from PIL import Image
from torch.nn.functional import normalize

from partlib.cam import part_match, score_sheet, what_if
from partlib.data import Photos
from partlib.heads import PartHead
from partlib.report import explorer

SITE = Path(__file__).parents[1] / "_build" / "html"


def a_set(n, parts=16, classes=5, labelled=True, seed=0):
    """A head, maps of random parts, and pictures of noise."""
    draw = np.random.default_rng(seed)
    head = PartHead(12, parts, classes if labelled else 0, "max", norm=labelled, presence=True, seed=seed).eval().requires_grad_(False)
    if labelled:
        head.norm.running_mean.copy_(torch.from_numpy(draw.random(parts)))
        head.norm.running_var.copy_(torch.from_numpy(draw.random(parts) + 0.1))
        head.classes.weight.copy_(torch.from_numpy(draw.normal(size=(classes, parts))))
    maps = torch.from_numpy(draw.normal(size=(n, 12, 4, 5))).float()
    maps += torch.from_numpy(draw.normal(size=(7, 12, 1, 1)))[np.arange(n) % 7].float()  # seven looks, so that some are alike
    pictures = lambda row: Image.fromarray(np.random.default_rng(row).integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((160, 120))
    names = [f"{i}.png" for i in range(n)]
    known = {"labels": np.arange(n) % classes, "classes": ["ash", "birch & beech", "</script>", "elm", "fir"]} if labelled else {}
    return head, maps, Photos("noise", names, pictures, names, **known)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if program() is None:
        pytest.skip("no Chromium or Chrome on this machine: the explorer is not tried in a browser")
    browser = Browser(program(), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    head, maps, photos = a_set(60)
    browser.screen(1280, 900)
    browser.open(explorer(head, maps, photos, tmp_path_factory.mktemp("page") / "explorer.html").as_uri())
    return head, maps, browser


@pytest.fixture
def page(opened):
    """The page with the first photograph chosen and all parts on."""
    head, maps, browser = opened
    browser.ask("$('all').click(); choose(0)")
    return head, maps, browser


def number(browser, selector):
    return float(browser.ask(f"document.querySelector({selector!r}).textContent").replace("−", "-"))


def click(browser, selector):
    browser.ask(f"document.querySelector({selector!r}).click()")


def centred(head, maps):
    unit = normalize(head.bag(maps), dim=1)
    return normalize(unit - unit.mean(0), dim=1), unit.mean(0)


def test_choosing_a_photograph_shows_its_score_sheet(page):
    head, maps, browser = page
    click(browser, "#picker button[data-photo='17']")
    winner = int(head(maps[[17]]).argmax())
    sheet = score_sheet(head, maps[[17]], winner)
    assert browser.ask("$('class').value") == str(winner)
    assert number(browser, "#score") == pytest.approx(sheet.total.item(), abs=1e-3)
    shown = browser.ask("[...document.querySelectorAll('#parts tr[data-part]')].map(r => [+r.dataset.part, r.querySelector('.number').textContent])")
    assert len(shown) == 12
    value = dict(zip(sheet.parts.tolist(), sheet.contributions.tolist()))
    assert [float(text.replace("−", "-")) for _, text in shown] == pytest.approx([value[p] for p, _ in shown], abs=1e-3)
    assert {p for p, _ in shown} == set(sheet.parts[sheet.contributions.abs().argsort(descending=True)[:12]].tolist())


def test_switching_parts_off_changes_scores_and_ranking_to_what_python_computes(page):
    head, maps, browser = page
    click(browser, "#picker button[data-photo='23']")
    before = number(browser, "#score")
    parts = browser.ask("[...document.querySelectorAll('#parts input')].map(e => +e.dataset.part)")
    off = [parts[0], parts[3], parts[-1]]
    for p in off:
        click(browser, f"#parts input[data-part='{p}']")
    logits = what_if(head, maps[[23]], off)[0]
    best = logits.argsort(descending=True)[:5].tolist()
    shown = browser.ask("[...document.querySelectorAll('#scores tr')].map(r => [+r.dataset.class, +r.querySelector('.number').textContent])")
    assert [c for c, _ in shown] == best and [x for _, x in shown] == pytest.approx(logits[best].tolist(), abs=1e-3)
    assert number(browser, "#score") == pytest.approx(logits.max().item(), abs=1e-3) and number(browser, "#score") != before

    codes, mean = centred(head, maps)
    left = torch.ones(head.parts)
    left[off] = 0
    cosines = (codes * left) @ codes[23]
    cosines[23] = -np.inf
    near = cosines.argsort(descending=True)[:6].tolist()
    found = browser.ask("[...document.querySelectorAll('#neighbours button')].map(b => [+b.dataset.photo, +b.querySelector('b').textContent])")
    assert [j for j, _ in found] == near and [s for _, s in found] == pytest.approx(cosines[near].tolist(), abs=1e-3)
    assert near != (codes @ codes[23]).argsort(descending=True)[1:7].tolist()  # these parts do matter to the ranking

    click(browser, f"#neighbours button[data-photo='{near[3]}']")
    sheet = part_match(head, maps[[23]], maps[[near[3]]], mean)
    gone = sum(share for name, share in zip(sheet.names, sheet.shares.tolist()) if int(name.split()[1]) in off)
    assert number(browser, "#similarity") == pytest.approx(sheet.total.item() - gone, abs=1e-4)
    click(browser, "#all")
    assert number(browser, "#score") == pytest.approx(head(maps[[23]]).max().item(), abs=1e-3)
    assert number(browser, "#similarity") == pytest.approx(sheet.total.item(), abs=1e-4)


def test_a_class_may_be_asked_for(page):
    head, maps, browser = page
    for c in range(5):
        browser.ask(f"$('class').value = {c}; $('class').onchange()")
        assert number(browser, "#score") == pytest.approx(head(maps[[0]])[0, c].item(), abs=1e-3)
    assert browser.ask("[...$('class').options].map(o => o.textContent)")[2] == "</script>"


def test_boxes_lie_where_parts_answer_most(page):
    head, maps, browser = page
    click(browser, "#picker button[data-photo='5']")
    sheet = score_sheet(head, maps[[5]], int(browser.ask("$('class').value")))
    drawn = browser.ask("[...document.querySelectorAll('#photo .box')].map(b => [b.textContent, b.style.left, b.style.top, b.style.width, b.style.height])")
    where = {p: box for p, box in zip(sheet.parts.tolist(), sheet.boxes.tolist())}
    named = {int(p): corners for text, *corners in drawn for p in text.split(", ")}
    largest = sheet.parts[sheet.contributions.abs().argsort(descending=True)[:6]].tolist()
    assert set(named) == {p for p in largest if where[p][2] > 0}
    for p, (left, top, width, height) in named.items():
        x0, y0, x1, y1 = where[p]
        expected = [100 * x0 / 5, 100 * y0 / 4, 100 * (x1 - x0) / 5, 100 * (y1 - y0) / 4]
        assert [float(text.rstrip("%")) for text in (left, top, width, height)] == pytest.approx(expected, abs=1e-3)


def press(browser, key, code=0, text=None):
    for kind in ("keyDown", "keyUp"):
        typed = {"text": text} if text and kind == "keyDown" else {}
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)


def test_keys_are_enough(page):
    head, maps, browser = page
    press(browser, "ArrowRight", 39)
    press(browser, "ArrowRight", 39)
    press(browser, "ArrowLeft", 37)
    assert "photograph 1" in browser.ask("$('h-photo').textContent")
    browser.ask("document.querySelector('#parts input').focus()")
    p = browser.ask("+document.activeElement.dataset.part")
    press(browser, " ", 32, " ")
    assert number(browser, "#score") == pytest.approx(what_if(head, maps[[1]], [p])[0].max().item(), abs=1e-3)
    assert browser.ask("+document.activeElement.dataset.part") == p  # the focus stays, so that the key may be pressed again
    press(browser, "Tab", 9)
    assert browser.ask("document.activeElement.tagName") == "INPUT"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_a_phone_and_a_desk_by_day_and_by_night(opened, width, dark):
    browser = opened[2]
    browser.screen(width, 844, dark)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(23, 24, 26)" if dark else "rgb(255, 255, 255)")
    assert not browser.errors()


def test_without_classes_there_are_parts_and_neighbours(browser, tmp_path):
    head, maps, photos = a_set(12, labelled=False)
    browser.open(explorer(head, maps, photos, tmp_path / "explorer.html").as_uri())
    assert not browser.errors() and browser.ask("document.body.dataset.ready") == "yes"
    codes, _ = centred(head, maps)
    near = (codes @ codes[0]).argsort(descending=True)[1:7].tolist()
    assert browser.ask("[...document.querySelectorAll('#neighbours button')].map(b => +b.dataset.photo)") == near
    assert browser.ask("$('ask').hidden && $('scores').children.length === 0")


def test_a_thousand_photographs_load_in_two_seconds_and_ask_nobody(browser, tmp_path):
    head, maps, photos = a_set(1000, parts=64)
    file = explorer(head, maps, photos, tmp_path / "explorer.html")
    assert file.stat().st_size < 12e6
    start = time.perf_counter()
    browser.open(file.as_uri())
    assert browser.ask("document.body.dataset.ready") == "yes"
    assert time.perf_counter() - start < 2
    assert [url for url in browser.requests() if not url.startswith("data:")] == [file.as_uri()]
    start = time.perf_counter()
    click(browser, "#parts input")
    assert time.perf_counter() - start < 0.5  # scores and the ranking of a thousand


def test_the_site_has_one_of_real_photographs(browser):
    page = SITE / "_static" / "explorer.html"
    assert page.exists(), "there is no explorer in _build/html: run `make site` first (`make test` does)"
    assert page.stat().st_size < 4e6
    browser.screen(390, 844)
    browser.open(page.as_uri())
    assert not browser.errors() and [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.ask("N") > 100 and browser.ask("document.documentElement.scrollWidth") <= 390
    browser.ask("$('class').onchange()")  # asks for the class that it shows, whichever wins when a part is gone
    before, added = number(browser, "#score"), number(browser, "#parts tr[data-part] .number")
    click(browser, "#parts input")
    assert number(browser, "#score") == pytest.approx(before - added, abs=2e-3) and added != 0


def test_maps_and_photographs_belong_together(tmp_path):
    head, maps, photos = a_set(4)
    assert "3 maps of 4 photographs" in refusal(ValueError, lambda: explorer(head, maps[:3], photos, tmp_path / "x.html"))
    many = PartHead(12, 300)
    assert "256 parts" in refusal(ValueError, lambda: explorer(many, maps, photos, tmp_path / "x.html"))
