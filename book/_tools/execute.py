"""Execute the chapters in place, in the order of the book, and record what each took.

    python book/_tools/execute.py                      every chapter of book/_toc.yml
    python book/_tools/execute.py book/01_maps.ipynb   these only

A chapter is written back only when all of it has run: beside the old file first, then renamed over it. What changes from
run to run without meaning anything (timings, ids of widgets) is left out, so an unchanged result is an unchanged file.
Times, peak memory and versions go to book/status.json, from which the status page is drawn.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import re
import sys
import time
import tomllib
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
STATUS = BOOK / "status.json"
CACHE = ROOT / "data" / "cache"
CELL_TIMEOUT = 600  # seconds; a chapter should take under 90 in all

# Sums in another order give other last digits, and the order depends on the number of threads: so it is fixed.
# So do sums of bfloat16 numbers, in which some processors compute and others cannot.
# A progress bar is for eyes: in a stored output it would only be noise that no two runs share.
KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "2",
    "PYTHONHASHSEED": "0",
    "PARTLIB_PRECISION": "float32",
    "TQDM_DISABLE": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # the kernel's debugger warns on stderr otherwise
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# On Linux from /proc: what getrusage says there counts the memory of the process that started this one, too.
PEAK_MEMORY = """
import pathlib, re, resource
status = pathlib.Path("/proc/self/status")
if status.exists():
    print(int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text()).group(1)) // 2**10)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20)
"""


def chapters():
    """Paths of the notebooks that the table of contents names, in its order."""
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    names = [page["file"] for part in toc["parts"] for page in part["chapters"]]
    return [BOOK / f"{name}.ipynb" for name in names if re.match(r"\d\d_", name)]


def tidy(notebook):
    """Bring a notebook into the form in which it is stored: solutions folded, nothing volatile left."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        for volatile in ("execution", "collapsed", "scrolled", "trusted"):
            cell.metadata.pop(volatile, None)
        if cell.cell_type != "code":
            continue
        if "solution" in cell.metadata.get("tags", []):
            fold(cell)
        for output in cell.outputs:
            data = output.get("data", {})
            if "text/html" in data:  # the static twin is what a page without a kernel can show
                data.pop(WIDGET_VIEW, None)


def fold(cell):
    """Fold a solution away, both in the site (hide-cell) and in JupyterLab (source_hidden, outputs_hidden)."""
    if "hide-cell" not in cell.metadata.tags:
        cell.metadata.tags.append("hide-cell")
    cell.metadata.jupyter = {"source_hidden": True, "outputs_hidden": True}
    prompts = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
    cell.metadata.mystnb = {**cell.metadata.get("mystnb", {}), **prompts}


def run(path, notebook):
    """Execute all cells of `notebook`, which stays in memory; return the kernel's peak memory in MB."""

    def show(cell, cell_index):
        if sys.stdout.isatty():
            print(f"\r{path.name}: cell {cell_index + 1} of {len(notebook.cells)}", end="", flush=True)

    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
        on_cell_start=show,
    )
    count = len(notebook.cells)
    with client.setup_kernel():
        for index in range(count):
            try:
                client.execute_cell(notebook.cells[index], index)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                sys.exit(complaint(path, notebook.cells[index], index, error))
        notebook.cells.append(nbformat.v4.new_code_cell(PEAK_MEMORY))
        probe = client.execute_cell(notebook.cells[count], count, store_history=False)
    del notebook.cells[count]
    return int(probe.outputs[0].text)


def complaint(path, cell, index, error):
    """What a reader needs to mend a failing cell: which one, what it says, what went wrong."""
    if isinstance(error, CellTimeoutError):
        reason = f"it ran for more than {CELL_TIMEOUT} s"
    elif isinstance(error, DeadKernelError):
        reason = "its kernel died: most often there was not enough memory"
    else:
        reason = "\n".join(cell.outputs[-1].traceback)
    lines = "\n".join(f"    {line}" for line in cell.source.splitlines())
    place = path.relative_to(ROOT)
    return f"\n{place}: cell {index + 1} failed (the file is left as it was):\n\n{lines}\n\n{reason}"


def write(path, text):
    """Write `text` beside `path` and rename it into place; an interruption leaves the old file whole."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    return True


def megabytes(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6 if folder.exists() else 0.0


def machine():
    """Where a run took place, as far as it matters to times and digits."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), flags=re.M)
        processor = names[0] if names else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "threads": int(KERNEL_ENVIRONMENT["OMP_NUM_THREADS"]),
        "python": platform.python_version(),
    }


def versions():
    """Installed version of every package that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    names = [re.match(r"[\w.-]+", requirement).group() for requirement in wanted]
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def record(name, entry):
    """Put one chapter's figures into the record; figures from another machine or other versions leave it."""
    here = {"machine": machine(), "versions": versions()}
    old = json.loads(STATUS.read_text(encoding="utf-8")) if STATUS.exists() else {}
    same = all(old.get(key) == value for key, value in here.items())
    entries = {**(old.get("chapters", {}) if same else {}), name: entry}
    here["chapters"] = {key: entries[key] for key in sorted(entries)}
    write(STATUS, json.dumps(here, indent=2, ensure_ascii=False) + "\n")


def execute(path):
    """Execute one chapter in place and return what it took."""
    notebook = nbformat.read(path, as_version=4)
    cached = megabytes(CACHE)
    start = time.perf_counter()
    peak = run(path, notebook)
    entry = {
        "seconds": round(time.perf_counter() - start, 1),
        "peak_mb": peak,
        "features_mb": round(max(0.0, megabytes(CACHE) - cached)),
    }
    tidy(notebook)
    nbformat.validate(notebook)
    changed = write(path, nbformat.writes(notebook) + "\n")
    record(path.stem, entry)
    fresh = f", computed {entry['features_mb']} MB of features" if entry["features_mb"] else ""
    start_of_line = "\r\033[K" if sys.stdout.isatty() else ""
    news = "outputs changed" if changed else "outputs as before"
    print(f"{start_of_line}{path.name}: {entry['seconds']} s, peak {peak} MB{fresh}; {news}", flush=True)
    return entry


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", type=Path, help="notebooks; all of the book where none is named")
    paths = [path.resolve() for path in parser.parse_args().chapters] or chapters()
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        sys.exit(f"no such chapter: {', '.join(missing)}; book/_toc.yml names the chapters there are")
    os.environ.update(KERNEL_ENVIRONMENT)
    try:
        entries = [execute(path) for path in paths]
    except KeyboardInterrupt:
        logging.disable()  # the abandoned cell's task would have the last word, a page long
        sys.exit("\ninterrupted: chapters that had been reported are stored, the others are as they were")
    print(f"{len(entries)} chapters in {sum(entry['seconds'] for entry in entries):.0f} s")


if __name__ == "__main__":
    main()
