"""The built site: it loads nothing from elsewhere, its links lead somewhere, it can be searched, read and listened to.

`make test` builds the site first; these tests read what was built.
"""

import json
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
import yaml
from browser import Browser, program
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_build" / "html"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.glob("*.html"))
TOC = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
FILES = [TOC["root"]] + [page["file"] for part in TOC["parts"] for page in part["chapters"]]
CHAPTERS = [name for name in FILES if re.match(r"\d\d_", name)]

# Links that a reader may follow; every other address on a page is fetched by the browser without being asked.
FOLLOWED = {"search", "next", "prev", "index", "author", "license", "help", "up", "contents"}
DELIVERERS = re.compile(
    r"jsdelivr|unpkg|cdnjs|googleapis|gstatic|googletagmanager|google-analytics|mybinder|plausible|bootstrapcdn|"
    r"polyfill\.io|ajax\.aspnetcdn|code\.jquery|fontawesome\.com/[\w-]+\.js|esm\.sh|skypack"
)


def soup(page):
    return BeautifulSoup((SITE / page).read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def site():
    """Every page, parsed once."""
    assert PAGES, "there is no site in _build/html: run `make site` first (`make test` does)"
    return {page: soup(page) for page in PAGES}


def elsewhere(address):
    """Whether fetching this address would leave the reader's machine."""
    parts = urlparse(address.strip())
    return bool(parts.netloc) or parts.scheme not in ("", "data", "blob", "file")


def fetched(page):
    """Addresses that a browser fetches by itself when it shows this page."""
    for tag in page.find_all(True):
        if tag.name == "link" and not set(tag.get("rel", [])) & FOLLOWED:
            yield tag.get("href", "")
        if tag.name == "base":
            yield tag.get("href", "")
        if tag.name in ("image", "use"):
            yield tag.get("href", "") or tag.get("xlink:href", "")
        if tag.name == "meta" and tag.get("http-equiv", "").lower() == "refresh":
            yield tag["content"].partition("=")[2]
        for attribute in ("src", "data", "poster", "background", "manifest", "action"):
            if attribute in tag.attrs and not (attribute == "data" and tag.name != "object"):
                yield tag[attribute]
        for candidate in tag.get("srcset", "").split(","):
            yield candidate.strip().partition(" ")[0]
        yield from from_style(tag.get("style", ""))
        if tag.name == "style":
            yield from from_style(tag.get_text())


def from_style(text):
    """Addresses that a style sheet fetches."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    for match in re.finditer(r"url\(\s*(['\"]?)(.*?)\1\s*\)", text, flags=re.S):
        yield match[2]
    for match in re.finditer(r"@import\s+(['\"])(.*?)\1", text):
        yield match[2]


def test_every_page_of_the_contents_is_built():
    assert {f"{name}.html" for name in FILES} | {"index.html", "search.html", "genindex.html"} <= set(PAGES)


def test_no_page_fetches_from_elsewhere(site):
    offences = [(page, address) for page, tree in site.items() for address in fetched(tree) if elsewhere(address)]
    assert not offences


def test_no_style_sheet_fetches_from_elsewhere():
    sheets = list(SITE.rglob("*.css"))
    assert sheets
    offences = [(sheet.name, a) for sheet in sheets for a in from_style(sheet.read_text(encoding="utf-8")) if elsewhere(a)]
    assert not offences


def test_no_script_names_a_delivery_network(site):
    """Whatever builds an address at run time must have its host somewhere. MathJax's own files are tried in the browser."""
    scripts = {path.name: path.read_text(encoding="utf-8") for path in SITE.rglob("*.js") if "mathjax" not in path.parts}
    for page, tree in site.items():
        for number, tag in enumerate(tree.find_all("script", src=False)):
            scripts[f"{page}, script {number}"] = tag.get_text()
    offences = {name: DELIVERERS.findall(text) for name, text in scripts.items() if DELIVERERS.search(text)}
    offences.pop("searchindex.js", None)  # words of the book, not addresses
    assert len(scripts) > 10 and not offences


def test_the_detectors_detect():
    bad = BeautifulSoup(
        "<link rel='stylesheet' href='//fonts.example/a.css'><script src='https://cdn.example/x.js'></script>"
        "<img srcset='a.png 1x, http://b.example/b.png 2x'><p style='background: url(https://c.example/c.png)'></p>"
        "<style>@import 'https://d.example/d.css';</style><meta http-equiv='refresh' content='0; url=http://e.example'>"
        "<a href='https://fine.example'>a link to follow</a><img src='data:image/png;base64,AA'>",
        "html.parser",
    )
    found = {urlparse(address).netloc for address in fetched(bad) if elsewhere(address)}
    assert found == {"fonts.example", "cdn.example", "b.example", "c.example", "d.example", "e.example"}
    assert DELIVERERS.search("const url = 'https://cdn.jsdelivr.net/npm/' + name")


def test_every_image_says_what_it_shows(site):
    silent = [(page, tag.get("src", "")[:60]) for page, tree in site.items() for tag in tree.find_all("img") if not tag.get("alt", "").strip()]
    names = [
        (page, tag["alt"]) for page, tree in site.items() for tag in tree.find_all("img", alt=True)
        if re.fullmatch(r"\S*\.(png|jpe?g|svg|gif)", tag["alt"].strip())
    ]  # fmt: skip
    assert not silent, "give the cell that draws it mystnb.image.alt in its metadata"
    assert not names, "an alternative text that is a file name says nothing: give the cell mystnb.image.alt"
    assert any(tree.find("img") for tree in site.values())


def test_internal_links_lead_somewhere(site):
    anchors = {page: {tag["id"] for tag in tree.find_all(id=True)} for page, tree in site.items()}
    broken = []
    for page, tree in site.items():
        for tag in tree.find_all("a", href=True):
            address, anchor = urldefrag(tag["href"])
            if elsewhere(address):
                continue
            target = unquote(urlparse(address).path) or page
            if not (SITE / target).is_file() or anchor and target in anchors and unquote(anchor) not in anchors[target] | {""}:
                broken.append((page, tag["href"]))
    assert not broken


def test_every_page_with_formulas_loads_the_local_script(site):
    with_formulas = [page for page, tree in site.items() if tree.select(".math")]
    assert with_formulas
    for page in with_formulas:
        sources = [tag["src"].partition("?")[0] for tag in site[page].find_all("script", src=True) if "mathjax" in tag["src"]]
        assert len(sources) == 1 and (SITE / sources[0]).is_file(), page


def test_no_widget_needs_a_kernel_or_a_manager(site):
    for page, tree in site.items():
        assert not tree.select("script[type='application/vnd.jupyter.widget-view+json']"), f"{page}: a widget without its text/html twin"


def test_pages_are_made_for_phones_and_readers(site):
    for page in (f"{name}.html" for name in FILES):
        tree = site[page]
        assert tree.html.get("lang") == "en" and tree.find("meta", attrs={"name": "viewport"}), page
        assert len(tree.select("article h1")) == 1, f"{page}: a page has one title"


def test_solutions_are_folded(site):
    for name in CHAPTERS:
        folded = [tag for tag in site[f"{name}.html"].select("details.hide") if "solution" in tag.get_text(" ").lower()]
        assert len(folded) >= 3, f"{name}: {len(folded)} folded solutions"
        assert not any(tag.has_attr("open") for tag in folded)


@pytest.fixture(scope="module")
def index():
    text = (SITE / "searchindex.js").read_text(encoding="utf-8")
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


def test_search_index_holds_words_of_every_page(index):
    words = {name: 0 for name in index["docnames"]}
    for pages in index["terms"].values():
        for number in pages if isinstance(pages, list) else [pages]:
            words[index["docnames"][number]] += 1
    assert set(FILES) <= set(words)
    assert all(words[name] > 100 for name in CHAPTERS), words


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if program() is None:
        pytest.skip("no Chromium or Chrome on this machine: the pages are not tried in a browser")
    try:
        browser = Browser(program(), tmp_path_factory.mktemp("profile"))
    except (OSError, RuntimeError) as error:
        pytest.skip(f"{program()} does not start here ({error}): the pages are not tried in a browser")
    yield browser
    browser.close()


def address(page):
    return (SITE / page).as_uri()


def test_the_front_door_opens(site):
    assert site["index.html"].find("meta", attrs={"http-equiv": "Refresh"})["content"] == f"0; url={TOC['root']}.html"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "index.html"])
def test_page_in_a_browser(browser, site, page):
    """Opened from the disk: nothing asked of any other place, no script fails, all formulas drawn, and it fits a phone."""
    browser.screen(390, 844)
    browser.open(address(page))
    assert browser.requests() and not [url for url in browser.requests() if elsewhere(url)]
    assert not browser.errors()
    formulas = len(site[page].select(".math"))
    assert browser.ask("document.querySelectorAll('.math mjx-container').length") >= formulas
    unknown = "mjx-container :is([data-mml-node=merror], [data-mml-node=mtext][fill=red])"  # a macro MathJax does not know is red
    assert browser.ask(f"[...document.querySelectorAll('{unknown}')].map(e => e.outerHTML.slice(0, 200))") == []
    assert browser.ask("document.documentElement.scrollWidth") <= 390, "wider than a phone"


def luminance(colour):
    """Relative luminance of a CSS colour `rgb(r, g, b)`, from 0 (black) to 1 (white)."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_light_and_dark(browser, dark):
    """The reader's taste is followed, and text keeps the contrast that WCAG asks for (4.5)."""
    browser.screen(1280, 900, dark=dark)
    browser.open(address(f"{CHAPTERS[0]}.html"))
    ground = luminance(browser.ask("getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.1) if dark else (ground > 0.9)
    for selector in ("article p", "article h1", "article p a:not(.headerlink), article li a:not(.headerlink)"):
        text = luminance(browser.ask(f"getComputedStyle(document.querySelector('{selector}')).color"))
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5, selector


@pytest.mark.parametrize("name", CHAPTERS)
def test_search_finds_each_chapter_by_its_title(browser, site, name):
    title = site[f"{name}.html"].find("h1").get_text().rstrip("#")
    word = max(re.findall(r"[a-z]+", title.lower()), key=len)
    browser.screen(1280, 900)
    browser.open(address("search.html") + f"?q={word}")
    found = browser.ask(
        "new Promise(done => { const look = left => {"
        "  const links = [...document.querySelectorAll('#search-results ul.search li a')].map(a => a.getAttribute('href'));"
        "  const over = document.querySelector('#search-results .search-summary, #search-results p.search-summary');"
        "  if (left === 0 || (over && /found/.test(over.textContent))) done(links); else setTimeout(look, 100, left - 1); };"
        "look(100); })"
    )
    assert any(link.partition("?")[0].partition("#")[0] == f"{name}.html" for link in found), (word, found)
