"""Reading pictures: every form that must work gives the right pixels, every other one its own code."""

import io
import struct
import sys
import types
import zlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from skimage import data

from vivant.errors import InputError, MissingPackage, VivantWarning
from vivant.media.still import declared_size, fit, natural_size, open_still, read_still, to_tensor

WIDTH, HEIGHT = 40, 24
PIXELS = np.ascontiguousarray(data.astronaut()[40:64, 200:240])  # her face's edge: no two axes alike
PICTURE = Image.fromarray(PIXELS)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source, **options) -> np.ndarray:
    image = read_still(source, **options).image
    assert image.mode == "RGB"
    return np.asarray(image)


def refused(source, code: str, **options) -> str:
    with pytest.raises((InputError, MissingPackage)) as caught:
        read_still(source, **options)
    assert caught.value.code == code
    return str(caught.value)


# --- sources -----------------------------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    path = tmp_path / "a picture.png"
    PICTURE.save(path)
    chw = torch.from_numpy(PIXELS).movedim(-1, 0)
    for source in (
        path,
        str(path),
        path.read_bytes(),
        PICTURE,
        PIXELS,
        PIXELS.astype(np.float32) / 255,
        PIXELS.astype(np.float64) / 255,
        chw,
        chw.double() / 255,
    ):
        assert (pixels(source) == PIXELS).all(), type(source)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_floats_round_to_the_nearest_level(dtype):
    half = (torch.from_numpy(PIXELS).movedim(-1, 0) / 255).to(dtype)
    assert not torch.equal(half.double() * 255, (half.double() * 255).round())
    assert (pixels(half) == PIXELS).all()


def test_the_content_decides_and_not_the_name(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(PICTURE, "BMP"))
    assert (pixels(path) == PIXELS).all()


def test_a_picture_of_the_caller_is_never_changed():
    image = Image.open(io.BytesIO(encoded(PICTURE, exif=_oriented(6))))
    result = read_still(image).image
    assert image.size == (WIDTH, HEIGHT)
    assert result.size == (HEIGHT, WIDTH)
    again = read_still(PICTURE).image
    again.putpixel((0, 0), (1, 2, 3))
    assert PICTURE.getpixel((0, 0)) != (1, 2, 3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((24, 40, 2), np.uint8),
        np.zeros((2, 24, 40, 3), np.uint8),
        np.zeros((24, 40, 3), np.int32),
        np.full((24, 40, 3), 1.5),
        np.full((24, 40, 3), -0.5),
        np.full((24, 40, 3), np.nan),
        torch.zeros(40, 24, 3),
        torch.zeros(1, 3, 24, 40),
    ],
)
def test_arrays_that_are_no_picture_are_refused(array):
    refused(array, "E-IMAGE-ARRAY")


def test_grey_arrays():
    grey = PIXELS[..., 0]
    for source in (grey, grey[..., None], torch.from_numpy(grey.copy())[None]):
        assert (pixels(source) == grey[..., None]).all()


@pytest.mark.unchecked
def test_other_types_are_refused():
    refused(7, "E-IMAGE-TYPE")
    refused(None, "E-IMAGE-TYPE")


# --- orientation and colour --------------------------------------------------------------------------------------


def _oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    # What a camera held that way stores: the inverse of the turn that its tag asks for.
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = PICTURE.transpose(turns[orientation]) if orientation > 1 else PICTURE
    image, notes = read_still(encoded(stored, exif=_oriented(orientation)))
    assert (np.asarray(image) == PIXELS).all()
    assert bool(notes) == (orientation > 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_orientation_of_tiff_is_applied_once(tmp_path, mode, compression):
    upright = PICTURE.convert(mode)
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "x.tif", exif=_oriented(6), compression=compression)
    assert (pixels(tmp_path / "x.tif") == np.asarray(upright.convert("RGB"))).all()
    assert (pixels((tmp_path / "x.tif").read_bytes()) == np.asarray(upright.convert("RGB"))).all()


def test_damaged_exif_does_not_cost_the_picture():
    image, notes = read_still(encoded(PICTURE, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"))
    assert (np.asarray(image) == PIXELS).all()
    image, notes = read_still(encoded(PICTURE, exif=b"Exif\0\0nonsense"))
    assert (np.asarray(image) == PIXELS).all()
    assert "EXIF" in notes[0]


def _expected_on_white(alpha: np.ndarray) -> np.ndarray:
    a = alpha[..., None] / 255
    return PIXELS * a + 255 * (1 - a)


ALPHA = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)


def test_rgba_is_laid_on_white():
    rgba = Image.fromarray(np.dstack([PIXELS, ALPHA]))
    image, notes = read_still(encoded(rgba))
    assert np.abs(np.asarray(image) - _expected_on_white(ALPHA)).max() <= 1
    assert "white" in notes[0]
    hidden = Image.fromarray(np.dstack([PIXELS, np.zeros_like(ALPHA)]))
    assert (pixels(encoded(hidden)) == 255).all()


def test_opaque_rgba_keeps_its_pixels_exactly():
    image, notes = read_still(encoded(Image.fromarray(np.dstack([PIXELS, np.full_like(ALPHA, 255)]))))
    assert (np.asarray(image) == PIXELS).all()
    assert notes == ()


def test_grey_with_alpha():
    grey = Image.fromarray(PIXELS[..., 1])
    image = Image.merge("LA", [grey, Image.fromarray(ALPHA)])
    a = ALPHA / 255
    expected = PIXELS[..., 1] * a + 255 * (1 - a)
    assert np.abs(pixels(encoded(image)) - expected[..., None]).max() <= 1


def test_palette_with_and_without_transparency():
    palette = PICTURE.quantize(16)
    plain = np.asarray(palette.convert("RGB"))
    assert (pixels(encoded(palette)) == plain).all()
    index = np.asarray(palette)[0, 0]
    result = pixels(encoded(palette, transparency=int(index)))
    gone = np.asarray(palette) == index
    assert 0 < gone.sum() < gone.size
    assert (result[gone] == 255).all()
    assert (result[~gone] == plain[~gone]).all()


def test_rgb_with_a_transparent_colour():
    colour = tuple(int(v) for v in PIXELS[3, 5])
    result = pixels(encoded(PICTURE, transparency=colour))
    gone = (colour == PIXELS).all(-1)
    assert (result[gone] == 255).all()
    assert (result[~gone] == PIXELS[~gone]).all()


def test_one_bit_and_cmyk():
    bits = PICTURE.convert("1")
    assert (pixels(encoded(bits)) == np.asarray(bits)[..., None] * np.uint8(255)).all()
    cmyk = PICTURE.convert("CMYK")
    result = pixels(encoded(cmyk, "TIFF"))
    assert (result == np.asarray(cmyk.convert("RGB"))).all()
    assert np.abs(result.astype(int) - PIXELS).max() <= 2


def test_sixteen_bits_are_scaled_and_not_clipped():
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
    expected = np.rint(deep / 257).astype(np.uint8)[..., None]
    for kind in ("PNG", "TIFF"):
        image = Image.fromarray(deep)
        assert image.mode == "I;16"
        assert (pixels(encoded(image, kind)) == expected).all()
    big_endian = Image.frombytes("I;16B", (WIDTH, HEIGHT), deep.astype(">u2").tobytes())
    assert (pixels(big_endian) == expected).all()
    assert (pixels(Image.fromarray(deep.astype(np.int32))) == expected).all()
    refused(Image.fromarray(deep.astype(np.int32) * 2), "E-IMAGE-MODE")


def test_float_pictures():
    values = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    assert (pixels(encoded(Image.fromarray(values), "TIFF")) == np.rint(values * 255)[..., None]).all()
    refused(Image.fromarray(values * 300), "E-IMAGE-ARRAY")


@pytest.mark.parametrize("mode", ["LAB", "HSV", "YCbCr", "PA", "RGBa", "La"])
def test_rarer_modes(mode):
    grey = Image.new("RGB", (20, 20), (102, 102, 102))
    if mode == "LAB":
        image = Image.new("LAB", (20, 20), (109, 128, 128))  # L* 43
    elif mode == "RGBa":
        image = grey.convert("RGBA").convert("RGBa")
    elif mode == "La":
        image = grey.convert("LA").convert("La")
    else:
        image = grey.convert(mode)
    assert np.abs(pixels(image).astype(int) - 102).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame_and_warns(kind):
    other = Image.fromarray(255 - PIXELS)
    options = {"lossless": True} if kind == "WEBP" else {}
    animated = encoded(PICTURE, kind, save_all=True, append_images=[other, PICTURE], **options)
    with pytest.warns(VivantWarning, match="W-IMAGE-ANIMATED") as caught:
        image, notes = read_still(animated)
    assert len(caught) == 1
    assert "3 frames" in notes[0]
    worst = np.abs(np.asarray(image).astype(int) - PIXELS).mean()
    assert worst < (8 if kind == "GIF" else 1e-9)


def test_a_frame_that_the_caller_chose_is_kept():
    with Image.open(
        io.BytesIO(encoded(PICTURE, "TIFF", save_all=True, append_images=[ImageOps.invert(PICTURE)]))
    ) as image:
        image.seek(1)
        assert (pixels(image) == 255 - PIXELS).all()


# --- refused -----------------------------------------------------------------------------------------------------


def test_missing_files_and_folders(tmp_path):
    refused(tmp_path / "none.png", "E-IMAGE-MISSING")
    refused(tmp_path, "E-IMAGE-MISSING")
    refused("", "E-IMAGE-MISSING")
    refused("a\0b.png", "E-IMAGE-MISSING")


def test_zero_bytes(tmp_path):
    path = tmp_path / "empty.png"
    path.write_bytes(b"")
    assert "empty.png" in refused(path, "E-IMAGE-EMPTY")
    refused(b"", "E-IMAGE-EMPTY")
    refused(np.zeros((0, 40, 3), np.uint8), "E-IMAGE-EMPTY")


def test_text_named_png(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("this is not a picture")
    refused(path, "E-IMAGE-FORMAT")
    refused(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "E-IMAGE-FORMAT")
    # EPS would be handed to Ghostscript.
    refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n", "E-IMAGE-FORMAT")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(kind, share):
    whole = encoded(Image.fromarray(data.astronaut()[:128, :160]), kind)
    read_still(whole)
    with pytest.raises(InputError) as caught:
        read_still(whole[: int(len(whole) * share)])
    assert caught.value.code in ("E-IMAGE-TRUNCATED", "E-IMAGE-FORMAT")
    assert caught.value.code == "E-IMAGE-TRUNCATED" or kind == "JPEG2000"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_a_header_cut_short_is_called_damaged_and_not_foreign(kind):
    refused(encoded(PICTURE, kind)[:14], "E-IMAGE-TRUNCATED")


def test_a_damaged_chunk_is_refused():
    broken = bytearray(encoded(Image.fromarray(data.astronaut()[:128, :160])))
    broken[len(broken) // 2] ^= 0xFF
    refused(bytes(broken), "E-IMAGE-TRUNCATED")


def _huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises the size and whose data would never end."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_absurd_sizes_are_refused_from_the_header(side, monkeypatch):
    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    refused(_huge_png(side, side), "E-IMAGE-SIZE")


def test_the_size_limit_is_an_argument():
    assert read_still(PIXELS, max_pixels=WIDTH * HEIGHT).image.size == (WIDTH, HEIGHT)
    refused(PIXELS, "E-IMAGE-SIZE", max_pixels=WIDTH * HEIGHT - 1)


def test_tiny_pictures_are_refused():
    refused(Image.new("RGB", (1, 1)), "E-IMAGE-SMALL")
    refused(Image.new("RGB", (400, 15)), "E-IMAGE-SMALL")
    assert read_still(Image.new("RGB", (1, 1)), min_side=1).image.size == (1, 1)


HEIC = b"\0\0\0\x18ftypheic" + bytes(100)
HEIC_BY_COMPATIBLE_BRAND = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heicavif" + bytes(100)  # the box ends before avif


@pytest.mark.parametrize("content", [HEIC, HEIC_BY_COMPATIBLE_BRAND], ids=["heic", "mif1"])
def test_heic_without_the_plugin_names_it(monkeypatch, content):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pillow-heif" in refused(content, "E-IMAGE-HEIC")


@pytest.mark.parametrize("brand", [b"mif1", b"msf1"])
def test_an_avif_whose_major_brand_is_shared_with_heic(monkeypatch, brand):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    content = encoded(PICTURE, "AVIF", quality=100, subsampling="4:4:4")
    assert content[4:12] == b"ftypavif"
    shared = content[:8] + brand + content[12:]
    assert (pixels(shared) == pixels(content)).all()


def test_heic_with_the_plugin(monkeypatch, tmp_path):
    """A stand-in plugin: what matters is that it is registered on demand and that its format is then allowed."""

    class HeifFile(Image.Image):
        format = "HEIF"

        def __init__(self, file, name):
            super().__init__()
            self._mode, self._size, self.im = "RGB", PICTURE.size, PICTURE.im.copy()

    def register():
        Image.register_open("HEIF", HeifFile, lambda head: head[4:12] == b"ftypheic")

    plugin = types.ModuleType("pillow_heif")
    plugin.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    (tmp_path / "a.heic").write_bytes(HEIC)
    assert declared_size(tmp_path / "a.heic") == (WIDTH, HEIGHT)
    assert (pixels(HEIC) == PIXELS).all()


def test_the_declared_size_costs_no_decoding(tmp_path):
    (tmp_path / "a.png").write_bytes(_huge_png(8_000, 6_000)[:60])
    assert declared_size(tmp_path / "a.png") == (8_000, 6_000)
    refused(tmp_path / "a.png", "E-IMAGE-TRUNCATED")


# --- sizes and tensors -------------------------------------------------------------------------------------------


def _original_rule(width: int, height: int) -> tuple[int, int]:
    """PIA's demo, in floats as there."""
    scale = 512 / max(width, height) if max(width, height) > 512 else 1
    return int(width * scale) // 8 * 8, int(height * scale) // 8 * 8


@settings(max_examples=300, deadline=None)
@given(st.integers(64, 3000), st.integers(64, 3000))
def test_natural_size_is_the_originals_but_for_float_error(width, height):
    ours = natural_size(Image.new("1", (width, height)), minimum=0)
    theirs = _original_rule(width, height)
    assert max(ours) <= 512
    for side, mine, original in zip((width, height), ours, theirs, strict=True):
        if mine != original:  # only where the float product falls just short of the next multiple
            assert Fraction(side * 512, max(width, height)) == mine == original + 8


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((1000, 667), (512, 336)),
        ((667, 1000), (336, 512)),
        ((300, 200), (296, 200)),
        ((4000, 40), (512, 64)),
        ((25, 25), (64, 64)),
    ],
)
def test_natural_size(size, expected):
    assert natural_size(Image.new("RGB", size)) == expected


def test_natural_size_arguments():
    assert natural_size(Image.new("RGB", (1000, 600)), long_edge=720, multiple=16) == (720, 432)


@pytest.mark.parametrize("mode", ["crop", "pad", "stretch"])
def test_fit_is_the_identity_at_the_same_size(mode):
    assert fit(PICTURE, WIDTH, HEIGHT, mode) is PICTURE


def _marked() -> Image.Image:
    """200 x 100: red left, green middle half, blue right."""
    canvas = np.zeros((100, 200, 3), np.uint8)
    canvas[:, :50, 0] = canvas[:, 50:150, 1] = canvas[:, 150:, 2] = 255
    return Image.fromarray(canvas)


def test_fit_crop_cuts_evenly():
    result = np.asarray(fit(_marked(), 64, 64, "crop"))
    assert result.shape == (64, 64, 3)
    assert (result[:, 6:-6] == (0, 255, 0)).all()
    assert np.abs(result[..., 0].astype(int) - result[:, ::-1, 2]).max() <= 1  # red comes in as far as blue
    assert (np.asarray(fit(_marked(), 100, 100)) == np.asarray(_marked().crop((50, 0, 150, 100)))).all()
    tall = _marked().transpose(Image.Transpose.TRANSPOSE)
    assert (np.asarray(fit(tall, 100, 100)) == np.asarray(tall.crop((0, 50, 100, 150)))).all()


def test_fit_pad_shows_all():
    result = np.asarray(fit(_marked(), 80, 64, "pad", fill=(9, 8, 7)))
    assert result.shape == (64, 80, 3)
    assert (result[:12] == (9, 8, 7)).all()
    assert (result[-12:] == (9, 8, 7)).all()
    assert (result[30, 2] == (255, 0, 0)).all()
    assert (result[30, -3] == (0, 0, 255)).all()


def test_fit_stretch_is_antialiased():
    stripes = np.zeros((64, 512, 3), np.uint8)
    stripes[:, ::2] = 255  # one pixel on, one off: nearest or bilinear sampling gives stripes or black
    result = np.asarray(fit(Image.fromarray(stripes), 64, 64, "stretch")).astype(int)
    assert np.abs(result[:, 2:-2] - 127.5).max() < 3


@pytest.mark.unchecked
def test_fit_refuses():
    for arguments, code in (((40, 24, "squash"), "E-FIT-MODE"), ((0, 24), "E-FIT-SIZE"), ((40, -8), "E-FIT-SIZE")):
        with pytest.raises(InputError) as caught:
            fit(PICTURE, *arguments)
        assert caught.value.code == code


def test_to_tensor_equals_the_oracles_bit_for_bit():
    from diffusers.image_processor import VaeImageProcessor

    picture = PICTURE.crop((0, 0, 40, 24))
    ours = to_tensor(picture)
    oracle = VaeImageProcessor(vae_scale_factor=8).preprocess(picture)
    assert ours.shape == (1, 3, 24, 40)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, oracle)
    assert ours.min() >= -1
    assert ours.std() > 0.1


def test_open_still_keeps_the_mode():
    assert open_still(encoded(PICTURE.convert("L"))).image.mode == "L"
