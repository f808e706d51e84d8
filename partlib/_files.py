"""What was learnt, in a file: arrays and a line of JSON (safetensors), nothing that could run."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


def write(file, tensors: dict, about: dict, kind: str):
    """Write beside the file and rename into place; `kind` says what it is, in the file and in errors."""
    file = Path(file)
    part = file.with_name(file.name + ".part")
    try:
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, part, {kind: json.dumps(about)})
        os.replace(part, file)
    except (OSError, SafetensorError) as error:
        if part.exists():  # missing_ok would not do: the folder may be a file
            part.unlink()
        raise OSError(f"the {kind} could not be written to {file} ({error}): is there such a folder, and room on the disk?") from None


def read(file, kind: str, make):
    """`make(tensors, about)` of what `write` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or holds something else.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no file {file}: save(file) writes one")
    try:
        with safe_open(file, "pt") as stored:
            about = json.loads(stored.metadata()[kind])
            return make({name: stored.get_tensor(name) for name in stored.keys()}, about)
    except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError):
        raise ValueError(f"{file} holds no {kind}, or is damaged: learn them again, or fetch the file again") from None
