"""Downloads that are cut, killed, refused or wrong; archives that are damaged or mean harm."""

import hashlib
import http.server
import io
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import partlib
from partlib.data import DownloadError, butterflies, cub200, groceries_full, packages
from partlib.data import download, products, published
from partlib.data.download import Source, extract, fetch

CONTENT = np.random.default_rng(0).integers(0, 256, 400_000, dtype=np.uint8).tobytes()


def md5(data):
    return "md5:" + hashlib.md5(data).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """A server of one file, on this machine, that can be told to misbehave."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.breaks_after, self.pause, self.asked = CONTENT, True, None, 0, []
        self.url = f"http://127.0.0.1:{self.server_port}/birds.tgz"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request, address):
        pass  # a client that was killed


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, start = self.server, 0
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if self.path != "/birds.tgz":
            return self.send_error(404)
        if asked and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(server.content):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        data = server.content[start:]
        for i in range(0, len(data if server.breaks_after is None else data[: server.breaks_after]), 20_000):
            self.wfile.write(data[i : i + 20_000])
            time.sleep(server.pause)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")


def one_sentence(error):
    text = str(error.value)
    assert 30 < len(text) < 600 and "\n" not in text, text
    return text


def started(program, folder):
    environment = os.environ | {"PYTHONPATH": str(Path(partlib.__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", program], cwd=folder, env=environment, stderr=subprocess.DEVNULL)


# ---- fetch ----------------------------------------------------------------------------------------------------------


def test_a_download_arrives_once(server, tmp_path, capfd):
    to = fetch(server.url, tmp_path / "new/birds.tgz", md5(CONTENT))
    assert to == tmp_path / "new/birds.tgz" and to.read_bytes() == CONTENT
    assert fetch(server.url, to, md5(CONTENT)) == to and server.asked == [None], "the second call asks for nothing"
    assert "%|" not in capfd.readouterr().err, "no bar where TQDM_DISABLE is set"
    assert {path.name for path in to.parent.iterdir()} <= {"birds.tgz", "birds.tgz.lock"}


def test_progress_is_shown(server, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE")
    fetch(server.url, tmp_path / "birds.tgz", md5(CONTENT))
    assert "400k/400k" in capfd.readouterr().err


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on(server, tmp_path, ranges):
    to, server.breaks_after, server.ranges = tmp_path / "birds.tgz", 140_000, ranges
    with pytest.raises(DownloadError, match="could not be fetched") as caught:
        fetch(server.url, to, md5(CONTENT), title="birds")
    assert server.url in one_sentence(caught) and "kept" in str(caught.value)
    kept = tmp_path / "birds.tgz.part"
    assert not to.exists() and CONTENT.startswith(kept.read_bytes()) and kept.stat().st_size > 100_000
    have, server.breaks_after = kept.stat().st_size, None
    assert fetch(server.url, to, md5(CONTENT)).read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={have}-" and not kept.exists()


def test_a_killed_download_goes_on(server, tmp_path):
    server.pause = 0.05
    program = f"from partlib.data.download import fetch; fetch({server.url!r}, 'birds.tgz', {md5(CONTENT)!r})"
    process = started(program, tmp_path)
    part = tmp_path / "birds.tgz.part"
    deadline = time.time() + 60
    while not (part.exists() and part.stat().st_size > 50_000):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    have, server.pause = part.stat().st_size, 0
    assert 0 < have < len(CONTENT) and not (tmp_path / "birds.tgz").exists()
    assert fetch(server.url, tmp_path / "birds.tgz", md5(CONTENT)).read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={have}-"


def test_a_download_killed_at_its_very_end_goes_on(server, tmp_path):
    (tmp_path / "birds.tgz.part").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "birds.tgz", md5(CONTENT)).read_bytes() == CONTENT


def test_a_wrong_checksum_is_told_and_the_file_removed(server, tmp_path):
    to = tmp_path / "birds.tgz"
    for part in (None, b"x" * 1000, b"x" * 500_000):  # nothing there; a foreign beginning; too much already
        if part:
            to.with_name("birds.tgz.part").write_bytes(part)
        with pytest.raises(DownloadError, match="checksum is not md5:00.*removed") as caught:
            fetch(server.url, to, "md5:" + "0" * 32, title="birds")
        assert server.url in one_sentence(caught) and str(to) in str(caught.value)
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    to.with_name("birds.tgz.part").write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="checksum"):
        fetch(server.url, to, md5(CONTENT))
    assert fetch(server.url, to, md5(CONTENT)).read_bytes() == CONTENT, "the next call starts over"


def test_no_network_is_one_message(tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/birds.tgz"
        with pytest.raises(DownloadError) as caught:
            fetch(url, tmp_path / "birds.tgz", md5(CONTENT), title="the birds (400 kB)")
    text = one_sentence(caught)
    assert all(part in text for part in ("the birds (400 kB)", url, "refused", str(tmp_path / "birds.tgz")))
    assert caught.value.__suppress_context__, "one message, not a chain of them"


def test_a_missing_page_is_told(server, tmp_path):
    with pytest.raises(DownloadError, match="404"):
        fetch(server.url + "x", tmp_path / "birds.tgz", md5(CONTENT))


def test_two_downloads_at_once_do_not_spoil_each_other(server, tmp_path):
    server.pause, errors = 0.005, []

    def get():
        try:
            assert fetch(server.url, tmp_path / "birds.tgz", md5(CONTENT)).read_bytes() == CONTENT
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=get) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and server.asked == [None]


# ---- extract --------------------------------------------------------------------------------------------------------


def packed(path, members, kind):
    """An archive of (name, bytes) members; a tar may also hold TarInfo objects."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members:
                archive.writestr(name, data)
    else:
        with tarfile.open(path, f"w:{kind}") as archive:
            for name, data in members:
                info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


KINDS = ["gz", "bz2", "xz", "", "zip"]
GOOD = [("birds/a.txt", b"a"), ("birds/deep/b.bin", CONTENT), ("birds/é.txt", b"")]


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", ["birds", "birds-1.0"])
def test_an_archive_becomes_the_folder(tmp_path, kind, top):
    archive = packed(tmp_path / "archive", [(name.replace("birds", top), data) for name, data in GOOD], kind)
    to = extract(archive, tmp_path / "sets/birds")
    assert tree(to) == {"a.txt": b"a", "deep/b.bin": CONTENT, "é.txt": b""}
    (to / "a.txt").write_text("mine")
    assert extract(archive, to) == to and (to / "a.txt").read_text() == "mine", "what is there is left alone"
    assert {path.name for path in to.parent.iterdir()} <= {"birds", "birds.lock"}


def test_archives_with_more_than_one_entry_at_the_top(tmp_path):
    archive = packed(tmp_path / "one", [*GOOD, ("readme.txt", b"r")], "gz")
    assert "a.txt" in tree(extract(archive, tmp_path / "birds"))
    names = {"birds/a.txt", "birds/deep/b.bin", "birds/é.txt", "readme.txt"}
    assert set(tree(extract(archive, tmp_path / "other"))) == names


def special(kind, target):
    info = tarfile.TarInfo("birds/odd")
    info.type, info.linkname = kind, target
    return info


def zip_link():
    info = zipfile.ZipInfo("birds/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


EVIL = {
    "out.tar": ("gz", [("../evil.txt", b"x")]),
    "deep.tar": ("gz", [("birds/../../evil.txt", b"x")]),
    "absolute.tar": ("gz", [("/evil.txt", b"x")]),
    "windows.tar": ("gz", [("C:\\evil.txt", b"x")]),
    "backslash.zip": ("zip", [("..\\evil.txt", b"x")]),
    "symlink.tar": ("gz", [(special(tarfile.SYMTYPE, "/etc"), b"")]),
    "relative.tar": ("gz", [(special(tarfile.SYMTYPE, "../../.."), b"")]),
    "hardlink.tar": ("gz", [(special(tarfile.LNKTYPE, "../../evil.txt"), b"")]),
    "device.tar": ("gz", [(special(tarfile.CHRTYPE, ""), b"")]),
    "pipe.tar": ("gz", [(special(tarfile.FIFOTYPE, ""), b"")]),
    "out.zip": ("zip", [("../evil.txt", b"x")]),
    "absolute.zip": ("zip", [("/evil.txt", b"x")]),
    "symlink.zip": ("zip", [(zip_link(), b"/etc/passwd")]),
}


@pytest.mark.parametrize("name", EVIL)
def test_members_that_leave_the_folder_are_refused(tmp_path, name):
    kind, members = EVIL[name]
    archive = packed(tmp_path / name, [GOOD[0], *members], kind)
    with pytest.raises(DownloadError, match="link or a path out of its folder: nothing was unpacked") as caught:
        extract(archive, tmp_path / "sets/birds")
    one_sentence(caught)
    assert [path.name for path in tmp_path.rglob("*") if path.suffix != ".lock" and path != archive] == ["sets"]


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_absurd_expansion_is_refused(tmp_path, kind):
    archive = packed(tmp_path / "bomb", [(f"birds/{i}", bytes(30_000_000)) for i in range(5)], kind)
    assert archive.stat().st_size < 1_000_000
    with pytest.raises(DownloadError, match="more than 20 times"):
        extract(archive, tmp_path / "birds")
    assert not (tmp_path / "birds").exists() and not (tmp_path / "birds.part").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.9])
def test_a_truncated_archive_is_told(tmp_path, kind, share):
    archive = packed(tmp_path / "archive", GOOD, kind)
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    with pytest.raises(DownloadError, match="damaged or no archive.*delete it") as caught:
        extract(archive, tmp_path / "birds")
    one_sentence(caught)
    assert not (tmp_path / "birds").exists() and not (tmp_path / "birds.part").exists()


def test_a_page_instead_of_an_archive_is_told(tmp_path):
    (tmp_path / "birds.tgz").write_text("<html>Not found</html>")
    with pytest.raises(DownloadError, match="damaged or no archive"):
        extract(tmp_path / "birds.tgz", tmp_path / "birds")


def test_a_killed_extraction_leaves_nothing_half(tmp_path):
    archive = packed(tmp_path / "birds.tgz", [(f"birds/{i}.txt", b"x" * 2000) for i in range(4000)], "gz")
    program = f"from partlib.data.download import extract; extract({str(archive)!r}, 'birds')"
    process = started(program, tmp_path)
    deadline = time.time() + 60
    while not (tmp_path / "birds.part/birds/100.txt").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (tmp_path / "birds").exists() and (tmp_path / "birds.part").exists()
    assert len(tree(extract(archive, tmp_path / "birds"))) == 4000
    assert not (tmp_path / "birds.part").exists()


# ---- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small disk takes root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this system does not let root mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_told(small_disk, tmp_path, server):
    with pytest.raises(DownloadError, match="disk.*is full.*400 kB") as caught:
        fetch(server.url, small_disk / "birds.tgz", md5(CONTENT), title="birds (400 kB)")
    one_sentence(caught)
    (small_disk / "birds.tgz.part").unlink()
    archive = packed(tmp_path / "archive.tgz", GOOD, "gz")
    with pytest.raises(DownloadError, match="disk.*is full.*archive.tgz") as caught:
        extract(archive, small_disk / "birds")
    one_sentence(caught)
    assert [path.name for path in small_disk.iterdir() if path.suffix != ".lock"] == []


def test_a_full_disk_is_told_without_one(tmp_path, server, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_unpack", full)
    with pytest.raises(DownloadError, match="is full"):
        extract(packed(tmp_path / "archive", GOOD, "gz"), tmp_path / "birds")
    monkeypatch.setattr(download._Resuming, "_write", full)
    with pytest.raises(DownloadError, match="is full"):
        fetch(server.url, tmp_path / "birds.tgz", md5(CONTENT))


# ---- sets that come from somewhere ----------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project, seen from the folder of its notebooks."""
    (tmp_path / "book").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path / "book")
    monkeypatch.delenv("PARTLIB_DATA", raising=False)
    return tmp_path


def red():
    file = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(file, "PNG")
    return file.getvalue()


BIRDS = [
    ("CUB_200_2011/images.txt", b"1 001.Auk/A_1.png\n"), ("CUB_200_2011/image_class_labels.txt", b"1 1\n"),
    ("CUB_200_2011/train_test_split.txt", b"1 1\n"), ("CUB_200_2011/bounding_boxes.txt", b"1 1.0 1.0 3.0 2.0\n"),
    ("CUB_200_2011/classes.txt", b"1 001.Auk\n"), ("CUB_200_2011/parts/parts.txt", b"1 back\n"),
    ("CUB_200_2011/parts/part_locs.txt", b"1 1 2.0 3.0 1\n"), ("CUB_200_2011/images/001.Auk/A_1.png", red()),
    ("attributes.txt", b"1 has_bill_shape::curved\n"),
]  # fmt: skip


def test_a_set_is_fetched_unpacked_and_found_again(project, server, monkeypatch, tmp_path):
    server.content = packed(tmp_path / "made", BIRDS, "gz").read_bytes()
    replaced = {"url": server.url, "checksum": md5(server.content)}
    monkeypatch.setattr(published, "CUB", Source(**{**vars(published.CUB), **replaced}))
    for _ in range(2):
        photos = cub200()
        assert photos.classes == ["Auk"] and photos[0].size == (6, 4)
    assert server.asked == [None]
    assert (project / "data/downloads/CUB_200_2011/images.txt").exists()
    assert not (project / "data/downloads/attributes.txt").exists()


def test_offline_each_set_says_what_where_and_how(project, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/CUB_200_2011.tgz"
        monkeypatch.setattr(published, "CUB", Source(**{**vars(published.CUB), "url": url}))
        with pytest.raises(DownloadError, match="CUB-200-2011.*1.15 GB") as caught:
            cub200()
    assert str(project / "data/downloads/CUB_200_2011.tgz") in one_sentence(caught) and url in str(caught.value)
    by_hand = {
        butterflies: published.BUTTERFLIES, groceries_full: products.GROCERIES, packages: products.GROCERIES,
    }  # fmt: skip
    for reader, source in by_hand.items():
        with pytest.raises(DownloadError, match="by hand") as caught:
            reader()
        text = one_sentence(caught)
        parts = (source.title, source.page, source.archive, str(project / "data/downloads"))
        assert all(part in text for part in parts)


def test_an_archive_put_there_by_hand_is_unpacked(project):
    (project / "data/downloads").mkdir(parents=True)
    members = [("leedsbutterfly/images/0020001.png", red()), ("leedsbutterfly/segmentations/0020001_seg0.png", red())]
    packed(project / "data/downloads" / published.BUTTERFLIES.archive, members, "zip")
    assert butterflies().names == ["0020001.png"]
    shutil.rmtree(project / "data/downloads/leedsbutterfly")
    (project / "data/downloads" / published.BUTTERFLIES.archive).write_bytes(b"half a zip")
    with pytest.raises(DownloadError, match="damaged"):
        butterflies()


def test_partlib_data_comes_before_downloads(project, tmp_path, monkeypatch):
    extract(packed(tmp_path / "made", BIRDS, "gz"), tmp_path / "shared/CUB_200_2011")
    monkeypatch.setenv("PARTLIB_DATA", str(tmp_path / "shared"))
    assert cub200().classes == ["Auk"] and not (project / "data").exists()
    with pytest.raises(DownloadError, match="by hand"):
        butterflies()


def test_checksums_are_stated_where_a_set_is_fetched():
    for source in (published.CUB, published.BUTTERFLIES, products.GROCERIES):
        assert bool(source.url) == bool(re.fullmatch(r"(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})", source.checksum))
