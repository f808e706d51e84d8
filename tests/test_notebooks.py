"""The chapters as files: executed, whole, small, readable, and in the book's form. nbval compares their outputs."""

import json
import re
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
TOC = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
PARTS = {part["caption"]: [page["file"] for page in part["chapters"]] for part in TOC["parts"]}
CHAPTERS = [name for names in PARTS.values() for name in names if re.match(r"\d\d_", name)]
STATUS = json.loads((BOOK / "status.json").read_text(encoding="utf-8"))

CELL_LINES, FIGURE_LINES = 20, 40
WORDS_A_LINE = 8
BYTES = 500_000
SECONDS, GIGABYTES = 90, 4
TIME_AND_MEMORY = re.compile(r"^> \*\*Time and memory\*\*: about (\d+) s\b.*?\b(\d+(?:\.\d+)?) GB", re.M)
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|Users|tmp|mnt|work|var|opt|private)/\w|\b[A-Z]:\\\\?\w")


class Chapter:
    """A chapter's cells, sorted the ways the tests ask for them."""

    def __init__(self, name):
        self.path = BOOK / f"{name}.ipynb"
        self.notebook = nbformat.read(self.path, as_version=4)
        self.prose = [cell for cell in self.notebook.cells if cell.cell_type == "markdown"]
        self.code = [cell for cell in self.notebook.cells if cell.cell_type == "code"]
        self.text = "\n\n".join(cell.source for cell in self.prose)

    def headings(self):
        """(level, title) of each heading; a comment in a fenced block is none."""
        text = re.sub(r"^ *(```|~~~).*?^ *\1", "", self.text, flags=re.S | re.M)
        return [(len(marks), title.strip()) for marks, title in re.findall(r"^(#{1,6}) (.+)$", text, flags=re.M)]


@pytest.fixture(scope="module", params=CHAPTERS)
def chapter(request):
    return Chapter(request.param)


def lines(cell):
    """Lines of code; blank ones are for the eye."""
    return [line for line in cell.source.splitlines() if line.strip()]


def outputs(cell, *types):
    """Outputs of a cell that hold any of these MIME types."""
    return [output for output in cell.outputs if set(types) & set(output.get("data", {}))]


def draws(cell):
    return bool(outputs(cell, "image/png", "image/jpeg", "image/svg+xml"))


def test_notebooks_in_the_folder_are_chapters_of_the_book():
    assert {path.stem for path in BOOK.glob("*.ipynb")} == set(CHAPTERS)


def test_part_pages_name_the_chapters_of_their_part():
    for caption, names in PARTS.items():
        opening = [name for name in names if name.startswith("part_")]
        if opening:
            text = (BOOK / f"{opening[0]}.md").read_text(encoding="utf-8")
            assert all(f"({name}.ipynb)" in text for name in names if name in CHAPTERS), caption


def test_executed_from_top_to_bottom(chapter):
    nbformat.validate(chapter.notebook)
    assert all(lines(cell) for cell in chapter.code), "an empty cell is never executed"
    assert [cell.execution_count for cell in chapter.code] == list(range(1, len(chapter.code) + 1))


def test_nothing_failed_and_nothing_warned(chapter):
    kinds = {(output.output_type, output.get("name")) for cell in chapter.code for output in cell.outputs}
    assert not {kind for kind in kinds if kind[0] == "error" or kind[1] == "stderr"}


def test_every_cell_is_compared(chapter):
    tags = {tag for cell in chapter.code for tag in cell.metadata.get("tags", [])}
    assert not tags & {"nbval-skip", "skip-execution", "raises-exception", "nbval-raises-exception"}
    unmarked = [cell for cell in chapter.code if "nbval-ignore-output" not in cell.metadata.get("tags", [])]
    assert len(unmarked) >= 0.9 * len(chapter.code)
    assert not any("NBVAL" in cell.source for cell in chapter.code), "say it with a tag"


def test_no_cell_ends_in_a_semicolon(chapter):
    """nbval runs cells without history, and there a final `;` hides no output: the comparison would fail."""
    for cell in chapter.code:
        assert not cell.source.rstrip().endswith(";"), f"end it with plt.show(), or give the result a name: {cell.source}"


def test_is_small(chapter):
    assert chapter.path.stat().st_size < BYTES, "store photographs as JPEG"


def test_is_stored_without_what_changes_from_run_to_run(chapter):
    metadata = chapter.notebook.metadata
    assert set(metadata) <= {"kernelspec", "language_info", "mystnb"} and metadata.language_info == {"name": "python"}
    assert not any("execution" in cell.metadata for cell in chapter.code)
    assert len({cell.id for cell in chapter.notebook.cells}) == len(chapter.notebook.cells)


def test_cells_are_short(chapter):
    for cell in chapter.code:
        limit = FIGURE_LINES if draws(cell) else CELL_LINES
        assert len(cell.source.splitlines()) <= limit, cell.source
        assert max(map(len, cell.source.splitlines())) <= 120, cell.source


def test_is_prose_with_code_and_not_the_reverse(chapter):
    words = len(re.sub(r"\$[^$]*\$", " x ", chapter.text).split())
    code = sum(len(lines(cell)) for cell in chapter.code)
    assert words >= WORDS_A_LINE * code, f"{words} words for {code} lines of code"


def test_has_one_title_and_says_what_it_asks_for(chapter):
    levels = [level for level, _ in chapter.headings()]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:])), "a heading skips a level"
    head = "\n\n".join(cell.source for cell in chapter.notebook.cells[:3] if cell.cell_type == "markdown")
    said = TIME_AND_MEMORY.search(head)
    assert said, "the head says: > **Time and memory**: about 40 s on two cores once the feature maps are cached, 1.3 GB."
    assert int(said[1]) <= SECONDS and float(said[2]) <= GIGABYTES
    peak = STATUS["chapters"][chapter.path.stem]["peak_mb"] / 1000
    assert peak <= 1.25 * float(said[2]), f"it took {peak:.1f} GB when it was last run"


def test_sections_of_the_form(chapter):
    titles = [title for level, title in chapter.headings() if level == 2]
    assert titles[-3:] == ["Exercises", "Check yourself", "Further reading"], titles
    reading = chapter.text.split("## Further reading")[1]
    assert re.search(r"\{cite:[pt]\}`\w+", reading)
    checks = chapter.text.split("## Check yourself")[1].split("## Further reading")[0]
    assert checks.count("<details>") >= 3 and checks.count("<details>") == checks.count("</details>")


def test_three_exercises_each_with_an_executed_solution(chapter):
    exercises, solutions = [], {}
    inside = False
    for cell in chapter.notebook.cells:
        if cell.cell_type == "markdown":
            for level, title in re.findall(r"^(#{2,3}) (.+)$", cell.source, flags=re.M):
                inside = title.strip() == "Exercises" if level == "##" else inside
                if inside and level == "###":
                    assert re.match(r"Exercise \d+: \S", title), title
                    exercises.append(title)
                    solutions[title] = []
        elif inside:
            assert "solution" in cell.metadata.get("tags", []), f"not tagged as a solution: {cell.source}"
            assert "hide-cell" in cell.metadata.tags and cell.metadata.jupyter.source_hidden
            solutions[exercises[-1]].append(cell)
    assert len(exercises) >= 3
    assert all(solutions.values()), "an exercise without a solution in code"


def test_pictures_carry_alternative_text(chapter):
    for cell in chapter.code:
        if draws(cell):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt.split()) >= 4, f"metadata.mystnb.image.alt says what one sees: {cell.source}"
        for output in outputs(cell, "text/html"):
            html = "".join(output.data["text/html"])
            assert len(re.findall(r"<img\b", html)) == len(re.findall(r"<img\b[^>]*\balt=[\"'][^\"']+", html))
    assert not re.search(r"!\[\s*\]\(", chapter.text)


def test_figure_names_are_unique_in_the_book():
    names = [
        cell.metadata.mystnb.figure.name
        for name in CHAPTERS for cell in Chapter(name).code
        if "name" in cell.metadata.get("mystnb", {}).get("figure", {})
    ]  # fmt: skip
    assert len(names) == len(set(names))


def test_names_no_folder_of_a_machine(chapter):
    for cell in chapter.notebook.cells:
        assert not MACHINE_PATH.search(cell.source), cell.source
        for output in cell.get("outputs", []):
            texts = [output.get("text", "")] + [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
            assert not any(MACHINE_PATH.search("".join(text)) for text in texts)


def test_the_record_covers_every_chapter_within_its_limits():
    assert list(STATUS["chapters"]) == sorted(CHAPTERS)
    for name, entry in STATUS["chapters"].items():
        assert entry["peak_mb"] < GIGABYTES * 1000, name
