"""Data sets from files: the right frames, and nothing left out without a word."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivant.errors import InputError, LoadError
from vivant.media.video import write_clip
from vivant.train.data import Data, Mixed, open_all, open_source
from vivant.train.sources import FILMS, Films, Pictures, count_frames, in_folder, in_webvid, stretch

RNG = np.random.default_rng


def film(path: Path, num_frames: int = 12) -> Path:
    """Frame i is grey of level 20 i, above a white bar."""
    frames = np.zeros((num_frames, 32, 48, 3), np.uint8)
    frames += (20 * np.arange(num_frames, dtype=np.uint8))[:, None, None, None]
    frames[:, :8] = 255
    return write_clip(frames, path, 8, overwrite=True)


def levels(frames: np.ndarray) -> list[int]:
    """Which frames of a film these are."""
    return [round(float(frame[-6:].mean()) / 20) for frame in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_a_stretch_has_the_frames_that_were_asked_for(tmp_path, suffix):
    path = film(tmp_path / f"a{suffix}")
    assert count_frames(path) == 12
    frames = stretch(path, 2, 4, 3)
    assert levels(np.stack([np.asarray(frame) for frame in frames])) == [2, 5, 8, 11]


def test_clips_start_everywhere_and_are_cropped(tmp_path):
    source = Films.of([(film(tmp_path / "a.mp4"), "grey")], 3, 4, (16, 16))
    clips = [source.read(0, RNG(seed)) for seed in range(40)]
    assert {clip.pixels.shape for clip in clips} == {(3, 16, 16, 3)}
    starts = {tuple(levels(clip.pixels)) for clip in clips}
    assert starts == {(s, s + 4, s + 8) for s in range(4)}
    assert clips[0].caption == "grey"
    assert clips[0].pixels[0, 0].mean() > 240


def test_reading_depends_on_its_generator_only(tmp_path):
    source = Films.of([(film(tmp_path / "a.mp4"), "grey")], 3, 2, (16, 24), flip=True)
    assert np.array_equal(source.read(0, RNG(3)).pixels, source.read(0, RNG(3)).pixels)


def test_flipping_mirrors_half(tmp_path):
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    frames[:, :, :4] = 255
    path = write_clip(frames, tmp_path / "a.mp4", 8)
    source = Films.of([(path, "")], 4, 1, (16, 16), flip=True)
    left = [source.read(0, RNG(seed)).pixels[0, :, 0].mean() > 128 for seed in range(40)]
    assert 10 < sum(left) < 30


def test_short_films_are_refused_or_counted(tmp_path):
    films = [(film(tmp_path / "long.mp4"), "a"), (film(tmp_path / "short.mp4", 5), "b")]
    with pytest.raises(InputError, match=r"E-TRAIN-DATA.*1 of 2 films.*short\.mp4"):
        Films.of(films, 4, 3, (16, 16))
    kept = Films.of(films, 4, 3, (16, 16), leave_out_short=True)
    assert len(kept) == 1
    assert [path.name for path in kept.left_out] == ["short.mp4"]
    with pytest.raises(InputError, match="E-TRAIN-DATA"):
        Films.of(films[1:], 4, 3, (16, 16), leave_out_short=True)


def test_what_is_no_film_is_named(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no film at all")
    with pytest.raises(LoadError, match=r"E-CLIP-BROKEN.*a\.mp4"):
        count_frames(tmp_path / "a.mp4")
    with pytest.raises(LoadError, match="E-CLIP-MISSING"):
        count_frames(tmp_path / "b.mp4")


def test_a_playlist_that_names_other_files_is_not_obeyed(tmp_path):
    film(tmp_path / "secret.mp4")
    for text in ("ffconcat version 1.0\nfile secret.mp4\n", "#EXTM3U\n#EXTINF:1,\nsecret.mp4\n"):
        path = tmp_path / f"list{len(text)}.mp4"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(LoadError, match="E-CLIP-BROKEN"):
            count_frames(path)


def test_a_film_that_ends_early_is_an_error_and_not_a_shorter_clip(tmp_path):
    with pytest.raises(LoadError, match=r"E-CLIP-BROKEN.*frame 14"):
        stretch(film(tmp_path / "a.mp4"), 2, 4, 4)


def test_captions_stand_beside_the_files(tmp_path):
    film(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text(" a grey room \n", encoding="utf-8")
    assert in_folder(tmp_path, FILMS) == [(tmp_path / "a.mp4", "a grey room")]
    film(tmp_path / "b.mp4")
    with pytest.raises(InputError, match=r"E-TRAIN-DATA.*1 of 2.*b\.mp4"):
        in_folder(tmp_path, FILMS)
    assert len(in_folder(tmp_path, FILMS, caption="grey")) == 2
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="E-TRAIN-DATA"):
            in_folder(folder, frozenset({".mkv"}))


def table(path: Path, *rows: tuple[str, str, str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("videoid", "name", "page_dir"), *rows])
    return path


def test_webvid(tmp_path):
    (tmp_path / "00").mkdir()
    first, second = film(tmp_path / "00" / "11.mp4"), film(tmp_path / "12.mp4")
    rows = table(tmp_path / "a.csv", ("11", "a room, grey", "00"), ("12", "hall", "00"))
    assert in_webvid(rows, tmp_path) == [(first, "a room, grey"), (second, "hall")]
    with pytest.raises(InputError, match=r"E-TRAIN-DATA.*1 of 1.*13\.mp4"):
        in_webvid(table(tmp_path / "b.csv", ("13", "x", "")), tmp_path)
    with pytest.raises(InputError, match="E-TRAIN-DATA"):
        in_webvid(table(tmp_path / "00" / "c.csv", ("../12", "x", "")), tmp_path / "00")  # outside
    (tmp_path / "d.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="columns videoid"):
        in_webvid(tmp_path / "d.csv", tmp_path)


def test_crops_of_pictures_have_every_size_and_no_bars(tmp_path):
    ramp = np.tile(np.linspace(10, 250, 80, dtype=np.uint8), (40, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    source = Pictures(((tmp_path / "a.png", "ramp"),), (16, 24), part=0.25)
    spans = []
    for seed in range(60):
        clip = source.read(0, RNG(seed))
        assert clip.pixels.shape == (1, 16, 24, 3)
        assert clip.pixels.min() >= 9
        spans.append(int(clip.pixels[0, 0, -1, 0]) - int(clip.pixels[0, 0, 0, 0]))
    assert min(spans) < 70
    assert max(spans) > 140


def test_sources_are_mixed_by_their_weight(tmp_path):
    Image.new("RGB", (30, 30), "red").save(tmp_path / "a.png")
    pictures = Data(kind="pictures", folder=tmp_path, caption="red", size=(16, 16), repeat=3)
    drawn = Data(kind="drawn", num=2, size=(64, 64))
    mixed = open_all([pictures, drawn])
    assert isinstance(mixed, Mixed)
    assert len(mixed) == 5
    captions = [mixed.read(i, RNG(0)).caption for i in range(5)]
    assert captions[:3] == ["red"] * 3
    assert captions[3] != captions[4]
    assert open_source(drawn).read(0, RNG(0)).caption == captions[3]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "values", [{"kind": "songs"}, {"kind": "films"}, {"kind": "drawn", "num": 0}, {"kind": "drawn", "style": "oil"}]
)
def test_tables_that_describe_nothing_are_refused(values):
    with pytest.raises(InputError, match="E-TRAIN-SETTING"):
        Data(**values)
