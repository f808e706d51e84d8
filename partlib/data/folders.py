"""Pictures that lie in a folder: anyone's own, and the files of a published set."""

import hashlib
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from .photos import Photos
from .pictures import BadPicture, read_picture, suffixes


def folder(path, on_error="raise", labelled=False) -> Photos:
    """Every picture below a folder, in the alphabetical order of their names, the same on every machine.

    A picture is a file with the suffix of a format that Pillow decodes (.jpg, .PNG, .tiff …). Names that begin with a
    dot are passed over. Links to folders elsewhere are followed, each folder once, so that none lead in circles.

    Args:
        path: the folder.
        on_error: "raise" stops at a picture that cannot be read, when it is asked for; "skip" reads every picture once
            now and goes on without those that cannot be read: `left_out` of the result lists them with the reasons.
        labelled: take the first level of subfolders as classes.

    Raises:
        OSError: there is no such folder, or a part of it cannot be opened.
        ValueError: it holds no picture, or a picture beside the class folders.
        BadPicture: (later, when a picture is asked for) a picture cannot be read.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error is {on_error!r}: choose "raise" (stop at bad pictures) or "skip" (leave them out)')
    root = Path(path).expanduser()
    if root.is_file():
        raise NotADirectoryError(f"{root} is a file: give the folder it lies in, or read it alone with read_picture")
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}, seen from {Path.cwd()}: give the folder of your pictures")
    closed, known = [], suffixes()
    files = sorted(_files_below(root, closed))
    if closed and on_error == "raise":
        raise OSError(f'{closed[0]}; mend that, or leave the folder out with on_error="skip"')
    names = [name for name in files if os.path.splitext(name)[1].lower() in known]
    if not names:
        others = ", ".join(sorted({os.path.splitext(name)[1] or "no suffix" for name in files})[:8]) or "nothing"
        raise ValueError(f"{root} holds no picture that Pillow decodes (.jpg, .png, .tiff …), but {others}")
    labels, classes = _first_level(root, names) if labelled else (None, ())
    photos = Photos(name=root.resolve().name, labels=labels, classes=classes, left_out=closed, **files_of(root, names))
    return photos.readable() if on_error == "skip" else photos


def files_of(root, names) -> dict:
    """`names`, `read`, `stamps` and `digest` of a set of photographs that are files below `root`.

    Raises:
        FileNotFoundError: some of them are missing; names the first and says how many.
    """
    stamps = [_stamp(f"{root}/{name}") for name in names]
    if None in stamps:
        raise FileNotFoundError(
            f"{stamps.count(None)} of {len(names)} photographs are missing from {root}, the first is "
            f"{names[stamps.index(None)]}: unpack the set again, all of it"
        )
    return {"names": names, "read": partial(_read, root, names), "stamps": stamps, "digest": partial(_digest, root, names)}


def _read(root, names, row):
    return read_picture(Path(root) / names[row])


def _digest(root, names, row):
    return hashlib.sha256((Path(root) / names[row]).read_bytes()).hexdigest()


def _stamp(path):
    """Size and time of a file, those of a link that leads nowhere, None for no file."""
    for look in (os.stat, os.lstat):
        with suppress(OSError):
            about = look(path)
            return f"{about.st_size}:{about.st_mtime_ns}"


def _files_below(root, closed):
    """Files below `root`, as relative names with "/"; folders that cannot be opened are added to `closed`."""
    home, entered, waiting = Path(os.path.realpath(root)), set(), [""]
    while waiting:
        inside = waiting.pop()
        try:
            entries = sorted(os.listdir(os.path.join(root, inside)))
        except OSError as error:
            closed.append(BadPicture(os.path.join(root, inside), f"the folder cannot be opened ({error.strerror})"))
            continue
        for name in (inside + entry for entry in entries if not entry.startswith(".")):
            path = os.path.join(root, name)
            if not os.path.isdir(path):
                yield name
                continue
            real = Path(os.path.realpath(path))
            by_link = real != home / name
            circle = real.is_relative_to(home) or home.is_relative_to(real)
            if not by_link or not (circle or real in entered):
                entered.add(real)
                waiting.append(name + "/")


def _first_level(root, names):
    loose = next((name for name in names if "/" not in name), None)
    if loose:
        raise ValueError(f"{root}: {loose} lies beside the class folders; with labelled=True, move it into one of them")
    classes, labels = np.unique([name.split("/")[0] for name in names], return_inverse=True)
    return labels, classes.tolist()
