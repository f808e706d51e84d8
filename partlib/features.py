"""Feature maps of a whole set, extracted once into a memory-mapped file that any later run reads at once.

A cache is a folder `<cache>/<set>-<backbone>-<fingerprint>/` of three files:

    maps.npy     (n, d, h, w) half-precision numbers
    done.npy     (n,) CRC-32 of each photograph's map, 0 while it is not there: extraction resumes from this
    about.json   what made it; once complete, also the size and time of maps.npy, so that any later change is noticed

The fingerprint covers the photographs, the weights, the layer, the size, the preprocessing and the precision: a cache made
by anything else has another name, and is never read.
"""

import errno
import io
import json
import math
import os
import reprlib
import shutil
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
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
        try:
            rows = self.rows[index]
        except IndexError:
            rows = None
        if rows is None or rows.ndim > 1:
            raise IndexError(
                f"there are {len(self)} maps: {reprlib.repr(index)} is neither a number below that, a slice, an array of such "
                f"numbers nor {len(self)} truth values; the maps of a training set are maps[photos.train]"
            )
        return _float32(self.values[rows]) if rows.ndim == 0 else Maps(self.values, rows)

    def batches(self, size=64):
        """The maps in order, as float32 tensors of up to `size` maps."""
        for start in range(0, len(self), size):
            yield _float32(self.values[self.rows[start : start + size]])

    def tensor(self) -> Float[Tensor, "n d h w"]:
        """All maps in memory: four bytes a number."""
        whole = torch.empty(self.shape)
        for i, row in enumerate(self.rows):  # one by one: no second copy of everything on the way
            whole[i] = _float32(self.values[row])
        return whole

    def __repr__(self):
        return f"Maps{self.shape}"


def batches(maps: Maps | Float[Tensor, "n d h w"], size=64):
    """Maps in order, up to `size` at a time, whatever holds them: the disk or a tensor."""
    return maps.batches(size) if isinstance(maps, Maps) else maps.split(size)


def _float32(values):
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def extract(backbone: Backbone, photos: Photos, cache="data/cache", batch=32) -> Maps:
    """Maps of all photographs, each stretched to `backbone.size`: from the cache if they are there.

    Pictures are decoded beside the computation. On a CPU with bfloat16 arithmetic, and on a GPU, the network runs in
    that precision, unless PARTLIB_PRECISION=float32 is set. An interrupted run goes on where it stopped; a second process waits for the first.

    Args:
        backbone: it runs on the device it is on.
        photos: `n` photographs.
        cache: folder for the caches of all sets and backbones.
        batch: photographs at once: memory against speed.

    Raises:
        BadPicture: a photograph that cannot be read; `photos.readable()` leaves such out.
        FloatingPointError: a map too large for half precision.
        OSError: the disk is full, or the cache's folder cannot be written; nothing is lost.
    """
    if not isinstance(backbone, Backbone) or not isinstance(photos, Photos):
        given = f"{type(backbone).__name__}, {type(photos).__name__}"
        raise TypeError(f"extract takes a Backbone and Photos, in this order, not {given}: partlib.data.folder(path) makes Photos of a folder")
    if len(photos) == 0:
        raise ValueError(f"{photos.name} holds no photographs: nothing to extract")
    if backbone.training:
        raise ValueError(f"{backbone.name} is in training mode, in which the maps of one photograph depend on the others: call backbone.eval()")
    precision = " bfloat16" if _computes_in_bfloat16(backbone.mean.device) else ""
    key = sha256(f"{_FORMAT}{precision} {backbone.fingerprint} {photos.fingerprint}".encode()).hexdigest()[:16]
    folder = Path(cache) / f"{_plain(photos.name)}-{backbone.name}-{key}"
    if not _is_sealed(folder):
        with _only_one(folder):
            if not _is_sealed(folder):  # another process may have done it all meanwhile
                _complete(folder, backbone, photos, batch)
    return Maps(np.load(folder / "maps.npy", mmap_mode="r"), np.arange(len(photos)))


def _complete(folder, backbone, photos, batch):
    blank = torch.zeros(1, 3, backbone.size, backbone.size, device=backbone.mean.device)
    with torch.inference_mode():
        shape = (len(photos), *backbone(blank).shape[1:])
    done = _open(folder, shape)
    missing = np.flatnonzero(done == 0)
    if len(missing):
        _fill(folder, done, missing, backbone, photos, batch)
    _seal(folder, backbone, photos)


# The cache's files.


def _open(folder, shape):
    """`done` of a cache that can be gone on with; a fresh one where there is none, or where it is damaged."""
    maps_file, done_file = folder / "maps.npy", folder / "done.npy"
    if not (_is_array(maps_file, np.float16, shape) and _is_array(done_file, np.uint32, shape[:1])):
        _allocate(maps_file, np.float16, shape)
        _allocate(done_file, np.uint32, shape[:1])
    maps, done = np.load(maps_file, mmap_mode="r"), np.load(done_file, mmap_mode="r+")
    for i in np.flatnonzero(done):  # unfinished, or touched since: only rows that check are trusted
        if _crc(maps[i]) != done[i]:
            done[i] = 0
    return done


def _is_array(file, dtype, shape):
    """Whether the file is, by its first bytes and its length, what `_allocate` makes: a damaged header is never parsed."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    length = header.tell() + math.prod(shape) * np.dtype(dtype).itemsize
    if not file.exists() or file.stat().st_size != length:
        return False
    with open(file, "rb") as stream:
        return stream.read(header.tell()) == header.getvalue()


def _allocate(file, dtype, shape):
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
        need, free = math.prod(shape) * np.dtype(dtype).itemsize, shutil.disk_usage(file.parent).free
        raise OSError(
            errno.ENOSPC, f"the maps need {need / 1e6:.0f} MB and {free / 1e6:.0f} MB are free: make room, or give another cache=", str(file)
        ) from None


def _seal(folder, backbone, photos):
    about = {"photographs": repr(photos), "backbone": repr(backbone), "sealed": _stat(folder / "maps.npy")}
    part = folder / "about.part"
    part.write_text(json.dumps(about, indent=1), encoding="utf-8")
    os.replace(part, folder / "about.json")


def _is_sealed(folder):
    """Whether maps.npy is complete and has not been touched since."""
    try:
        return json.loads((folder / "about.json").read_text(encoding="utf-8"))["sealed"] == _stat(folder / "maps.npy")
    except (OSError, ValueError, TypeError, KeyError):  # not there, or no longer what `_seal` wrote
        return False


def _stat(file):
    return [file.stat().st_size, file.stat().st_mtime_ns]


def _crc(values):
    return zlib.crc32(np.ascontiguousarray(values)) or 1  # 0 means "not there"


def _plain(name):
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)[:60]


@contextmanager
def _only_one(folder):
    """One process at a time in a cache; the others say that they wait."""
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0.1)
    except Timeout:
        print(f"another process is extracting into {folder}: waiting for it", file=sys.stderr)
        lock.acquire()
    except OSError as error:
        raise OSError(error.errno, f"the cache cannot be written ({error.strerror}): give another cache=", str(folder)) from None
    try:
        yield
    finally:
        lock.release()


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
            beyond = ~(np.abs(values) <= np.finfo(np.float16).max).all((1, 2, 3))  # so that NaN is beyond as well
            if beyond.any():
                first = photos.names[rows[beyond.argmax()]]
                raise FloatingPointError(f"{backbone.name} gave numbers beyond half precision at {first}: take another layer")
            maps[rows] = values
            maps.flush()
            done[rows] = [_crc(maps[row]) for row in rows]
            done.flush()
            bar.update(len(rows))


def _read(backbone, photos, rows):
    return torch.stack([backbone.prepare(photos[int(row)]) for row in rows])


def fast_precision(device):
    """bfloat16 arithmetic where the processor has it (a third of the time), float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16) if _computes_in_bfloat16(device) else nullcontext()


def _computes_in_bfloat16(device):
    """Not where PARTLIB_PRECISION is float32: with it, all processors give the same maps, nearly to the last digit."""
    if os.environ.get("PARTLIB_PRECISION") == "float32":
        return False
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16")) if device.type == "cpu" else device.type == "cuda"
