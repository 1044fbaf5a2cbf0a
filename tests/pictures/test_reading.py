"""Every mode of Pillow against formulas in NumPy, and everything that must not be opened."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from qdeploy.errors import QdeployError
from qdeploy.pictures import reading
from qdeploy.pictures.modes import in_rgb
from qdeploy.pictures.reading import read, size_of

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (7, 9, 4), np.uint8)
WORDS = RANDOM.integers(0, 2**16, (7, 9), np.uint16)
SHARES = RANDOM.random((7, 9), np.float32)


def grey(levels):
    """Levels [H, W] of 0..255 as RGB."""
    return np.repeat(np.asarray(levels, float)[..., None], 3, 2)


def on_white(colours, alpha):
    """Colours [H, W, 3] and alpha [H, W] of 0..255."""
    share = np.asarray(alpha, float)[..., None] / 255
    return share * colours + (1 - share) * 255


def of_ycbcr(pixels):
    """JFIF, version 1.02."""
    y, cb, cr = np.moveaxis(pixels.astype(float), -1, 0) - np.array([0, 128, 128]).reshape(3, 1, 1)
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1).clip(
        0, 255
    )


def of_hsv(pixels):
    """The hexagon's formula f(n) = v - v s max(0, min(k, 4 - k, 1)), k = (n + h / 60) mod 6."""
    h, s, v = np.moveaxis(pixels.astype(float), -1, 0)
    channels = []
    for n in (5, 3, 1):
        k = (n + 6 * h / 255) % 6
        channels.append(v - v * s / 255 * np.clip(np.minimum(k, 4 - k), 0, 1))
    return np.stack(channels, -1)


def palette_of(mode, *shape):
    """An image of a palette and the colours of its pixels, [H, W, channels]."""
    colours = RANDOM.integers(0, 256, shape, np.uint8)
    codes = RANDOM.integers(0, len(colours), (7, 9), np.uint8)
    image = Image.fromarray(codes).convert("L").copy()
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(colours.tobytes(), mode)
    return image, colours[codes].astype(float)


def cases():
    """(name, image, RGB as it should be, steps that rounding may take)"""
    rgb, alpha = BYTES[..., :3], BYTES[..., 3]
    bits = BYTES[..., 0] > 127
    yield "1", Image.fromarray(bits), grey(255 * bits), 0
    yield "L", Image.fromarray(BYTES[..., 0]), grey(BYTES[..., 0]), 0
    yield "RGB", Image.fromarray(rgb), rgb, 0
    yield "RGBX", Image.frombytes("RGBX", (9, 7), BYTES.tobytes()), rgb, 0
    yield "RGBA", Image.frombytes("RGBA", (9, 7), BYTES.tobytes()), on_white(rgb, alpha), 1
    pair = BYTES[..., :2]
    whitened = on_white(grey(pair[..., 0]), pair[..., 1])
    yield "LA", Image.frombytes("LA", (9, 7), pair.tobytes()), whitened, 1
    strong = np.maximum(alpha, 64)
    times = np.round(rgb * (strong[..., None] / 255)).astype(np.uint8)  # premultiplied
    premultiplied = np.concatenate([times, strong[..., None]], -1)
    image = Image.frombytes("RGBa", (9, 7), premultiplied.tobytes())
    yield "RGBa", image, times + 255.0 - strong[..., None], 2
    cmyk = 255 - BYTES.astype(float)
    yield (
        "CMYK",
        Image.frombytes("CMYK", (9, 7), BYTES.tobytes()),
        cmyk[..., :3] * cmyk[..., 3:] / 255,
        1,
    )
    yield "YCbCr", Image.frombytes("YCbCr", (9, 7), rgb.tobytes()), of_ycbcr(rgb), 1.1
    yield "HSV", Image.frombytes("HSV", (9, 7), rgb.tobytes()), of_hsv(rgb), 2
    yield "I;16", Image.fromarray(WORDS), grey(WORDS / 65535 * 255), 0.5
    yield (
        "I;16B",
        Image.frombytes("I;16B", (9, 7), WORDS.astype(">u2").tobytes()),
        grey(WORDS / 257),
        0.5,
    )
    yield (
        "I;16L",
        Image.frombytes("I;16L", (9, 7), WORDS.astype("<u2").tobytes()),
        grey(WORDS / 257),
        0.5,
    )
    yield "F", Image.fromarray(SHARES), grey(SHARES * 255), 0.5
    image, colours = palette_of("RGB", 50, 3)
    yield "P", image, colours, 0
    image, colours = palette_of("RGBA", 50, 4)
    yield "P, alpha in the palette", image, on_white(colours[..., :3], colours[..., 3]), 1
    image, colours = palette_of("RGB", 50, 3)
    image.info["transparency"] = bytes(range(0, 250, 5))
    opacity = np.array(list(range(0, 250, 5)))[np.asarray(image)]
    yield "P, transparency beside it", image, on_white(colours, opacity), 1
    image = Image.fromarray(rgb)
    image.info["transparency"] = tuple(int(value) for value in rgb[2, 3])
    expected = rgb.astype(float)
    expected[(rgb == rgb[2, 3]).all(-1)] = 255
    yield "RGB, one colour transparent", image, expected, 0


@pytest.mark.parametrize(
    ("image", "expected", "steps"), [pytest.param(*rest, id=name) for name, *rest in cases()]
)
def test_a_mode_is_what_its_formula_gives(image, expected, steps):
    found = in_rgb(image)
    assert found.mode == "RGB"
    np.testing.assert_allclose(np.asarray(found, float), expected, rtol=0, atol=steps)


@pytest.mark.parametrize(
    ("suffix", "image", "expected", "steps"),
    [
        pytest.param(suffix, image, expected, steps, id=f"{name}.{suffix}")
        for name, image, expected, steps in cases()
        for suffix, modes in [
            ("png", {"1", "L", "LA", "RGB", "RGBA", "I;16", "P, transparency beside it", "P"}),
            ("tif", {"1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "F", "P"}),
            ("gif", {"P", "L"}),
            ("pgm", {"I;16", "L"}),
        ]
        if name in modes
    ],
)
def test_a_file_is_read_as_its_image(tmp_path, suffix, image, expected, steps):
    path = tmp_path / f"image.{suffix}"
    image.save(path)
    assert size_of(path) == (9, 7)
    np.testing.assert_allclose(np.asarray(read(path), float), expected, rtol=0, atol=steps)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_16_bit_colour_png_that_no_library_of_ours_wrote(tmp_path):
    colours = RANDOM.integers(0, 2**16, (7, 9, 3), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    header = struct.pack(">IIBBBBB", 9, 7, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    content += png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(content)
    found = np.asarray(read(tmp_path / "deep.png"), float)
    np.testing.assert_allclose(found, colours / 257, rtol=0, atol=1)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "F", "RGBA"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_the_exif_table(tmp_path, orientation, mode):
    """Exif 2.32, 4.6.4: where the first row and column of the stored picture lie."""
    stored = {"F": SHARES, "I;16": WORDS}.get(
        mode, BYTES[..., : {"RGB": 3, "RGBA": 4}.get(mode, 1)].squeeze()
    )
    image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / ("image.tif" if mode == "F" else "image.png")
    image.save(path, exif=exif)
    upright = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: a[::-1, ::-1], 4: np.flipud,
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: np.rot90,
    }[orientation]  # fmt: skip
    expected = upright(np.asarray(in_rgb(image)))
    np.testing.assert_array_equal(np.asarray(read(path)), expected)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "gif", "tif"])
def test_any_truncation_is_an_error_or_an_image(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(BYTES[..., :3]).save(path)
    content = path.read_bytes()
    errors = 0
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        try:
            assert read(path).size == (9, 7)
        except QdeployError:
            errors += 1
    assert errors > len(content) // 7 // 2


@pytest.mark.parametrize("values", [[0, 255], [-0.1, 0.5], [0, 1.01], [np.nan, 0.5], [np.inf, 0]])
def test_floats_without_a_known_white_are_refused(tmp_path, values):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(
        QdeployError, match=r"x\.tif cannot be read: its pixels are floats of .* to "
    ):
        read(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("LAB", "its mode is LAB, which has no conversion"),
        ("I", "32-bit integers, and nothing says"),
    ],
)
@pytest.mark.parametrize("look", [read, size_of])
def test_modes_without_a_known_white_are_refused_by_their_header(tmp_path, mode, message, look):
    Image.new(mode, (4, 4)).save(tmp_path / "x.tif")
    with pytest.raises(QdeployError, match=rf"x\.tif cannot be read: .*{message}.*PNG"):
        look(tmp_path / "x.tif")


class TestWhatIsNotOpened:
    @pytest.mark.parametrize("look", [read, size_of])
    def test_a_pipe_whose_other_end_nobody_holds(self, tmp_path, look):
        os.mkfifo(tmp_path / "x.png")
        with pytest.raises(QdeployError, match=r"x\.png cannot be read: it is no file\."):
            look(tmp_path / "x.png")

    def test_a_device(self, tmp_path):
        (tmp_path / "x.png").symlink_to("/dev/zero")
        with pytest.raises(QdeployError, match=r"it is no file\."):
            read(tmp_path / "x.png")

    def test_a_link_that_leads_nowhere(self, tmp_path):
        (tmp_path / "x.png").symlink_to(tmp_path / "gone.png")
        with pytest.raises(QdeployError, match=r"it does not exist\."):
            read(tmp_path / "x.png")

    def test_postscript_which_is_a_program(self, tmp_path):
        (tmp_path / "x.png").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\nshowpage\n"
        )
        with pytest.raises(QdeployError, match="it is no image of JPEG, PNG"):
            read(tmp_path / "x.png")

    def test_text(self, tmp_path):
        (tmp_path / "x.jpg").write_text("<html>Not found</html>")
        with pytest.raises(QdeployError, match=r"x\.jpg cannot be read: it is no image of JPEG"):
            size_of(tmp_path / "x.jpg")

    @pytest.mark.parametrize("size", [(10_000, 10_000), (100_000, 100_000)])
    def test_a_small_file_of_very_many_pixels(self, tmp_path, size):
        header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")
        (tmp_path / "x.png").write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(QdeployError, match=r"x\.png cannot be read: .*pixels"):
                size_of(tmp_path / "x.png")

    def test_one_pixel_more_than_are_allowed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(reading, "MOST_PIXELS", 63)
        Image.fromarray(BYTES).save(tmp_path / "x.png")
        assert read(tmp_path / "x.png").size == (9, 7)
        monkeypatch.setattr(reading, "MOST_PIXELS", 62)
        with pytest.raises(QdeployError, match="it has 9 x 7 pixels; allowed are 62 in all"):
            read(tmp_path / "x.png")
