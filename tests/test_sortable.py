"""The table that a reader sorts and filters: what it stores, and what it does in a browser."""

import pandas as pd
import pytest
from browser import Browser, program

from partlib import widgets

TABLE = pd.DataFrame({"method": ["b & c", "a", "d"], "mAP": ["9.5 ± 0.1", "10.0", float("nan")], "seconds": [3, 20, 100]})


def stored(monkeypatch):
    """The bundle that a notebook would store."""
    kept = []
    monkeypatch.setattr(widgets, "display", lambda bundle, raw: kept.append(bundle))
    widgets.sortable(TABLE, "methods")
    return kept[0]


def test_it_stores_a_static_twin_and_fetches_nothing(monkeypatch):
    bundle = stored(monkeypatch)
    assert set(bundle) == {"text/plain", "text/html"}
    assert "9.5 ± 0.1" in bundle["text/plain"] and "nan" not in bundle["text/plain"].lower()
    page = bundle["text/html"]
    assert "b &amp; c" in page and page.count("<tr>") == 4 and ">nan<" not in page.lower()
    assert not any(word in page for word in ("http", "<script", "src="))


@pytest.mark.skipif(program() is None, reason="there is no Chromium here")
def test_a_reader_sorts_and_filters(monkeypatch, tmp_path):
    (tmp_path / "profile").mkdir()
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><body>{stored(monkeypatch)['text/html']}</body>", encoding="utf-8")
    browser = Browser(program(), str(tmp_path / "profile"))
    try:
        browser.open(page.as_uri())
        names = "[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent).join('|')"
        shown = lambda press: browser.ask(f"document.querySelectorAll('th button')[{press}].click(), {names}")
        assert browser.ask(names) == "b & c|a|d"
        assert shown(2) == "d|a|b & c" and shown(2) == "b & c|a|d"  # by number, the largest first; then the other way round
        assert shown(0) == "d|b & c|a" and shown(1).startswith("a|b & c")
        assert browser.ask(f"i = document.querySelector('input'), i.value = 'B 9.5', i.dispatchEvent(new Event('input')), {names}") == "b & c"
        assert not browser.errors()
    finally:
        browser.close()
