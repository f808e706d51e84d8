"""Any picture file is read right, or named in one sentence."""

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import partlib
from partlib.data import BadPicture, folder, read_picture

# pytest undoes the warning filter that partlib sets when it is imported; a fresh process tests that it works.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)  # no symmetry to hide a wrong turn


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read(data):
    picture = read_picture(data)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def saved(upright, orientation):
    """The pixels a camera would save, from EXIF's own words: which visual side row 0 and column 0 lie on."""
    row_side, column_side = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    height, width = upright.shape[:2]
    sideways = row_side in ("left", "right")
    stored = np.zeros((width, height, 3) if sideways else (height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            from_side = {"top": y, "bottom": height - 1 - y, "left": x, "right": width - 1 - x}
            stored[from_side[row_side], from_side[column_side]] = upright[y, x]
    return stored


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(saved(COLOURS, orientation)), format, exif=exif, **options)
    assert np.array_equal(read(data), COLOURS)


def test_exif_orientation_of_a_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6  # a telephone held upright
    upright = np.zeros((48, 32, 3), np.uint8)
    upright[:16] = (255, 0, 0)
    got = read(encoded(Image.fromarray(saved(upright, 6)), "JPEG", exif=exif, quality=95))
    assert got.shape == upright.shape and np.abs(got[4:12] - (255, 0, 0)).max() < 30 and got[20:].max() < 30


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0", b"Exif\0\0nonsense", b"\xff" * 40])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_damaged_exif_does_not_cost_the_picture(exif, format):
    assert read(encoded(Image.fromarray(COLOURS), format, exif=exif)).shape == COLOURS.shape


def test_grey_and_two_level_pictures():
    grey = COLOURS[..., 0]
    assert np.array_equal(read(encoded(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, -1))
    assert np.array_equal(read(encoded(Image.fromarray(grey > 99), "PNG")), np.stack([(grey > 99) * 255] * 3, -1))


def test_palette_with_and_without_transparency():
    image = Image.frombytes("P", (2, 2), bytes([0, 1, 2, 3]))
    palette = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]]
    image.putpalette(sum(palette, []))
    assert np.array_equal(read(encoded(image, "PNG")), np.reshape(palette, (2, 2, 3)))
    got = read(encoded(image, "PNG", transparency=bytes([255, 0, 255, 51])))  # opaque, clear, opaque, a fifth
    expected = [[255, 0, 0], [255, 255, 255], [0, 0, 255], [206, 206, 205]]  # a fifth of the colour, four of white
    assert np.abs(got - np.reshape(expected, (2, 2, 3))).max() <= 1
    assert np.array_equal(read(encoded(image, "GIF", transparency=2))[1, 0], (255, 255, 255))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode):
    colour = COLOURS if mode == "RGBA" else COLOURS[..., :1]
    alpha = np.random.default_rng(1).integers(0, 256, (5, 7, 1), dtype=np.uint8)
    data = encoded(Image.fromarray(np.concatenate([colour, alpha], -1)), "PNG")
    share = alpha / 255
    expected = np.broadcast_to(share * colour + (1 - share) * 255, (5, 7, 3))
    assert np.abs(read(data) - expected).max() <= 1


def test_cmyk():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    assert np.array_equal(read(encoded(image, "TIFF"))[3, 3], (255, 0, 0))
    assert np.abs(read(encoded(image, "JPEG"))[3, 3] - (254, 0, 0)).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(format):
    values = np.array([[0, 128, 256, 32768], [40000, 65000, 65279, 65535]], dtype=np.uint16)
    expected = np.floor(values.astype(float) * 255 / 65535 + 0.5)
    got = read(encoded(Image.fromarray(values), format))
    assert np.array_equal(got, np.stack([expected] * 3, -1))
    assert got.max() == 255 and got[0, 3, 0] == 128, "clipping at 255 would make nearly all of it white"


@pytest.mark.parametrize("scale", [1, 1000])
def test_floating_point_tiff(scale):
    values = np.array([[0, 0.25, 0.5], [0.75, 1, -3]], dtype=np.float32) * scale
    assert np.array_equal(read(encoded(Image.fromarray(values), "TIFF"))[..., 0], [[0, 64, 128], [191, 255, 0]])
    values[0, 0], values[1, 2] = np.nan, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read(encoded(Image.fromarray(values), "TIFF"))[..., 0], [[0, 64, 128], [191, 255, 255]])


def test_of_an_animation_the_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3
        assert np.array_equal(read(data)[0, 0], (255, 0, 0))


PHOTOGRAPH = Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def bomb():
    """A PNG of 69 bytes that says it is 60000 pixels wide and high."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD = {
    **{f"cut{c}.jpg": (encoded(PHOTOGRAPH, "JPEG")[: 20 * c * c], "damaged|not a picture") for c in (1, 2, 4, 8)},
    **{f"cut{c}.png": (encoded(PHOTOGRAPH, "PNG")[: 20 * c * c], "damaged|not a picture") for c in (1, 2, 4, 8)},
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"I am not a picture.\n" * 50, "not a picture"),
    "page.png": (b"<html><body>404</body></html>", "not a picture"),
    "drawing.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not a picture"),
    "bomb.png": (bomb(), "too large"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_a_reason(name, tmp_path):
    data, reason = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadPicture, match=reason) as caught:
        read_picture(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.name == str(tmp_path / name)
    with pytest.raises(BadPicture, match="row 7"):
        read_picture(data, name="row 7")


def test_large_and_odd_pictures_are_read_without_a_warning(tmp_path):
    Image.new("1", (20000, 5000)).save(tmp_path / "wide.png")  # 100 million pixels: Pillow would warn
    (tmp_path / "odd.jpg").write_bytes(encoded(PHOTOGRAPH, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05"))
    program = "from partlib.data import folder; print([picture.size for picture in folder('.')])"
    environment = os.environ | {"PYTHONPATH": str(Path(partlib.__file__).parents[1]), "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "[(64, 64), (20000, 5000)]\n"
    assert "PIL" not in done.stderr and "Corrupt EXIF" not in done.stderr, done.stderr


def test_threads_leave_the_warning_filters_alone():
    before = list(warnings.filters)
    data = encoded(PHOTOGRAPH, "PNG")
    threads = [threading.Thread(target=lambda: [read_picture(data) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_paths_that_are_no_picture_file(tmp_path):
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    reasons = {"loop": "leads back", "nowhere": "no such file", "folder": "it is a folder", "absent": "no such file"}
    for name, reason in reasons.items():
        with pytest.raises(BadPicture, match=reason):
            read_picture(tmp_path / f"{name}.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    errors = []

    def look():
        try:
            read_picture(tmp_path / "pipe.jpg")
        except BadPicture as error:
            errors.append(str(error))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert len(errors) == 1 and "pipe" in errors[0].rsplit(":")[-1]


def as_somebody_else(look):
    """What `look()` returns to a user without special rights; root may read everything."""
    if os.geteuid() != 0:
        return look()
    inward, outward = os.pipe()
    child = os.fork()
    if not child:
        os.setgid(65534), os.setuid(65534)
        os.write(outward, look().encode())
        os._exit(0)
    os.close(outward)
    os.waitpid(child, 0)
    with open(inward) as pipe:
        return pipe.read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no user ids on this system")
def test_a_file_or_folder_without_permission_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    for name in ("a.png", "locked.png", "closed/b.png"):
        PHOTOGRAPH.save(tmp_path / name)
    (tmp_path / "locked.png").chmod(0)
    (tmp_path / "closed").chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the folders above are closed to somebody else

    def message(action):
        try:
            return str(action())
        except (OSError, BadPicture) as error:
            return f"{type(error).__name__} {error}"

    assert as_somebody_else(lambda: message(lambda: read_picture("a.png").size)) == "(64, 64)"
    got = as_somebody_else(lambda: message(lambda: read_picture("locked.png")))
    assert got == "BadPicture locked.png: you have no permission to read it"
    got = as_somebody_else(lambda: message(lambda: folder(".")))
    assert got.startswith("OSError ") and "closed" in got and "Permission denied" in got and "skip" in got
    got = as_somebody_else(lambda: message(lambda: [len(s := folder(".", on_error="skip")), *map(str, s.left_out)]))
    assert got.startswith("[1, ") and "closed" in got and "locked.png: you have no permission" in got
    (tmp_path / "closed").chmod(0o755)


def test_names_in_any_alphabet_and_length(tmp_path):
    names = ["día de campo.png", "写真.png", "صورة.png", "🦋.png", "a" * 246 + ".png", " .png", "new\nline.png", "é.png"]
    names.append(os.fsdecode(b"latin-1 \xe9.png"))
    for name in names:
        try:
            PHOTOGRAPH.save(tmp_path / name)
        except OSError:
            pytest.skip("this file system does not keep such names")
    photos = folder(tmp_path)
    assert sorted(photos.names) == sorted(names) and len(photos.fingerprint) == 64
    assert all(picture.size == (64, 64) for picture in photos)
    (tmp_path / names[-1]).write_bytes(b"")
    with pytest.raises(BadPicture) as caught:
        photos[photos.names.index(names[-1])]
    print(caught.value)  # a name that is not UTF-8 must not break the message
    assert "latin-1" in str(caught.value).encode().decode()


FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO", "TGA")
SAMPLES = [encoded(PHOTOGRAPH.resize((9, 9)), format) for format in FORMATS]
STARTS = [sample[:12] for sample in SAMPLES] + [b"", b"%!PS-Adobe", b"SIMPLE", b"8BPS\0\1"]


def check_picture_or_reason(data):
    try:
        picture = read_picture(data, name="the file")
    except BadPicture as error:
        assert str(error).startswith("the file: ") and len(str(error)) > 15
    else:
        assert picture.mode == "RGB" and picture.width > 0 and picture.height > 0


@settings(max_examples=150, deadline=None)
@given(start=st.sampled_from(STARTS), data=st.binary(max_size=300))
def test_any_bytes_give_a_picture_or_a_reason(start, data):
    check_picture_or_reason(start + data)


@settings(max_examples=300, deadline=None)
@given(
    sample=st.sampled_from(SAMPLES),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_pictures_give_a_picture_or_a_reason(sample, changes):
    data = bytearray(sample)
    for where, value in changes:
        data[where % len(data)] = value
    check_picture_or_reason(bytes(data))
