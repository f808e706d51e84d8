"""One picture file, whatever it holds, as an upright RGB image: or one sentence that says why not."""

import errno
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class BadPicture(ValueError):
    """A file that cannot be read as a picture; the message names the file and the reason."""

    def __init__(self, name, reason):
        super().__init__(name, reason)
        self.name, self.reason = str(name), reason

    def __str__(self):
        return f"{self.name}: {self.reason}"


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
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise BadPicture(name, _REASONS.get(error.errno, error.strerror or str(error))) from None
    if not data:
        raise BadPicture(name, "the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels on, which a telephone's camera reaches, and refuses from 179 million.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise BadPicture(name, "not a picture in any format that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise BadPicture(name, f"too large to be a photograph: {error}") from None
    except Exception as error:  # decoders raise many kinds (OSError, SyntaxError, ValueError, struct.error …)
        raise BadPicture(name, f"damaged or truncated ({error})") from None


_REASONS = {
    errno.ENOENT: "there is no such file",
    errno.EACCES: "you have no permission to read it",
    errno.EPERM: "you have no permission to read it",
    errno.ELOOP: "it is a link that leads back to itself",
    errno.EISDIR: "it is a folder, not a picture",
}


def _rgb(image):
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits: Pillow's own conversion would clip them at 255
        values = np.asarray(image, dtype=np.float64)
        top = 65535 if image.mode.startswith("I") else max(values.max(initial=0), 1)
        return Image.fromarray(np.uint8(np.clip(values / top, 0, 1) * 255 + 0.5)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
