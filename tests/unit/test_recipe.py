"""The recipe: whole in every format, recognised among other comments, and read as if a stranger wrote it."""

import json
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from vivant.errors import InputError, LoadError
from vivant.media import container
from vivant.media.recipe import decode_recipe, encode_recipe, image_digest, read_recipe, sidecar_of
from vivant.media.video import probe, read_clip, write_clip

RECIPE = {
    "vivant": 1,
    "kind": "pia",
    "prompt": 'a "cat" 🐈 \\ in a field\n\u202eעברית\x00 end',
    "seed": 2**63,
    "fps": [30000, 1001],
    "strength": 0.1,
    "nested": {"null": None, "list": [1, [2, {"x": "é"}]]},
}
TARGETS = ["clip.mp4", "clip.webm", "clip.gif", "clip.webp", "clip.apng", "sheet.png", "frames/"]
FRAMES = np.random.default_rng(3).integers(0, 256, (4, 32, 48, 3), np.uint8)


def write(folder, name, recipe, **options):
    return write_clip(FRAMES, f"{folder}/{name}", 8, recipe=recipe, **options)


def code_of(error, function, *args, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    return caught.value.code


def inside(path):
    """The file that carries the recipe: in a folder it is the first frame."""
    return path / "frame_00000.png" if path.is_dir() else path


@pytest.mark.parametrize("name", TARGETS)
def test_the_recipe_survives_inside_the_file_alone(tmp_path, name):
    path = write(tmp_path, name, RECIPE, sidecar=False)
    assert not sidecar_of(path).exists()
    assert read_recipe(inside(path)) == read_recipe(path) == RECIPE


@pytest.mark.parametrize("name", TARGETS)
def test_the_recipe_survives_beside_the_file(tmp_path, name):
    path = write(tmp_path, name, RECIPE)
    assert sidecar_of(path) == tmp_path / (name.rstrip("/") + ".json")
    assert json.loads(sidecar_of(path).read_text()) == RECIPE
    bare = write_clip(FRAMES, f"{tmp_path}/other/" if name == "frames/" else tmp_path / f"other_{name}", 8)
    assert code_of(LoadError, read_recipe, bare) == "E-RECIPE-NONE"
    sidecar_of(path).rename(sidecar_of(bare))
    assert read_recipe(bare) == RECIPE
    assert read_recipe(sidecar_of(bare)) == RECIPE


@pytest.mark.parametrize("name", TARGETS)
def test_a_large_recipe_leaves_the_clip_as_it_was(tmp_path, name):
    large = {"vivant": 1, "prompt": "x" * 10_000 + "🐈" * 30_000}
    path = write(tmp_path, name, large, sidecar=False)
    plain = write_clip(FRAMES, f"{tmp_path}/plain_{name}", 8)
    assert read_recipe(inside(path)) == large
    assert probe(path) == probe(plain)
    assert (read_clip(path)[0] == read_clip(plain)[0]).all()


@pytest.mark.parametrize("name", ["clip.webp", "clip.gif", "clip.apng"])
def test_other_readers_still_open_the_file(tmp_path, name):
    path = write(tmp_path, name, RECIPE)
    with Image.open(path) as image:
        assert image.size == (48, 32)
        assert image.n_frames == 4
        image.verify()
    if name != "clip.webp":
        with av.open(str(path)) as clip:
            assert sum(1 for _ in clip.decode(video=0)) == 4


@pytest.mark.parametrize("extra", ["", "x"])
def test_webp_chunks_fill_the_file_exactly(tmp_path, extra):
    content = write(tmp_path, "clip.webp", {"vivant": 1, "x": extra}).read_bytes()
    assert struct.unpack_from("<I", content, 4)[0] == len(content) - 8
    kinds, at = [], 12
    while at < len(content):
        kind, length = struct.unpack_from("<4sI", content, at)
        kinds.append(kind)
        at += 8 + length + length % 2
    assert at == len(content)
    assert kinds == [b"VP8X", b"ANIM", *[b"ANMF"] * 4, b"EXIF"]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        max_size=4,
    )
)
def test_any_json_object_goes_through(values):
    recipe = {**values, "vivant": 1}
    if any(value in (float("inf"), float("-inf")) for value in values.values()):
        assert code_of(InputError, encode_recipe, recipe) == "E-RECIPE-VALUE"
        return
    text = encode_recipe(recipe)
    assert text.isascii()
    assert decode_recipe(text.encode(), "x") == recipe
    gif = container.add_gif_text(b"GIF89a\x01\0\x01\0\0\0\0\x2c", text)
    assert gif.endswith(b"\0\x2c")


@pytest.mark.parametrize(
    ("recipe", "code"),
    [
        ({"kind": "pia"}, "E-RECIPE-VALUE"),
        ({"vivant": 2}, "E-RECIPE-VALUE"),
        ({"vivant": 1, "x": float("nan")}, "E-RECIPE-VALUE"),
        ({"vivant": 1, "x": object()}, "E-RECIPE-VALUE"),
        ({"vivant": 1, "x": Fraction(1, 2)}, "E-RECIPE-VALUE"),
        ({"vivant": 1, "x": "a" * 1_000_001}, "E-RECIPE-SIZE"),
    ],
)
def test_what_cannot_be_a_recipe_is_refused_before_anything_is_written(tmp_path, recipe, code):
    assert code_of(InputError, write, tmp_path, "clip.mp4", recipe) == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "E-RECIPE-BROKEN"),
        (b"[1]", "E-RECIPE-BROKEN"),
        (b'"text"', "E-RECIPE-BROKEN"),
        (b"{", "E-RECIPE-BROKEN"),
        (b"{}", "E-RECIPE-BROKEN"),
        (b'{"vivant": "1"}', "E-RECIPE-BROKEN"),
        (b'{"vivant": true}', "E-RECIPE-BROKEN"),
        (b'{"vivant": 0}', "E-RECIPE-BROKEN"),
        (b'{"vivant": 1, "x": NaN}', "E-RECIPE-BROKEN"),
        (b'{"vivant": 1, "x": 1e999}', "E-RECIPE-BROKEN"),
        (b'{"vivant": 1, "x": "\xff"}', "E-RECIPE-BROKEN"),
        (b'{"vivant": 1, "x": ' + b"9" * 5000 + b"}", "E-RECIPE-BROKEN"),
        (b'{"vivant": 1, "x": ' + b"[" * 400_000 + b"]" * 400_000 + b"}", "E-RECIPE-BROKEN"),
        (b'{"vivant": 1, "x": "' + b"a" * 1_000_000 + b'"}', "E-RECIPE-BROKEN"),
        (b'{"vivant": 2}', "E-RECIPE-SCHEME"),
    ],
)
def test_a_strangers_recipe_is_checked(tmp_path, text, code):
    (tmp_path / "recipe.json").write_bytes(text)
    assert code_of(LoadError, read_recipe, tmp_path / "recipe.json") == code


def test_a_broken_recipe_inside_is_not_covered_up_by_the_sidecar(tmp_path):
    path = write(tmp_path, "clip.mp4", RECIPE)
    content = path.read_bytes()
    assert content.count(b'"seed":') == 1
    path.write_bytes(content.replace(b'"seed":', b'"seed" '))
    assert code_of(LoadError, read_recipe, path) == "E-RECIPE-BROKEN"


def test_other_comments_are_not_recipes(tmp_path):
    image = Image.fromarray(FRAMES[0])
    notes = PngImagePlugin.PngInfo()
    notes.add_text("parameters", '{"vivant": 1}')
    image.save(tmp_path / "a.png", pnginfo=notes)
    image.save(tmp_path / "a.gif", comment=b"Created with something")
    exif = Image.Exif()
    exif[0x010E] = "A holiday"
    image.save(tmp_path / "a.webp", exif=exif)
    with av.open(str(tmp_path / "a.mp4"), "w") as film:
        film.metadata["comment"] = "{}"
        stream = film.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        film.mux(stream.encode(av.VideoFrame.from_ndarray(FRAMES[0], format="rgb24")))
        film.mux(stream.encode(None))
    for suffix in ("png", "gif", "webp", "mp4"):
        assert code_of(LoadError, read_recipe, tmp_path / f"a.{suffix}") == "E-RECIPE-NONE"


def test_files_that_are_no_clips(tmp_path):
    assert code_of(LoadError, read_recipe, tmp_path / "none.mp4") == "E-CLIP-MISSING"
    assert code_of(LoadError, read_recipe, tmp_path / "none.json") == "E-CLIP-MISSING"
    (tmp_path / "text.mp4").write_text('{"vivant": 1}')
    assert code_of(LoadError, read_recipe, tmp_path / "text.mp4") == "E-CLIP-FORMAT"


PNG_HEAD = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    "content",
    [
        b"GIF89a",
        b"GIF89a\x01\0\x01\0\xf7\0\0",
        b"GIF89a\x01\0\x01\0\0\0\0\x21\xfe\xff" + b"x" * 9,
        b"RIFF\xff\xff\xff\xffWEBPVP8X",
        b"\0\0\0\x18ftypisom" + b"\xff" * 300,
        b"\x1a\x45\xdf\xa3" + b"\xff" * 300,
        PNG_HEAD,
        PNG_HEAD + b"\xff\xff\xff\xfftEXtviva",
        PNG_HEAD + struct.pack(">I4s", 0, b"tEXt") * 20_000,
    ],
)
def test_damaged_containers(tmp_path, content):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    assert code_of(LoadError, read_recipe, path) in ("E-CLIP-BROKEN", "E-RECIPE-NONE")


def test_a_text_chunk_that_claims_to_be_huge_is_not_read_whole(tmp_path):
    body = b"tEXtvivant\0" + b'{"vivant":' + b" " * 3_000_000
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "x.png").write_bytes(PNG_HEAD + chunk)
    text = container.read_text(tmp_path / "x.png", "png")
    assert text is not None
    assert len(text) == container.MAX_TEXT + 1
    assert code_of(LoadError, read_recipe, tmp_path / "x.png") == "E-RECIPE-BROKEN"


# --- the file beside the clip ------------------------------------------------------------------------------------


def test_a_new_clip_without_a_recipe_drops_the_old_recipe(tmp_path):
    path = write(tmp_path, "clip.gif", RECIPE)
    write_clip(FRAMES, path, 8, overwrite=True)
    assert not sidecar_of(path).exists()
    assert code_of(LoadError, read_recipe, path) == "E-RECIPE-NONE"


def test_a_recipe_whose_clip_is_elsewhere_is_not_dropped(tmp_path):
    """Only the clip that it describes may take it along; here none is replaced."""
    path = write(tmp_path, "clip.gif", RECIPE)
    path.unlink()
    write_clip(FRAMES, path, 8)
    assert json.loads(sidecar_of(path).read_text()) == RECIPE


def test_a_json_file_that_is_no_recipe_is_never_removed(tmp_path):
    beside = tmp_path / "clip.gif.json"
    beside.write_text('{"notes": "mine"}')
    write_clip(FRAMES, tmp_path / "clip.gif", 8)
    assert beside.read_text() == '{"notes": "mine"}'


def test_an_existing_sidecar_is_kept_unless_told(tmp_path):
    beside = tmp_path / "clip.gif.json"
    beside.write_text("{}")
    with pytest.raises(Exception, match="E-OUTPUT-EXISTS"):
        write(tmp_path, "clip.gif", RECIPE)
    assert beside.read_text() == "{}"
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.gif.json"]
    write(tmp_path, "clip.gif", RECIPE, overwrite=True)
    assert json.loads(beside.read_text()) == RECIPE


# --- digests -----------------------------------------------------------------------------------------------------


def test_digests(tmp_path):
    image = Image.fromarray(FRAMES[0])
    image.save(tmp_path / "x.png")
    image.save(tmp_path / "x.bmp")
    digest = image_digest(image)
    assert image_digest(Image.open(tmp_path / "x.png")) == image_digest(Image.open(tmp_path / "x.bmp")) == digest
    touched = image.copy()
    touched.putpixel((3, 4), (0, 0, 0))
    turned = Image.frombytes("RGB", (32, 48), image.tobytes())
    assert len({digest, image_digest(touched), image_digest(turned)}) == 3
