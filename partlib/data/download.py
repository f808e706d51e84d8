"""Published sets: found where they lie, or fetched once, checked and unpacked; an interrupted download goes on."""

import errno
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import pooch
import requests
from filelock import FileLock

from .._progress import progress


class DownloadError(RuntimeError):
    """What could not be fetched or unpacked, why, and what to do."""


@dataclass(frozen=True)
class Source:
    """Where a published set comes from.

    Args:
        title: what it is, and how large, in words.
        page: the page that tells about it.
        archive: the archive's file name.
        folders: names its unpacked folder goes by, the official one first.
        proof: a path in that folder by which it is known.
        url, checksum: address and `algorithm:hexdigest` of the archive; empty where no checksum is published, so
            that the reader has to fetch it by hand.
    """

    title: str
    page: str
    archive: str
    folders: tuple[str, ...]
    proof: str
    url: str = ""
    checksum: str = ""

    def find(self, root=None) -> Path:
        """The set's folder: `root`, or in $PARTLIB_DATA, or in the project's data/downloads, fetched if need be."""
        if root is not None:
            return self._checked(Path(root).expanduser())
        downloads = _project() / "data/downloads"
        for home in filter(None, (os.environ.get("PARTLIB_DATA"), downloads)):
            for name in self.folders:
                if (Path(home) / name).is_dir():
                    return self._checked(Path(home) / name)
        archive = downloads / self.archive
        if self.url:
            fetch(self.url, archive, self.checksum, self.title)
        elif not archive.exists():
            raise DownloadError(
                f"{self.title} has to be fetched by hand, since no checksum of it is published: get {self.archive} "
                f"from {self.page} and put it, packed or unpacked, into {downloads}"
            )
        return self._checked(extract(archive, downloads / self.folders[0]))

    def _checked(self, folder):
        if not (folder / self.proof).exists():
            raise FileNotFoundError(
                f"{folder} is not the folder of {self.title}: it has no {self.proof}; give the folder that has, "
                f"officially called {self.folders[0]}"
            )
        return folder


def fetch(url, to, checksum, title="") -> Path:
    """Download `url` to the file `to`, unless it is there already with the right checksum.

    What has arrived is kept in `to`.part: after an interruption of any kind the next call goes on from there, or from
    the start where the server cannot do that. The file gets its own name only when its checksum is right.

    Args:
        checksum: `algorithm:hexdigest`, as in "md5:97ec…".
        title: what to call it in a message.

    Raises:
        DownloadError: no network, a wrong checksum, a full disk; says what to do.
    """
    to = Path(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    title, by_hand = title or to.name, f"or get it by other means and put it at {to}"
    with FileLock(f"{to}.lock"):
        try:
            pooch.retrieve(url, checksum, fname=to.name, path=to.parent, downloader=_Resuming(_beside(to)))
        except requests.RequestException as error:
            raise DownloadError(
                f"{title} could not be fetched from {url} ({_root_cause(error)}): try again when the network is back, "
                f"what has arrived is kept, {by_hand}"
            ) from None
        except ValueError:  # pooch has removed the file
            raise DownloadError(
                f"what {url} sent is not {title}: its checksum is not {checksum}, so it was removed; "
                f"try again, {by_hand}"
            ) from None
        except OSError as error:
            raise _full_disk(error, to, title) from None
    return to


class _Resuming:
    """A downloader for pooch that asks only for what is not yet in `part`."""

    def __init__(self, part):
        self.part = part

    def __call__(self, url, output_file, pooch):
        have = self.part.stat().st_size if self.part.exists() else 0
        # "identity": a server must not compress on the way what is numbered and checked byte by byte
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=30) as reply:
            if not (have and reply.status_code == requests.codes.range_not_satisfiable):  # else all of it is here
                reply.raise_for_status()
                self._write(reply, have if reply.status_code == requests.codes.partial_content else 0)
        os.replace(self.part, output_file)

    def _write(self, reply, have):
        total = have + int(reply.headers.get("Content-Length", 0))
        bar = progress(total=total or None, initial=have, unit="B", unit_scale=True, desc=self.part.stem)
        with open(self.part, "ab" if have else "wb") as file, bar:
            for chunk in reply.iter_content(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))


def extract(archive, to) -> Path:
    """Unpack a tar or zip archive as the folder `to`, unless that is there already; all of it appears, or nothing.

    If the archive holds a folder of that name, or one single folder, that becomes `to`.

    Raises:
        DownloadError: the archive is damaged, or the disk full; or a member is a link, would land outside the folder,
            or unpacks to an absurd size, none of which a set of photographs needs.
    """
    archive, to = Path(archive), Path(to)
    half = _beside(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{to}.lock"):
        if to.exists():
            return to
        shutil.rmtree(half, ignore_errors=True)  # left by a process that was killed
        try:
            half.mkdir()
            _unpack(archive, half)
            os.replace(_inner(half, to.name), to)
        except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
            raise DownloadError(f"{archive} is damaged or no archive ({error}): delete it and fetch it again") from None
        except OSError as error:
            raise _full_disk(error, to, f"what {archive.name} unpacks to") from None
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return to


def _unpack(archive, to):
    allowance = 100e6 + 20 * archive.stat().st_size  # photographs hardly shrink when packed
    for name, plain, size, unpack in progress(_members(archive), desc=f"unpacking {archive.name}", unit="file"):
        path = PureWindowsPath(name)  # takes both / and \ as separators, and knows drives
        allowance -= size
        if path.anchor or ".." in path.parts or not plain:
            raise DownloadError(f"{archive} holds {name!r}, a link or a path out of its folder: nothing was unpacked")
        if allowance < 0:
            raise DownloadError(f"{archive} would unpack to more than 20 times its size: nothing was unpacked")
        unpack(to)


def _members(archive):
    """(name, whether a plain file or folder, size, how to unpack it) of each member."""
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            for member in tar:
                plain = member.isfile() or member.isdir()
                yield member.name, plain, member.size, lambda to: tar.extract(member, to, filter="data")
    else:
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)
                plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
                yield member.filename, plain, member.file_size, lambda to: packed.extract(member, to)


def _inner(half, name):
    entries = list(half.iterdir())
    if (half / name).is_dir():
        return half / name
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else half


def _beside(path):
    return path.with_name(path.name + ".part")


def _project():
    """The project's top folder, from the working folder upwards; the working folder itself outside any project."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").exists()), here)


def _full_disk(error, to, what):
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return DownloadError(f"the disk that holds {to.parent} is full: make room for {what}, then call again")


def _root_cause(error):
    while error.__context__ is not None:
        error = error.__context__
    return str(error) or type(error).__name__
