"""Feature maps of a whole set, extracted once into a memory-mapped file that any later run reads at once.

A cache is a folder `<cache>/<set>-<backbone>-<fingerprint>/` of three files:

    maps.npy     (n, d, h, w) half-precision numbers
    done.npy     (n,) CRC-32 of each photograph's map, 0 while it is not there: extraction resumes from this
    about.json   what made it; once complete, also the size and time of maps.npy, so that any later change is noticed

The fingerprint covers the photographs, the weights, the layer, the size and the preprocessing: a cache made by
anything else has another name, and is never read.
"""

import errno
import json
import os
import shutil
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor

from ._progress import progress
from .backbones import Backbone
from .data import Photos

_FORMAT = 1  # raised when the layout of the files changes


@dataclass(frozen=True, eq=False)
class Maps:
    """Feature maps of `n` photographs, read from disk when asked for.

    `maps[7]` is a float32 tensor `(d, h, w)`; `maps[photos.test]`, a slice or a boolean mask is a smaller
    `Maps`, still on disk; `maps.tensor()` is everything as one float32 tensor `(n, d, h, w)`.
    """

    values: np.ndarray
    rows: np.ndarray

    @property
    def shape(self):
        return (len(self.rows), *self.values.shape[1:])

    @property
    def channels(self):
        return self.values.shape[1]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, (int, np.integer)):
            return _float32(self.values[self.rows[index]])
        try:
            return Maps(self.values, self.rows[index])
        except IndexError as error:
            raise IndexError(f"there are {len(self)} maps: {error}") from None

    def batches(self, size=64):
        """The maps in order, as float32 tensors of up to `size` maps."""
        for start in range(0, len(self), size):
            yield _float32(self.values[self.rows[start : start + size]])

    def tensor(self) -> Float[Tensor, "n d h w"]:
        """All maps in memory: four bytes a number."""
        return _float32(self.values[self.rows])

    def __repr__(self):
        return f"Maps{self.shape}"


def _float32(values):
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def extract(backbone: Backbone, photos: Photos, cache="data/cache", batch=32) -> Maps:
    """Maps of all photographs, each stretched to `backbone.size`: from the cache if they are there.

    Pictures are decoded beside the computation. On a CPU with bfloat16 arithmetic, and on a GPU, the network runs in
    that precision. An interrupted run goes on where it stopped; a second process waits for the first.

    Args:
        backbone: it runs on the device it is on.
        photos: `n` photographs.
        cache: folder for the caches of all sets and backbones.
        batch: photographs at once: memory against speed.

    Raises:
        BadPicture: a photograph that cannot be read; `photos.readable()` leaves such out.
        OSError: the disk is full; nothing is lost.
    """
    if not isinstance(backbone, Backbone) or not isinstance(photos, Photos):
        given = f"{type(backbone).__name__}, {type(photos).__name__}"
        raise TypeError(f"extract takes a Backbone and Photos, in this order, not {given}: partlib.data.folder(path) makes Photos of a folder")
    if len(photos) == 0:
        raise ValueError(f"{photos.name} holds no photographs: nothing to extract")
    key = sha256(f"{_FORMAT} {backbone.fingerprint} {photos.fingerprint}".encode()).hexdigest()[:16]
    folder = Path(cache) / f"{_plain(photos.name)}-{backbone.name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder / "lock"):
        side = backbone.prepare(photos[0])[None]
        with torch.no_grad():
            shape = (len(photos), *backbone(side.to(backbone.mean.device)).shape[1:])
        done = _open(folder, shape)
        missing = np.flatnonzero(done == 0)
        if len(missing):
            _fill(folder, done, missing, backbone, photos, batch)
            _seal(folder, backbone, photos)
    return Maps(np.load(folder / "maps.npy", mmap_mode="r"), np.arange(len(photos)))


# The cache's files.


def _open(folder, shape):
    """`done` of a cache that can be gone on with; a fresh one where there is none, or where it is damaged."""
    maps_file, done_file = folder / "maps.npy", folder / "done.npy"
    try:
        maps = np.load(maps_file, mmap_mode="r")
        done = np.load(done_file, mmap_mode="r+")
        whole = maps.shape == shape and maps.dtype == np.float16 and done.shape == shape[:1] and done.dtype == np.uint32
    except (OSError, ValueError):  # absent, cut short, or no longer arrays
        whole = False
    if not whole:
        _allocate(maps_file, shape, np.float16)
        _allocate(done_file, shape[:1], np.uint32)
        return np.load(done_file, mmap_mode="r+")
    if _stat(maps_file) != _about(folder).get("sealed"):  # unfinished, or touched since: trust only rows that check
        for i in np.flatnonzero(done):
            if _crc(maps[i]) != done[i]:
                done[i] = 0
    return done


def _allocate(file, shape, dtype):
    """An array of zeros on disk, its blocks reserved now: a full disk is an error here and not a crash later."""
    part = file.with_suffix(".part")
    try:
        np.lib.format.open_memmap(part, "w+", dtype, shape).flush()
        if hasattr(os, "posix_fallocate"):
            with open(part, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, part.stat().st_size)
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        need, free = np.prod(shape, dtype=float) * np.dtype(dtype).itemsize, shutil.disk_usage(file.parent).free
        raise OSError(
            errno.ENOSPC, f"the maps need {need / 1e6:.0f} MB and {free / 1e6:.0f} MB are free: make room, or give another cache=", str(file)
        ) from None


def _seal(folder, backbone, photos):
    about = {"photographs": repr(photos), "backbone": repr(backbone), "sealed": _stat(folder / "maps.npy")}
    part = folder / "about.part"
    part.write_text(json.dumps(about, indent=1), encoding="utf-8")
    os.replace(part, folder / "about.json")


def _about(folder):
    try:
        return json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _stat(file):
    return [file.stat().st_size, file.stat().st_mtime_ns]


def _crc(values):
    return zlib.crc32(np.ascontiguousarray(values)) or 1  # 0 means "not there"


def _plain(name):
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)[:60]


class _only_one:
    """One process at a time in a cache; the others say that they wait."""

    def __init__(self, file):
        self.lock = FileLock(file)

    def __enter__(self):
        try:
            self.lock.acquire(timeout=0.1)
        except Timeout:
            print(f"another process is extracting into {Path(self.lock.lock_file).parent}: waiting for it", file=sys.stderr)
            self.lock.acquire()

    def __exit__(self, *_):
        self.lock.release()


# The work.


def _fill(folder, done, missing, backbone, photos, batch):
    """Computes the missing rows: each map is on disk before its row counts as done."""
    maps = np.load(folder / "maps.npy", mmap_mode="r+")
    device = backbone.mean.device
    groups = [missing[i : i + batch] for i in range(0, len(missing), batch)]
    bar = progress(total=len(photos), initial=len(photos) - len(missing), desc=f"{photos.name} → {backbone.name}", unit="image")
    with bar, ThreadPoolExecutor(2) as pool, torch.inference_mode(), fast_precision(device):
        ahead = [pool.submit(_read, backbone, photos, rows) for rows in groups[:2]]
        for number, rows in enumerate(groups):
            images = ahead.pop(0).result()
            if number + 2 < len(groups):
                ahead.append(pool.submit(_read, backbone, photos, groups[number + 2]))
            # A CPU is faster on a few pictures at a time, whose maps stay in its cache.
            some = images.to(device).split(4 if device.type == "cpu" else batch)
            values = torch.cat([backbone(chunk).float().cpu() for chunk in some]).numpy()
            if not np.isfinite(values).all() or np.abs(values).max() > np.finfo(np.float16).max:
                raise FloatingPointError(f"{backbone.name} gave numbers beyond half precision at {photos.names[rows[0]]}: take another layer")
            maps[rows] = values
            maps.flush()
            done[rows] = [_crc(maps[row]) for row in rows]
            done.flush()
            bar.update(len(rows))


def _read(backbone, photos, rows):
    return torch.stack([backbone.prepare(photos[int(row)]) for row in rows])


def fast_precision(device):
    """bfloat16 arithmetic where the processor has it (a third of the time), float32 elsewhere."""
    has_bfloat16 = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16") if device.type == "cpu" else device.type == "cuda"
    return torch.autocast(device.type, torch.bfloat16) if has_bfloat16 else nullcontext()
