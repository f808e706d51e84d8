"""The script that executes the chapters: a chapter is stored whole or not at all, and the same each time."""

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

SCRIPT = Path(__file__).parents[1] / "book" / "_tools" / "execute.py"


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """The script, with a folder of its own in the place of the project."""
    spec = importlib.util.spec_from_file_location("execute", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name in script.KERNEL_ENVIRONMENT:
        monkeypatch.setenv(name, script.KERNEL_ENVIRONMENT[name])
    monkeypatch.setattr(script, "STATUS", tmp_path / "status.json")
    monkeypatch.setattr(script, "CACHE", tmp_path / "cache")
    return script


def chapter(path, *sources):
    notebook = new_notebook(cells=[new_markdown_cell("# A title")] + [new_code_cell(source) for source in sources])
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    nbformat.write(notebook, path)
    return path


def test_stores_outputs_and_a_second_run_changes_nothing(execute, tmp_path, capsys):
    fill = "from pathlib import Path\nPath('cache').mkdir(exist_ok=True)\nPath('cache/maps').write_bytes(bytes(3_000_000))"
    path = chapter(tmp_path / "07_try.ipynb", "print('one')\nprint('two')", fill, "6 * 7")
    entry = execute.execute(path)
    first = path.read_bytes()
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.execution_count for cell in cells[1:]] == [1, 2, 3]
    assert cells[1].outputs[0].text == "one\ntwo\n" and cells[3].outputs[0].data["text/plain"] == "42"
    assert entry["features_mb"] == 3 and 20 < entry["peak_mb"] < 1000 and entry["seconds"] > 0

    again = execute.execute(path)
    assert path.read_bytes() == first and again["features_mb"] == 0
    assert "outputs as before" in capsys.readouterr().out
    record = json.loads((tmp_path / "status.json").read_text())
    assert record["chapters"] == {"07_try": again} and "torch" in record["versions"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["07_try.ipynb", "cache", "status.json"]


@pytest.mark.parametrize(
    "source, reason", [("1 / 0", "ZeroDivisionError"), ("import os\nos._exit(3)", "kernel died")], ids=["error", "death"]
)
def test_a_failing_cell_is_named_and_the_file_left_alone(execute, tmp_path, monkeypatch, source, reason):
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    path = chapter(tmp_path / "07_try.ipynb", "x = 1", source, "x")
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stop:
        execute.execute(path)
    complaint = str(stop.value)
    assert "07_try.ipynb: cell 3 failed" in complaint and reason in complaint and source.splitlines()[0] in complaint
    assert path.read_bytes() == before and not (tmp_path / "status.json").exists()


def test_tidy_keeps_what_means_something(execute):
    view = "application/vnd.jupyter.widget-view+json"
    notebook = new_notebook(
        metadata={"widgets": {"state": {}}, "language_info": {"name": "python", "version": "3.12.1"}},
        cells=[
            new_code_cell(
                "slider",
                metadata={"execution": {"iopub.busy": "now"}, "mystnb": {"image": {"alt": "a slider"}}, "tags": ["solution"]},
                outputs=[
                    new_output("display_data", {view: {"model_id": "f00"}, "text/html": "<p>twin</p>"}),
                    new_output("display_data", {view: {"model_id": "f01"}, "text/plain": "no twin"}),
                ],
            )
        ],
    )
    execute.tidy(notebook)
    cell = notebook.cells[0]
    assert "widgets" not in notebook.metadata and notebook.metadata.language_info == {"name": "python"}
    assert cell.metadata.tags == ["solution", "hide-cell"] and cell.metadata.jupyter.source_hidden
    assert cell.metadata.mystnb["image"] == {"alt": "a slider"} and "execution" not in cell.metadata
    assert view not in cell.outputs[0].data and view in cell.outputs[1].data
    once = nbformat.writes(notebook)
    execute.tidy(notebook)
    assert nbformat.writes(notebook) == once


def test_figures_of_another_machine_leave_the_record(execute, monkeypatch):
    execute.record("01_maps", {"seconds": 1.0})
    execute.record("02_regions", {"seconds": 2.0})
    assert list(json.loads(execute.STATUS.read_text())["chapters"]) == ["01_maps", "02_regions"]
    monkeypatch.setattr(execute, "machine", lambda: {"cores": 128})
    execute.record("03_whitening", {"seconds": 3.0})
    assert list(json.loads(execute.STATUS.read_text())["chapters"]) == ["03_whitening"]


def test_chapters_come_in_the_order_of_the_contents(execute):
    names = [path.stem for path in execute.chapters()]
    listed = re.findall(r"file: (\d\d_\w+)", (SCRIPT.parents[1] / "_toc.yml").read_text(encoding="utf-8"))
    assert names[:2] == ["00_tour", "01_maps"] and names == listed and set(names) == {path.stem for path in SCRIPT.parents[1].glob("*.ipynb")}
