"""The library stays light: quick to import, short modules, one way from photographs to explanations."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import partlib

ROOT = Path(partlib.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# The road, stage after stage. A module imports from those named before it only.
ROAD = (
    "data", "backbones", "features", "regions", "whitening", "clustering", "matching", "encoding", "mining", "heads",
    "training", "partnet", "pretext", "selfcluster", "retrieval", "evaluation", "cam", "plots", "widgets", "report",
    "cli", "bench", "configurations", "results",
)  # fmt: skip
HELPERS = ("_checks", "_files", "_progress")  # of no stage: all may import them, and they import none

names = [str(file.relative_to(ROOT)) for file in FILES]
every_file = pytest.mark.parametrize("file", FILES, ids=names)


def stage(file):
    """The stage that a file belongs to: its name, or that of its folder."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(file):
    """The stages that a file imports from, inside functions too."""
    package = ("partlib", *file.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            paths = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            paths = [[*base, alias.name] for alias in node.names]
        else:
            continue
        found |= {path[1] for path in paths if path[0] == "partlib" and len(path) > 1}
    return found


def run(code):
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def loaded_by(code):
    """The packages that a fresh Python has loaded after these lines."""
    return set(run(f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})").split())


# ---- what an import costs ----


def test_importing_partlib_costs_little_more_than_importing_torch():
    code = "import torch, time; start = time.perf_counter(); import partlib; print(time.perf_counter() - start)"
    assert any(float(run(code)) < 1.5 for _ in range(3))  # the machine may be busy with other work


def test_importing_partlib_loads_nothing_heavy():
    heavy = {"torch", "torchvision", "sklearn", "faiss", "matplotlib", "pandas", "scipy", "skimage", "seaborn", "PIL", "pyarrow"}
    assert not heavy & loaded_by("import partlib")


def test_tools_on_arrays_load_no_networks_and_no_figures():
    loaded = loaded_by("import partlib as pl; pl.regions, pl.whitening, pl.clustering, pl.retrieval, pl.cam")
    assert not {"torchvision", "sklearn", "skimage", "matplotlib", "pandas", "seaborn"} & loaded
    assert {"torch", "faiss"} <= loaded  # so it was looked


# ---- the road ----


@every_file
def test_the_road_goes_one_way(file):
    here = stage(file)
    if here == "__init__":
        return  # it names all and imports none before it is asked
    if here in HELPERS:
        assert not imported(file)
        return
    assert here in ROAD, f"{here} has no place on the road yet"
    before = {*ROAD[: ROAD.index(here)], *HELPERS} | ({here} if file.parent != ROOT else set())  # files of one folder know each other
    assert imported(file) <= before, f"{here} imports {imported(file) - before}, which come after it"


def test_the_check_of_the_road_sees_every_way_to_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    code = """
import partlib.cam, numpy
from partlib import plots
from partlib.heads import PartHead
def late():
    from . import regions
    from .whitening import Moments
"""
    (tmp_path / "here.py").write_text(code, encoding="utf-8")
    assert imported(tmp_path / "here.py") == {"cam", "plots", "heads", "regions", "whitening"}
    (tmp_path / "data" / "sets.py").write_text("from ..features import Maps\nfrom .photos import Photos\nfrom .. import cam", encoding="utf-8")
    assert imported(tmp_path / "data" / "sets.py") == {"features", "data", "cam"}
    assert stage(tmp_path / "data" / "sets.py") == "data" and stage(tmp_path / "here.py") == "here"


def test_what_the_package_names_is_there():
    for name in partlib.__all__:
        assert getattr(partlib, name) is not None
    assert set(partlib.__all__) <= set(dir(partlib))


# ---- modules that are read in one sitting ----


@every_file
def test_no_module_is_long(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 350


@every_file
def test_what_is_public_says_what_it_does(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module says nothing"
    named = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    if file.parent != ROOT:  # of a folder, what it offers is public
        public = [node for node in named if node.name in getattr(partlib, stage(file)).__all__]
    else:
        public = [node for node in named if not node.name.startswith("_")]
    assert not [node.name for node in public if not ast.get_docstring(node)]
