"""One picture file, whatever it holds, as an upright RGB image: or one sentence that says why not."""

import errno
import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# Every picture is read or named in an error, so Pillow's warnings (of large pictures, of odd metadata) add nothing.
# Said once for all: `warnings.catch_warnings` around each picture would not be safe where several threads read.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Formats that Pillow recognizes but cannot decode without other programs.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class BadPicture(ValueError):
    """A file that cannot be read as a picture; the message names the file and the reason."""

    def __init__(self, name, reason):
        super().__init__(name, reason)
        self.name, self.reason = str(name), reason

    def __str__(self):
        name = self.name.encode("utf-8", "backslashreplace").decode()  # a name that is not UTF-8 could not be printed
        return f"{name}: {self.reason}"


def suffixes() -> set[str]:
    """The endings, in lower case and with their dot, of the picture formats that can be decoded here."""
    formats = Image.registered_extensions().items()
    return {suffix for suffix, name in formats if name in Image.OPEN and name not in _NOT_DECODED}


def read_picture(source, name=None):
    """Read a picture as an upright 8-bit RGB `PIL.Image`.

    EXIF rotation is applied, transparency is laid on white, 16-bit values are scaled to 8, grey,
    palette and CMYK pictures are converted, and of an animation the first frame is taken.

    Args:
        source: a path, or the file's bytes.
        name: what to call it in an error; the path by default.

    Raises:
        BadPicture: whatever goes wrong, with the file and the reason.
    """
    name = name or (source if isinstance(source, (str, Path)) else "a picture")
    try:
        data = source if isinstance(source, bytes) else _read_file(Path(source))
    except OSError as error:
        raise BadPicture(name, _REASONS.get(error.errno, error.strerror or str(error))) from None
    if not data:
        raise BadPicture(name, "the file is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data))
        if image.format in _NOT_DECODED:
            raise UnidentifiedImageError
        image.load()
        return _rgb(_upright(image))
    except UnidentifiedImageError:
        raise BadPicture(name, "not a picture in any format that Pillow decodes") from None
    except Image.DecompressionBombError as error:
        raise BadPicture(name, f"too large to be a photograph: {error}") from None
    except Exception as error:  # decoders raise many kinds (OSError, SyntaxError, ValueError, struct.error …)
        raise BadPicture(name, f"damaged, truncated or of an unusual kind ({error})") from None


def _read_file(path):
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for ever
        raise OSError(errno.ENOTSUP, "it is a pipe or a device, not a file")
    return path.read_bytes()


_REASONS = {
    errno.ENOENT: "there is no such file",
    errno.EACCES: "you have no permission to read it",
    errno.EPERM: "you have no permission to read it",
    errno.ELOOP: "it is a link that leads back to itself",
    errno.EISDIR: "it is a folder, not a picture",
}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image):
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged EXIF (SyntaxError, struct.error …) around a sound picture: it stays as it lies
        return image
    return image if turn is None else image.transpose(turn)


def _rgb(image):
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits: Pillow's own conversion would clip them at 255
        values = np.asarray(image, dtype=np.float64)
        top = 65535 if image.mode.startswith("I") else values.max(initial=1, where=np.isfinite(values))
        grey = np.nan_to_num(np.clip(values / top, 0, 1)) * 255 + 0.5
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
