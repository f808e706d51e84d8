"""Extraction: right maps, computed once, whatever happens on the way."""

import errno
import io
import os
import random
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from common import one_sentence
from filelock import FileLock
from PIL import Image

from partlib import Backbone, Maps, extract, features
from partlib.data import BadPicture, folder, groceries

N = 11


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def backbone():
    return Backbone(size=64, layer=16)


def draw(path, n=N):
    """`n` pictures of smooth colours, each of another size."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((40 + i, 30 + 2 * i), Image.BICUBIC).save(path / f"{i:03}.png")
    return folder(path)


@pytest.fixture
def photos(tmp_path):
    return draw(tmp_path / "pictures")


@pytest.fixture
def run(backbone, photos, tmp_path):
    """Extracts; gives the maps, and how many pictures went through the network for it."""

    def run(backbone=backbone, photos=photos, cache=tmp_path / "cache", **options):
        seen = []
        hook = backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
        try:
            maps = extract(backbone, photos, cache=cache, **options)
        finally:
            hook.remove()
        return maps, max(0, sum(seen) - 1)  # a blank picture tells the shape when there is something to do

    return run


def directly(backbone, photos):
    with torch.inference_mode():
        return backbone(torch.stack([backbone.prepare(photo) for photo in photos]))


def only_folder(cache):
    (found,) = Path(cache).iterdir()
    return found


# ---- Values ---------------------------------------------------------------------------------------------------------


def test_codes_of_real_photographs_are_those_of_float32(tmp_path):
    photos, whole = groceries()[::70], Backbone(size=128)
    maps = extract(whole, photos, cache=tmp_path)
    expected = directly(whole, photos)
    codes, exact = maps.tensor().mean((2, 3)), expected.mean((2, 3))
    assert maps.shape == (20, 1280, 4, 4) and maps.channels == 1280 and maps.tensor().dtype == torch.float32
    assert torch.cosine_similarity(codes, exact).min() > 0.999
    assert torch.cosine_similarity(maps.tensor().flatten(1), expected.flatten(1)).min() > 0.99


def test_maps_where_there_is_no_bfloat16(run, backbone, photos, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    maps, seen = run(batch=3)
    assert seen == N and torch.allclose(maps.tensor(), directly(backbone, photos), rtol=1e-3, atol=1e-3)


def test_float32_where_it_is_asked_for_in_a_cache_of_its_own(run, backbone, photos, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)  # any processor can, if slowly
    monkeypatch.delenv("PARTLIB_PRECISION", raising=False)
    fast, seen = run(batch=3)
    monkeypatch.setenv("PARTLIB_PRECISION", "float32")
    exact, again = run(batch=3)
    assert (seen, again) == (N, N) and not torch.equal(fast.tensor(), exact.tensor())
    assert torch.allclose(exact.tensor(), directly(backbone, photos), rtol=1e-3, atol=1e-3)


def test_a_second_run_computes_and_reads_nothing(run, photos):
    first, seen = run(batch=4)
    again, none = run(photos=replace(photos, read=None))
    assert (seen, none) == (N, 0) and torch.equal(first.tensor(), again.tensor())


def test_indexing(run, photos):
    maps, _ = run()
    whole = maps.tensor()
    assert repr(maps) == "Maps(11, 112, 4, 4)" and len(maps) == N == len(list(maps))
    for i in (0, 10, -1, np.int64(3), torch.tensor(5), np.array(2)):
        assert torch.equal(maps[i], whole[int(i)]) and maps[i].shape == (112, 4, 4)
    mask = np.arange(N) % 3 == 1
    for index in (slice(2, 9, 3), slice(None, None, -1), [4, 4, 0], np.array([7, -2]), mask, list(mask), torch.tensor([1, 0])):
        part, rows = maps[index], np.arange(N)[index].copy()
        assert isinstance(part, Maps) and part.shape == (len(rows), 112, 4, 4) and torch.equal(part.tensor(), whole[rows])
    nested = maps[3:][[5, 1, 0]][1:]
    assert torch.equal(nested.tensor(), whole[[4, 3]]) and torch.equal(nested[1], whole[3])
    batches = list(nested.batches(1)) + list(maps.batches(4))
    assert [len(b) for b in batches] == [1, 1, 4, 4, 3] and torch.equal(torch.cat(batches[2:]), whole)
    assert list(maps[[]].batches()) == [] and maps[[]].tensor().shape == (0, 112, 4, 4)
    for wrong in (N, -N - 1, "train", 1.0, [0.5], [True] * 3, [0, 99], (1, 2), None, True):
        with pytest.raises(IndexError) as caught:
            maps[wrong]
        one_sentence(caught, "11 maps", "photos.train")


# ---- One cache for one thing ----------------------------------------------------------------------------------------


def test_anything_else_has_a_cache_of_its_own(run, photos, tmp_path):
    maps, _ = run()
    for other in (Backbone(size=96, layer=16), Backbone(size=64, layer=8), Backbone(size=64, layer=16, pretrained=False)):
        assert run(backbone=other)[1] == N
    assert run(photos=photos[::-1])[1] == N and run(photos=photos[:4])[1] == 4
    Image.new("RGB", (30, 30), "red").save(photos_file := tmp_path / "pictures" / "003.png")
    os.utime(photos_file, (1, 1))
    changed, seen = run(photos=folder(tmp_path / "pictures"))
    same = (changed.tensor() == maps.tensor()).flatten(1).all(1)
    assert seen == N and not same[3] and same.sum() == N - 1
    assert run()[1] == 0 and len(list((tmp_path / "cache").iterdir())) == 7


@pytest.mark.parametrize("name", ["Äpfel и груши 🍐", "a/b\\c:d*e?", "x" * 300, "", "\udcff", ".."])
def test_any_name_of_a_set(run, photos, tmp_path, name):
    first, seen = run(photos=replace(photos, name=name))
    assert seen == N and run(photos=replace(photos, name=name))[1] == 0
    assert len(only_folder(tmp_path / "cache").name) < 120


# ---- Interruptions --------------------------------------------------------------------------------------------------

CHILD = """
import sys, time, zlib
from dataclasses import replace
from pathlib import Path
import torch
from partlib import Backbone, extract
from partlib.data import folder

home, start, stop_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
photos, backbone, seen = folder(home / "pictures"), Backbone(size=64, layer=16), []
backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
def slowly(row):
    time.sleep(600 if row >= stop_at else 0.02)
    return photos.read(row)
while not start.exists():
    time.sleep(0.01)
maps = extract(backbone, replace(photos, read=slowly), cache=home / "cache", batch=2)
print(sum(seen) - 1, zlib.crc32(maps.tensor().numpy()))
"""


def test_killed_at_any_moment_while_another_process_waits(run, tmp_path):
    photos, start = draw(tmp_path / "pictures", 40), tmp_path / "start"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, tmp_path, *more], stdout=-1, stderr=-1, text=True, env=env)
        for more in [(tmp_path, "30"), (start, "99")]
    ]
    try:
        while children[0].poll() is None and not any(np.load(f).any() for f in tmp_path.glob("cache/*/done.npy")):
            time.sleep(0.01)
        start.touch()
        assert "another process is extracting" in (message := children[1].stderr.readline()), message
        time.sleep(random.uniform(0, 0.4))
        children[0].kill()
        out, err = children[1].communicate(timeout=300)
    finally:
        for process in children:
            process.kill()
    computed, digest = map(int, out.split())
    assert children[0].wait() == -9 and 10 <= computed < 40, err
    whole, _ = run(photos=photos, batch=2, cache=tmp_path / "another")
    maps, seen = run(photos=photos)
    assert seen == 0 and torch.equal(maps.tensor(), whole.tensor()) and zlib.crc32(whole.tensor().numpy()) == digest


def test_two_at_once(run, backbone, photos, tmp_path, capsys):
    seen, results = [], []
    hook = backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))

    def slowly(row):
        time.sleep(0.2)
        return photos.read(row)

    def work():
        results.append(extract(backbone, replace(photos, read=slowly), cache=tmp_path / "cache"))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    assert sum(seen) == 1 + N and torch.equal(results[0].tensor(), results[1].tensor())
    assert capsys.readouterr().err.count("waiting for it") == 1


@pytest.mark.parametrize("where, call, computed", [
    ("_allocate", 1, N), ("_allocate", 2, N), ("_read", 3, 3), ("_crc", 1, N), ("_crc", 6, N - 4), ("_seal", 1, 0),
])  # fmt: skip
def test_stopped_between_two_steps(run, monkeypatch, tmp_path, where, call, computed):
    whole, _ = run(cache=tmp_path / "another", batch=4)
    original, calls = getattr(features, where), []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(features, where, stop)
    with pytest.raises(KeyboardInterrupt):
        run(batch=4)
    monkeypatch.undo()
    maps, seen = run(batch=4)
    assert seen == computed and torch.equal(maps.tensor(), whole.tensor()) and run()[1] == 0


def test_a_complete_cache_is_read_while_another_process_holds_it(run, tmp_path):
    run()
    with FileLock(only_folder(tmp_path / "cache") / "lock"):
        assert run()[1] == 0


# ---- Damage ---------------------------------------------------------------------------------------------------------


def flip(file, where):
    data = bytearray(file.read_bytes())
    data[where] ^= 4
    file.write_bytes(data)


def save(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


MAP = 112 * 4 * 4 * 2  # bytes
DAMAGE = {  # what is done to the cache → how many maps are computed anew
    "a flipped bit": (lambda f: flip(f / "maps.npy", 128 + 5 * MAP + 77), 1),
    "a flipped bit in the last map": (lambda f: flip(f / "maps.npy", -1), 1),
    "a flipped bit in the header": (lambda f: flip(f / "maps.npy", 30), N),
    "maps cut short": (lambda f: os.truncate(f / "maps.npy", 128 + 3 * MAP), N),
    "maps with more behind": (lambda f: (f / "maps.npy").write_bytes((f / "maps.npy").read_bytes() + b"more"), N),
    "maps of another shape": (lambda f: (f / "maps.npy").write_bytes(save(np.ones((N, 112, 8, 2), np.float16))), N),
    "maps of another type": (lambda f: (f / "maps.npy").write_bytes(save(np.ones((N, 112, 4, 4), np.int16))), N),
    "something else for maps": (lambda f: (f / "maps.npy").write_text("maps"), N),
    "no bytes in maps": (lambda f: (f / "maps.npy").write_bytes(b""), N),
    "no maps": (lambda f: (f / "maps.npy").unlink(), N),
    "maps of zeros": (lambda f: (f / "maps.npy").write_bytes(save(np.zeros((N, 112, 4, 4), np.float16))), N),
    "notes cut off, maps touched": (lambda f: (os.utime(f / "maps.npy"), (f / "done.npy").write_bytes(b"")), N),
    "notes flipped, maps touched": (lambda f: (os.utime(f / "maps.npy"), flip(f / "done.npy", 128 + 4 * 7)), 1),
    "no notes, no seal": (lambda f: ((f / "done.npy").unlink(), (f / "about.json").unlink()), N),
    "maps touched only": (lambda f: os.utime(f / "maps.npy"), 0),
    "no seal": (lambda f: (f / "about.json").unlink(), 0),
    **{f"a seal of {text!r}": (lambda f, text=text: (f / "about.json").write_text(text), 0)
       for text in ("", "{", "[]", "{}", "null", "7", '{"sealed": null}', "\x00\xff")},
    "leftovers": (lambda f: [(f / f"{x}.part").write_text("x") for x in ("maps", "done", "about")], 0),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_and_mended(run, tmp_path, monkeypatch, damage):
    whole = run()[0].tensor()
    do, computed = DAMAGE[damage]
    time.sleep(0.02)  # file times come in steps of some milliseconds
    do(only_folder(tmp_path / "cache"))
    maps, seen = run()
    assert seen == computed and torch.equal(maps.tensor(), whole)
    monkeypatch.setattr(features, "_crc", None)  # sealed again: nothing is computed, nothing even checked
    assert run()[1] == 0


# ---- Disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A disk of 160 kB of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", path], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mount.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_full_disk(run, disk, tmp_path):
    (disk / "other").write_bytes(bytes(130_000))
    with pytest.raises(OSError) as caught:
        run(cache=disk)
    assert caught.value.errno == errno.ENOSPC and not list(disk.rglob("*.part"))
    one_sentence(caught, "0 MB are free", "make room", "cache=")
    (disk / "other").unlink()
    maps, seen = run(cache=disk)
    assert seen == N and torch.equal(maps.tensor(), run(cache=tmp_path / "another")[0].tensor())


def test_a_disk_that_fills_up_meanwhile(run, disk, photos):
    def read(row):
        with pytest.raises(OSError), open(disk / "other", "ab", buffering=0) as other:
            while True:
                other.write(bytes(4096))
        return photos.read(row)

    with pytest.raises(OSError, match="No space left"):  # room for the maps was taken before, only the seal has none
        run(photos=replace(photos, read=read), cache=disk)
    (disk / "other").unlink()
    assert run(cache=disk)[1] == 0


def test_a_folder_that_cannot_be_written(run, backbone, disk, tmp_path):
    run(cache=disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert run(cache=disk)[1] == 0  # complete: to be read by everybody
    for cache in (disk, tmp_path / "pictures" / "000.png"):
        with pytest.raises(OSError) as caught:
            run(backbone=Backbone(size=64, layer=8), cache=cache)
        one_sentence(caught, "cannot be written", "another cache=", str(cache))


# ---- Photographs and backbones that will not do ---------------------------------------------------------------------


def test_a_bad_picture_is_named_and_can_be_left_out(run, tmp_path):
    draw(tmp_path / "pictures", 30)
    (tmp_path / "pictures" / "017.png").write_bytes(b"no picture")
    photos = folder(tmp_path / "pictures")
    with pytest.raises(BadPicture, match="017.png"):
        run(photos=photos, batch=2)
    readable = photos.readable()
    maps, seen = run(photos=readable)
    assert seen == 29 == len(maps) and "017.png" in str(readable.left_out[0])


class Huge(torch.nn.Module):
    """Maps without bounds where the picture is white."""

    def __init__(self, network, factor):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, images):
        white = images.amin((1, 2, 3)) > 0.9
        return self.network(images) * torch.where(white, self.factor, 1.0).view(-1, 1, 1, 1)


@pytest.mark.parametrize("factor", [1e6, float("nan"), float("inf")])
def test_numbers_beyond_half_precision(run, photos, tmp_path, factor):
    Image.new("RGB", (9, 9), "white").save(tmp_path / "pictures" / "005.png")
    huge = Backbone(size=64, layer=16)
    huge.network = Huge(huge.network, factor)
    with pytest.raises(FloatingPointError) as caught:
        run(backbone=huge, photos=folder(tmp_path / "pictures"))
    one_sentence(caught, "efficientnet_lite0", "half precision", "005.png", "another layer")


def test_mistakes(run, backbone, photos):
    for wrong in [dict(backbone=photos, photos=backbone), dict(photos=[1, 2]), dict(backbone="resnet18")]:
        with pytest.raises(TypeError) as caught:
            extract(**{"backbone": backbone, "photos": photos, **wrong})
        one_sentence(caught, "Backbone", "Photos", "in this order")
    with pytest.raises(ValueError) as caught:
        run(photos=photos[[]])
    one_sentence(caught, "pictures", "no photographs")
    trainable = Backbone(size=64, layer=16, trainable=True)
    with pytest.raises(ValueError) as caught:
        run(backbone=trainable)
    one_sentence(caught, "training mode", "eval()")
    assert run(backbone=trainable.eval())[1] == N


# ---- Cost -----------------------------------------------------------------------------------------------------------


def test_memory(tmp_path):
    def private():
        return int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))) * 1024

    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc to read the memory from")
    photos, early = draw(tmp_path / "pictures", 8)[np.arange(120) % 8], Backbone(size=256, layer=2)

    def growth(work):
        before, peak, over = private(), [0], threading.Event()

        def watch():
            while not over.wait(0.002):
                peak[0] = max(peak[0], private() - before)

        watcher = threading.Thread(target=watch)
        watcher.start()
        result = work()
        over.set()
        watcher.join()
        return result, max(peak[0], private() - before)

    maps, extracting = growth(lambda: extract(early, photos, cache=tmp_path / "cache", batch=4))
    whole, reading = growth(maps.tensor)
    size = maps.values.nbytes
    # Memory that earlier tests gave back may serve again without showing, so that there is no lower bound.
    assert size > 60e6 and extracting < size / 2 and reading < 2.3 * size, (size, extracting, reading)
    assert whole.shape == maps.shape


def test_progress(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    run()
    assert capsys.readouterr() == ("", "")
    monkeypatch.delenv("TQDM_DISABLE")
    run(cache=tmp_path / "another")
    shown = capsys.readouterr().err
    assert "pictures → efficientnet_lite0" in shown and "11/11" in shown and "image/s" in shown
