"""`vivant.utils` against `diffusers.utils`: the same signatures, the same results where those are right."""

import inspect
from fractions import Fraction
from pathlib import Path

import diffusers.utils as oracle
import numpy as np
import pytest
from PIL import Image
from skimage import data

from vivant import utils
from vivant.errors import InputError, OutputError, VivantWarning
from vivant.media import fetch
from vivant.media.video import probe, read_clip

ASTRONAUT = Image.fromarray(data.astronaut())
FRAMES = [ASTRONAUT.resize((96, 64), 1, box=(2 * i, i, 500 - i, 510 - 2 * i)) for i in range(8)]


def code_of(error, function, *args, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    return caught.value.code


@pytest.mark.parametrize("name", ["load_image", "export_to_gif", "export_to_video", "make_image_grid"])
def test_signatures_are_the_references(name):
    def shape(function):
        return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]

    assert shape(getattr(utils, name)) == shape(getattr(oracle, name))


# --- load_image --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK"])
def test_load_image_equals_the_oracle(tmp_path, mode):
    path = tmp_path / f"x.{'jpg' if mode == 'CMYK' else 'png'}"
    exif = Image.Exif()
    exif[0x0112] = 6
    ASTRONAUT.crop((100, 20, 300, 140)).convert(mode).save(path, exif=exif)
    ours, theirs = utils.load_image(str(path)), oracle.load_image(str(path))
    assert ours.size == (120, 200)
    assert ours.mode == theirs.mode == "RGB"
    assert (np.asarray(ours) == np.asarray(theirs)).all()
    assert (np.asarray(utils.load_image(path)) == np.asarray(theirs)).all()
    assert (np.asarray(utils.load_image(Image.open(path))) == np.asarray(theirs)).all()


def test_load_image_lays_transparency_on_white():
    clear = Image.new("RGBA", (20, 20), (10, 20, 30, 0))
    assert utils.load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert oracle.load_image(clear).getpixel((0, 0)) == (10, 20, 30)  # the difference, on purpose


def test_load_image_of_the_reference_example(monkeypatch, tmp_path):
    ASTRONAUT.save(tmp_path / "cat_6.png")
    asked = []

    def answer(url):
        asked.append(url)
        return (tmp_path / "cat_6.png").read_bytes()

    monkeypatch.setattr(fetch, "fetch", answer)
    url = "https://huggingface.co/datasets/hf-internal-testing/diffusers-images/resolve/main/pix2pix/cat_6.png?download=true"
    image = utils.load_image(url)
    assert asked == [url]
    assert (np.asarray(image) == np.asarray(ASTRONAUT)).all()


def test_load_image_with_a_conversion_of_the_callers(tmp_path):
    seen = []

    def convert(image):
        seen.append(image.mode)
        return image.convert("L")

    image = utils.load_image(ASTRONAUT.convert("LA"), convert)
    assert seen == ["LA"]
    assert image.mode == "L"


def test_load_image_takes_any_size_and_refuses_the_rest(tmp_path):
    assert utils.load_image(Image.new("RGB", (1, 1))).size == (1, 1)
    with pytest.raises(ValueError, match="E-IMAGE-MISSING"):
        utils.load_image("no/such/file.png")


# --- export_to_gif -----------------------------------------------------------------------------------------------


def test_export_to_gif(tmp_path):
    path = str(tmp_path / "x.gif")
    assert utils.export_to_gif(FRAMES, path, 8) == path
    frames, fps = read_clip(path)
    assert frames.shape == (8, 64, 96, 3)
    assert fps == 8
    assert np.abs(frames.astype(float) - np.stack([np.asarray(f) for f in FRAMES])).mean() < 4
    assert utils.export_to_gif(FRAMES[:3], Path(path)) == path  # replaces the file
    assert probe(path).num_frames == 3
    assert probe(path).fps == 10


def test_export_to_gif_keeps_time_where_the_reference_loses_it(tmp_path):
    def duration(path):
        with Image.open(path) as image:
            total = 0
            for i in range(image.n_frames):
                image.seek(i)
                total += image.info["duration"]
        return total

    assert duration(utils.export_to_gif(FRAMES, str(tmp_path / "ours.gif"), 8)) == 1000
    assert duration(oracle.export_to_gif(FRAMES, str(tmp_path / "theirs.gif"), 8)) == 960


def test_exports_choose_a_name_when_none_is_given():
    for path in (utils.export_to_gif(FRAMES[:2]), utils.export_to_video(FRAMES[:2])):
        assert probe(path).num_frames == 2
        Path(path).unlink()


def test_other_suffixes_are_refused(tmp_path):
    assert code_of(InputError, utils.export_to_gif, FRAMES, str(tmp_path / "x.mp4")) == "E-OUTPUT-SUFFIX"
    assert code_of(InputError, utils.export_to_video, FRAMES, str(tmp_path / "x.avi")) == "E-OUTPUT-SUFFIX"
    assert list(tmp_path.iterdir()) == []


# --- export_to_video ---------------------------------------------------------------------------------------------


def _close(path, truth):
    frames, _ = read_clip(path)
    return frames.shape == truth.shape and np.abs(frames.astype(float) - truth).mean() < 8


def test_export_to_video_takes_the_references_frames(tmp_path):
    truth = np.stack([np.asarray(f) for f in FRAMES])
    floats = list(truth.astype(np.float32) / 255)
    for i, frames in enumerate((FRAMES, floats, list(truth), truth)):
        path = utils.export_to_video(frames, str(tmp_path / f"{i}.mp4"), fps=8)
        assert path == str(tmp_path / f"{i}.mp4")
        assert _close(path, truth)
        assert probe(path).fps == 8
        assert probe(path).codec == "h264"


def test_export_to_video_defaults_and_webm(tmp_path):
    path = utils.export_to_video(FRAMES, str(tmp_path / "x.webm"))
    assert probe(path).fps == 10
    assert probe(path).codec == "vp9"
    path = utils.export_to_video(FRAMES, str(tmp_path / "x.mp4"), fps=Fraction(30000, 1001))
    assert probe(path).fps == Fraction(30000, 1001)


def test_quality_and_bitrate_are_honoured(tmp_path):
    def size(**options):
        return Path(utils.export_to_video(FRAMES, str(tmp_path / "x.mp4"), **options)).stat().st_size

    assert size(quality=1) < 0.6 * size() < 0.6 * size(quality=9)
    assert size(bitrate=40_000) < 0.6 * size(bitrate=2_000_000)
    assert size(bitrate=40_000, quality=9) == size(bitrate=40_000)  # a bitrate takes the place of quality
    assert size(quality=None) != size()


def test_macro_block_size_enlarges_and_says_so(tmp_path):
    odd = [f.resize((90, 50)) for f in FRAMES]
    with pytest.warns(VivantWarning, match=r"W-VIDEO-RESIZED.*90 x 50.*96 x 64"):
        path = utils.export_to_video(odd, str(tmp_path / "x.mp4"))
    assert _close(path, np.stack([np.asarray(f.resize((96, 64), Image.Resampling.LANCZOS)) for f in odd]))
    for block in (None, 1, 2):
        info = probe(utils.export_to_video(odd, str(tmp_path / "x.mp4"), macro_block_size=block))
        assert (info.width, info.height) == (90, 50)
    assert code_of(InputError, utils.export_to_video, odd, None, macro_block_size=0) == "E-OUTPUT-BLOCK"


def test_errors_carry_codes(tmp_path):
    assert code_of(InputError, utils.export_to_video, [], str(tmp_path / "x.mp4")) == "E-FRAMES-EMPTY"
    assert code_of(InputError, utils.export_to_video, FRAMES, str(tmp_path / "x.mp4"), fps=0) == "E-OUTPUT-FPS"
    assert code_of(InputError, utils.export_to_video, FRAMES, str(tmp_path / "x.mp4"), quality=11) == "E-OUTPUT-QUALITY"
    assert code_of(OutputError, utils.export_to_gif, FRAMES, str(tmp_path / "no" / "x.gif")) == "E-OUTPUT-FOLDER"
    assert list(tmp_path.iterdir()) == []


def test_make_image_grid_equals_the_oracle():
    for resize in (None, 40):
        ours = utils.make_image_grid(FRAMES[:6], 2, 3, resize)
        theirs = oracle.make_image_grid(FRAMES[:6], 2, 3, resize)
        assert (np.asarray(ours) == np.asarray(theirs)).all()
