"""A Sphinx extension that writes what must not be written by hand: the library's reference and the status tables.

A page asks for them with a comment line, `% reference` in api.md and `% status` in status.md.
"""

import importlib.util
import json
from pathlib import Path

from sphinx.errors import ExtensionError
from sphinx.util.fileutil import copy_asset

ROOT = Path(__file__).resolve().parents[2]

# The road in its order. A module that is not there yet has no section yet.
ROAD = {
    "Photographs": ["data"],
    "Feature maps": ["backbones", "features"],
    "Regions": ["regions"],
    "Tools: arrays in, arrays out": ["whitening", "clustering", "matching"],
    "Codes": ["encoding"],
    "Parts": ["mining", "heads"],
    "Learning": ["training", "partnet", "pretext", "selfcluster"],
    "Answers": ["retrieval", "evaluation"],
    "Explanations": ["cam"],
    "Faces": ["plots", "widgets", "report", "cli", "bench", "configurations", "results"],
}


def reference():
    """One section for each module: its docstring, then its public names in the order of the file."""
    lines = []
    for stage, names in ROAD.items():
        present = [n for n in names if (ROOT / "partlib" / f"{n}.py").exists() or (ROOT / "partlib" / n).is_dir()]
        lines += [f"## {stage}", ""] if present else []
        for name in present:
            lines += [f"### `partlib.{name}`", "", "```{eval-rst}"]
            lines += [f".. automodule:: partlib.{name}", "   :members:", "   :special-members: __call__", "```", ""]
    return lines


def table(head, rows):
    """A Markdown table; every column but the first holds numbers and stands to the right."""
    rule = ["---"] + ["--:"] * (len(head) - 1)
    return ["| " + " | ".join(str(value) for value in row) + " |" for row in [head, rule, *rows]] + [""]


def status():
    """The tables of book/status.json, which book/_tools/execute.py keeps."""
    path = ROOT / "book" / "status.json"
    if not path.exists():
        return ["No run is on record yet. `make book` executes the chapters and writes one.", ""]
    record = json.loads(path.read_text(encoding="utf-8"))
    here = record["machine"]
    chapters = record["chapters"]
    rows = [
        [f"[](./{name}.ipynb)", f"{e['seconds']:.1f}", f"{e['peak_mb'] / 1000:.1f}", e["features_mb"]]
        for name, e in chapters.items()
    ]
    total = sum(entry["seconds"] for entry in chapters.values())
    rows.append(["in all", f"{total:.1f}", "", sum(e["features_mb"] for e in chapters.values())])
    return [
        "## The last run",
        "",
        f"On {here['system']}, {here['processor']}, {here['cores']} cores, {here['memory_gib']} GB of memory; "
        f"Python {here['python']}; {here['threads']} threads. The last column says how much of the time went into feature maps "
        "that were not in the cache yet: 0 means that the chapter found all of them there.",
        "",
        *table(["chapter", "time (s)", "peak memory (GB)", "maps computed (MB)"], rows),
        "## Versions",
        "",
        *table(["package", "version"], record["versions"].items()),
    ]


PAGES = {"api": ("% reference", reference), "status": ("% status", status)}


def fill(app, page, source):
    """Put the generated text in the place of the line that asks for it."""
    if page not in PAGES:
        return
    mark, text = PAGES[page]
    if source[0].count(mark + "\n") != 1:
        raise ExtensionError(f"book/{page}.md needs exactly one line that says {mark!r}")
    source[0] = source[0].replace(mark + "\n", "\n".join(text()) + "\n")


def shield_property(app, what, name, thing, options, lines):
    """Napoleon takes what stands before a colon in a property's first line for its type; an empty comment stops that."""
    if what == "property":
        lines[:0] = ["..", ""]


def copy_mathjax(app, error):
    """Put MathJax beside the pages, without its fonts: formulas are drawn as SVG."""
    if error is None:
        package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
        target = Path(app.outdir) / "_static" / "mathjax"
        for part in ("tex-svg.js", "input/tex/extensions", "a11y", "sre"):
            copy_asset(str(package / part), str((target / part).parent if part.endswith(".js") else target / part))


def setup(app):
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", shield_property, priority=400)  # napoleon's is 500
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "version": "1"}
