"""Clips written and read back in every format: pixels, size, count, rate, and nothing left of a failure."""

import os
import stat
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from vivant.errors import InputError, LoadError, OutputError, VivantError, VivantWarning
from vivant.media import encode, sheet
from vivant.media.container import open_av
from vivant.media.frames import as_frames, as_rate, frame_ends, frames_hash, rate_of
from vivant.media.video import check_output, probe, read_clip, write_clip

NTSC = Fraction(30000, 1001)
RATES = (8, 12.5, NTSC)
FILM = (".mp4", ".webm")
ANIMATIONS = (".gif", ".webp", ".apng")
ASTRONAUT = Image.fromarray(data.astronaut())


def clip(num_frames: int = 7, width: int = 96, height: int = 64) -> np.ndarray:
    """A slow zoom into the astronaut."""
    boxes = [(2 * i, i, 500 - i, 510 - 2 * i) for i in range(num_frames)]
    return np.stack([np.asarray(ASTRONAUT.resize((width, height), 1, box=box)) for box in boxes])


def psnr(ours: np.ndarray, truth: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((ours.astype(float) - truth) ** 2)))


def code_of(error: type[VivantError], function, *args, **kwargs) -> str:
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    return caught.value.code


def left_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


# --- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("suffix", [*FILM, *ANIMATIONS])
def test_a_clip_survives_writing_and_reading(tmp_path, suffix, fps):
    frames = clip()
    path = write_clip(frames, tmp_path / f"clip{suffix}", fps)
    assert left_in(tmp_path) == {path.name}
    decoded, rate = read_clip(path)
    assert decoded.shape == frames.shape
    if suffix == ".apng":
        assert (decoded == frames).all()
    else:
        own = [psnr(a, b) for a, b in zip(decoded, frames, strict=True)]
        other = [psnr(a, b) for a, b in zip(decoded, np.roll(frames, 1, 0), strict=True)]
        assert min(own) > 28.5
        assert all(a > b + 1 for a, b in zip(own, other, strict=True))  # the frames are in their order
        assert np.abs((decoded.astype(float) - frames).mean((0, 1, 2))).max() < 1  # no colour cast
    exact = as_rate(fps)
    coarse = suffix == ".gif" and fps is NTSC  # 7 frames at hundredths of a second cannot tell 29.97 from 30
    assert rate == (30 if coarse else exact)
    info = probe(path)
    assert (info.width, info.height, info.num_frames, info.fps) == (96, 64, 7, rate)
    assert info.codec == {".mp4": "h264", ".webm": "vp9"}.get(suffix, suffix[1:])


@pytest.mark.parametrize("suffix", ANIMATIONS)
def test_animations_keep_odd_sizes(tmp_path, suffix):
    frames = clip(3, 97, 63)
    decoded, _ = read_clip(write_clip(frames, tmp_path / f"odd{suffix}", 8))
    assert decoded.shape == frames.shape
    assert psnr(decoded, frames) > 28


@pytest.mark.parametrize("suffix", FILM)
def test_film_pads_odd_sizes_by_repeating_the_edge_and_says_so(tmp_path, suffix):
    frames = np.full((3, 63, 97, 3), 255, np.uint8)
    frames[:, :, :60] = 40
    with pytest.warns(VivantWarning, match=r"W-VIDEO-PADDED.*97 x 63.*98 x 64"):
        path = write_clip(frames, tmp_path / f"odd{suffix}", 8)
    decoded, _ = read_clip(path)
    assert decoded.shape == (3, 64, 98, 3)
    assert psnr(decoded[:, :63, :97], frames) > 28
    assert decoded[:, 63, 70:].min() > 235  # neither black nor wrapped round
    assert decoded[:, :, 97].min() > 235


@pytest.mark.parametrize("suffix", [*FILM, *ANIMATIONS])
@pytest.mark.parametrize("num_frames", [1, 2])
def test_short_clips(tmp_path, suffix, num_frames):
    decoded, rate = read_clip(write_clip(clip(num_frames), tmp_path / f"short{suffix}", 8))
    assert len(decoded) == num_frames
    if num_frames == 2:
        assert rate == 8


@pytest.mark.parametrize("suffix", [*FILM, *ANIMATIONS])
def test_a_frozen_clip_keeps_its_frames(tmp_path, suffix):
    frozen = np.repeat(clip(1), 5, 0)
    path = write_clip(frozen, tmp_path / f"frozen{suffix}", 8)
    decoded, rate = read_clip(path)
    assert decoded.shape == frozen.shape
    assert rate == 8
    assert psnr(decoded, frozen) > 28


def test_mp4_is_what_players_want(tmp_path):
    path = write_clip(clip(), tmp_path / "clip.mp4", NTSC)
    content = path.read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat"), "the index must come first"
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.colorspace == stream.codec_context.color_primaries == 1  # BT.709
        times = [frame.pts * frame.time_base for frame in film.decode(stream)]
    assert times == [i / NTSC for i in range(7)]


@pytest.mark.parametrize("suffix", FILM)
@pytest.mark.parametrize("colour", [(200, 30, 30), (20, 180, 60), (30, 40, 220), (0, 0, 0), (255, 255, 255)])
def test_film_keeps_colours(tmp_path, suffix, colour):
    frames = np.full((2, 32, 48, 3), colour, np.uint8)
    decoded, _ = read_clip(write_clip(frames, tmp_path / f"flat{suffix}", 8))
    assert np.abs(decoded.astype(int) - colour).max() <= 3


@pytest.mark.parametrize("suffix", [*FILM, ".webp"])
def test_quality_orders_size(tmp_path, suffix):
    sizes = [
        write_clip(clip(), tmp_path / f"{quality}{suffix}", 8, quality=quality).stat().st_size for quality in (0, 5, 10)
    ]
    assert sizes[0] < 0.5 * sizes[1] < 0.5 * sizes[2]


def test_bitrate_is_obeyed(tmp_path):
    frames = clip(40, 160, 96)
    sizes = [write_clip(frames, tmp_path / f"{b}.mp4", 20, bitrate=b).stat().st_size for b in (60_000, 600_000)]
    assert sizes[0] < 0.4 * sizes[1]


def test_hostile_playlists_are_not_followed(tmp_path):
    secret = write_clip(clip(2), tmp_path / "secret.mp4", 8)
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n")
    assert code_of(LoadError, read_clip, playlist) == "E-CLIP-FORMAT"
    playlist.write_text(f"ffconcat version 1.0\nfile {secret}\n")
    assert code_of(LoadError, probe, playlist) == "E-CLIP-FORMAT"


def test_the_format_is_given_and_not_guessed(tmp_path):
    path = write_clip(clip(2), tmp_path / "clip.gif", 8)
    with path.open("rb") as file, pytest.raises(av.FFmpegError):
        open_av(file, "mp4")


# --- timing ------------------------------------------------------------------------------------------------------


def gif_delays(path: Path) -> list[int]:
    """Hundredths of a second, read from the graphic control blocks by hand."""
    content, delays, at = path.read_bytes(), [], 0
    while (at := content.find(b"\x21\xf9\x04", at)) >= 0:
        if content[at + 7] == 0:
            delays.append(int.from_bytes(content[at + 4 : at + 6], "little"))
        at += 8
    return delays


@pytest.mark.parametrize(
    ("fps", "delays"),
    [
        (8, [13, 12, 13, 12, 13, 12, 13]),
        (12.5, [8] * 7),
        (NTSC, [3, 4, 3, 3, 4, 3, 3]),
        (50, [2] * 7),
        (Fraction(1, 2), [200] * 7),
    ],
)
def test_gif_timing_does_not_drift(tmp_path, fps, delays):
    path = write_clip(clip(), tmp_path / "clip.gif", fps)
    assert gif_delays(path) == delays
    assert abs(sum(delays) - 700 / as_rate(fps)) <= Fraction(1, 2)
    with Image.open(path) as image:
        assert image.info["loop"] == 0


def test_gif_of_two_seconds_lasts_two_seconds(tmp_path):
    path = write_clip(clip(16, 32, 24), tmp_path / "clip.gif", 8)
    assert sum(gif_delays(path)) == 200


def test_gif_has_one_palette(tmp_path):
    path = write_clip(clip(), tmp_path / "clip.gif", 8)
    with Image.open(path) as image:
        colours = set()
        for i in range(image.n_frames):
            image.seek(i)
            colours |= {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or ()}
    assert 128 < len(colours) <= 256


def test_too_fast_for_gif(tmp_path):
    assert code_of(InputError, write_clip, clip(), tmp_path / "x.gif", 60) == "E-OUTPUT-FPS"
    assert left_in(tmp_path) == set()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 100), st.fractions(min_value=1, max_value=50, max_denominator=8), st.sampled_from([100, 1000]))
def test_rounded_times_never_accumulate_and_give_a_rate_that_fits(num_frames, fps, ticks):
    ends = frame_ends(num_frames, fps, ticks)
    assert all(abs(end - Fraction((i + 1) * ticks) / fps) <= Fraction(1, 2) for i, end in enumerate(ends))
    found = rate_of(ends, ticks)
    assert found is not None
    assert all(abs(end - Fraction((i + 1) * ticks) / found) <= Fraction(1, 2) for i, end in enumerate(ends))
    assert found.denominator <= fps.denominator or found.denominator == 1001


def test_the_rate_of_uneven_times_is_their_mean():
    assert rate_of([10, 90, 100], 100) == 3
    assert rate_of([], 100) is None
    assert rate_of([0, 0], 100) is None


@pytest.mark.parametrize(
    "fps",
    [
        0,
        -1,
        float("nan"),
        float("inf"),
        pytest.param("8", marks=pytest.mark.unchecked),
        pytest.param(None, marks=pytest.mark.unchecked),
        True,
        1e9,
        pytest.param(10**400, id="10**400"),
        1e-9,
    ],
)
def test_impossible_rates_are_refused(tmp_path, fps):
    assert code_of(InputError, write_clip, clip(2), tmp_path / "x.mp4", fps) == "E-OUTPUT-FPS"
    assert left_in(tmp_path) == set()


def test_rates_are_exact():
    assert as_rate(12.5) == Fraction(25, 2)
    assert as_rate(8.1) == Fraction(81, 10)
    assert as_rate(NTSC) == NTSC


# --- stills ------------------------------------------------------------------------------------------------------


def test_a_folder_of_frames(tmp_path):
    frames = clip(12, 33, 21)
    path = write_clip(frames, f"{tmp_path}/frames/", 8)
    assert left_in(path) == {f"frame_{i:05d}.png" for i in range(12)}
    decoded, rate = read_clip(path)
    assert (decoded == frames).all()
    assert rate is None
    assert probe(path).num_frames == 12
    assert code_of(OutputError, write_clip, frames[:3], path, 8) == "E-OUTPUT-EXISTS"
    write_clip(frames[:3], path, 8, overwrite=True)
    assert len(left_in(path)) == 3, "frames of the longer clip must not stay"
    assert left_in(tmp_path) == {"frames"}


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    folder = tmp_path / "holiday"
    folder.mkdir()
    write_clip(clip(2), folder, 8)  # an empty folder may be used
    (folder / "letter.txt").write_text("keep me")
    assert code_of(OutputError, write_clip, clip(3), folder, 8, overwrite=True) == "E-OUTPUT-EXISTS"
    assert left_in(folder) == {"frame_00000.png", "frame_00001.png", "letter.txt"}


def test_a_failed_folder_leaves_the_old_one(tmp_path, monkeypatch):
    folder = write_clip(clip(2), f"{tmp_path}/frames/", 8)
    before = (folder / "frame_00001.png").read_bytes()

    def fail(self, clip):
        self._page(0).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encode.Pages, "add", fail)
    assert code_of(OutputError, write_clip, clip(5), folder, 8, overwrite=True) == "E-OUTPUT-WRITE"
    assert left_in(tmp_path) == {"frames"}
    assert (folder / "frame_00001.png").read_bytes() == before
    assert len(left_in(folder)) == 2


def test_contact_sheet(tmp_path):
    frames = clip(7, 40, 30)
    path = write_clip(frames, tmp_path / "sheet.png", 8)
    image = np.asarray(Image.open(path))
    assert image.shape == (4 * 30 + 3 * 4, 2 * 40 + 4, 3)
    assert (image[34:64, 44:84] == frames[3]).all()
    assert (image[102:, 44:] == 255).all()
    decoded, rate = read_clip(path)
    assert (decoded[0] == image).all()
    assert rate is None


def test_grids_refuse_what_does_not_fit():
    tile = Image.new("RGB", (4, 3))
    assert sheet.grid([tile] * 6, 2, 3).size == (12, 6)
    assert code_of(InputError, sheet.grid, [tile] * 7, 2, 3) == "E-SHEET-COUNT"
    assert code_of(InputError, sheet.grid, [], 2, 3) == "E-SHEET-COUNT"
    assert code_of(InputError, sheet.grid, [tile, tile.resize((3, 4))], 2, 3) == "E-SHEET-SIZE"


# --- frames ------------------------------------------------------------------------------------------------------


def test_every_kind_of_frames_is_the_same_clip():
    frames = clip(3, 20, 16)
    expected = frames_hash(frames)
    assert expected.startswith("sha256:")
    for same in (list(frames), [Image.fromarray(f) for f in frames], frames.astype(np.float32) / 255, frames[::1]):
        assert frames_hash(same) == expected
    assert frames_hash(frames[:, ::-1][:, ::-1]) == expected


def test_the_hash_sees_shape_order_and_every_pixel():
    frames = clip(4, 20, 16)
    touched = frames.copy()
    touched[2, 5, 7, 1] ^= 1
    others = [
        touched,
        frames[::-1],
        frames[:3],
        frames.reshape(4, 20, 16, 3),
        frames.reshape(2, 32, 20, 3),
        255 - frames,
    ]
    assert len({frames_hash(other) for other in [frames, *others]}) == 7


def test_the_hash_does_not_change_between_versions():
    ramp = np.arange(2 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 3, 5, 3)
    assert frames_hash(ramp) == "sha256:5c839f83844954d056659f20fa7f1bdbdd9481c1341b4442315daae73b8355ec"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([], "E-FRAMES-EMPTY"),
        (np.zeros((0, 4, 4, 3), np.uint8), "E-FRAMES-EMPTY"),
        (np.zeros((2, 0, 4, 3), np.uint8), "E-FRAMES-SHAPE"),
        (np.zeros((4, 4, 3), np.uint8), "E-FRAMES-SHAPE"),
        (np.zeros((2, 4, 4, 4), np.uint8), "E-FRAMES-SHAPE"),
        (np.zeros((2, 3, 4, 4), np.uint8), "E-FRAMES-SHAPE"),
        ([np.zeros((4, 4), np.uint8)], "E-FRAMES-SHAPE"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 6))], "E-FRAMES-SHAPE"),
        ([Image.new("RGBA", (4, 4))], "E-FRAMES-SHAPE"),
        pytest.param(["frame.png"], "E-FRAMES-SHAPE", marks=pytest.mark.unchecked),
        (np.zeros((2, 4, 4, 3), np.int64), "E-FRAMES-RANGE"),
        (np.full((2, 4, 4, 3), 255.0), "E-FRAMES-RANGE"),
        (np.full((2, 4, 4, 3), -1.0), "E-FRAMES-RANGE"),
        (np.full((2, 4, 4, 3), np.nan), "E-FRAMES-RANGE"),
    ],
)
def test_frames_that_are_no_clip_are_refused(tmp_path, frames, code):
    assert code_of(InputError, write_clip, frames, tmp_path / "x.mp4", 8) == code
    assert left_in(tmp_path) == set()


def test_floats_are_rounded_and_not_truncated():
    floats = np.array([0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0005]).reshape(1, 1, 5, 1).repeat(3, -1)
    assert as_frames(floats)[0, 0, :, 0].tolist() == [0, 0, 1, 255, 255]


# --- paths and failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip", "clip.xyz", "clip.jpg", ".mp4", "mp4"])
def test_unknown_suffixes_are_refused(tmp_path, name):
    assert code_of(InputError, write_clip, clip(2), tmp_path / name, 8) == "E-OUTPUT-SUFFIX"
    assert code_of(InputError, check_output, tmp_path / name) == "E-OUTPUT-SUFFIX"


def test_the_case_of_a_suffix_does_not_matter(tmp_path):
    assert probe(write_clip(clip(2), tmp_path / "CLIP.MP4", 8)).codec == "h264"


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".gif", {"quality": 5}),
        (".apng", {"quality": 5}),
        (".png", {"quality": 5}),
        (".webp", {"bitrate": 1000}),
        (".mp4", {"quality": 5, "bitrate": 1000}),
        (".mp4", {"quality": 11}),
        (".mp4", {"quality": -1}),
        (".mp4", {"bitrate": 0}),
    ],
)
def test_options_that_a_format_cannot_honour_are_refused(tmp_path, suffix, options):
    assert code_of(InputError, write_clip, clip(2), tmp_path / f"x{suffix}", 8, **options) == "E-OUTPUT-QUALITY"


def test_existing_files_are_kept_unless_told(tmp_path):
    path = tmp_path / "clip.gif"
    path.write_bytes(b"precious")
    assert code_of(OutputError, write_clip, clip(2), path, 8) == "E-OUTPUT-EXISTS"
    assert code_of(OutputError, check_output, path) == "E-OUTPUT-EXISTS"
    assert path.read_bytes() == b"precious"
    assert check_output(path, overwrite=True) == path
    write_clip(clip(2), path, 8, overwrite=True)
    assert probe(path).num_frames == 2


def test_a_clip_is_put_in_place_by_renaming(tmp_path):
    path = write_clip(clip(2), tmp_path / "clip.gif", 8)
    os.link(path, tmp_path / "kept.gif")  # the old file itself, under a second name
    write_clip(clip(5), path, 8, overwrite=True)
    assert probe(path).num_frames == 5
    assert probe(tmp_path / "kept.gif").num_frames == 2


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "clip.gif"
    original = encode.gif

    def slow(*args):
        original(*args)
        path.write_bytes(b"someone else's")

    monkeypatch.setattr(encode, "gif", slow)
    assert code_of(OutputError, write_clip, clip(2), path, 8) == "E-OUTPUT-EXISTS"
    assert path.read_bytes() == b"someone else's"
    assert left_in(tmp_path) == {"clip.gif"}


def test_missing_folders_are_refused(tmp_path):
    for path in (tmp_path / "none" / "x.mp4", f"{tmp_path}/none/frames/"):
        assert code_of(OutputError, write_clip, clip(2), path, 8) == "E-OUTPUT-FOLDER"
        assert code_of(OutputError, check_output, path) == "E-OUTPUT-FOLDER"
    (tmp_path / "file").write_text("")
    assert code_of(OutputError, check_output, tmp_path / "file" / "x.mp4") == "E-OUTPUT-FOLDER"
    (tmp_path / "x.mp4").mkdir()
    (tmp_path / "x.mp4" / "y").write_text("")
    assert code_of(OutputError, check_output, tmp_path / "x.mp4", overwrite=True) == "E-OUTPUT-EXISTS"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bug")])
@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".apng"])
def test_a_failure_halfway_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, suffix, error):
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"the old clip")
    reached = []
    original = av.VideoFrame.from_ndarray

    def failing(*args, **kwargs):
        reached.append(1)
        if len(reached) == 4:
            raise error
        return original(*args, **kwargs)

    class Frame:
        from_ndarray = staticmethod(failing)

    monkeypatch.setattr(encode, "VideoFrame", Frame)
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        write_clip(clip(), path, 8, recipe={"vivant": 1}, overwrite=True)
    if isinstance(error, OSError):
        assert caught.value.code == "E-OUTPUT-WRITE"
        assert "No space left" in str(caught.value)
    assert len(reached) == 4
    assert left_in(tmp_path) == {path.name}
    assert path.read_bytes() == b"the old clip"


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    def denied(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_bytes", denied)
    assert code_of(OutputError, write_clip, clip(2), tmp_path / "x.gif", 8) == "E-OUTPUT-WRITE"
    assert left_in(tmp_path) == set()


def test_a_film_into_a_folder_that_vanishes(tmp_path, monkeypatch):
    folder = tmp_path / "brief"
    folder.mkdir()
    original = encode.Film

    def late(*args):
        folder.rmdir()
        return original(*args)

    monkeypatch.setattr(encode, "Film", late)
    assert code_of(OutputError, write_clip, clip(2), folder / "x.mp4", 8) == "E-OUTPUT-WRITE"


def test_a_codec_that_is_not_built_in(tmp_path, monkeypatch):
    original = encode._stream
    monkeypatch.setattr(encode, "_stream", lambda out, codec, *rest: original(out, "no_such_codec", *rest))
    assert code_of(OutputError, write_clip, clip(2), tmp_path / "x.mp4", 8) == "E-OUTPUT-CODEC"
    assert left_in(tmp_path) == set()


def test_links_are_written_through_and_rights_follow_the_umask(tmp_path):
    target, link = tmp_path / "real.gif", tmp_path / "link.gif"
    old = os.umask(0o027)
    try:
        write_clip(clip(2), target, 8)
    finally:
        os.umask(old)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    link.symlink_to(target)
    write_clip(clip(3), link, 8, overwrite=True)
    assert link.is_symlink()
    assert probe(target).num_frames == 3


# --- reading what is damaged -------------------------------------------------------------------------------------


def test_missing_and_foreign_files(tmp_path):
    assert code_of(LoadError, read_clip, tmp_path / "none.mp4") == "E-CLIP-MISSING"
    assert code_of(LoadError, probe, tmp_path / "none.mp4") == "E-CLIP-MISSING"
    assert code_of(LoadError, probe, tmp_path) == "E-CLIP-FORMAT"
    (tmp_path / "empty.mp4").write_bytes(b"")
    assert code_of(LoadError, probe, tmp_path / "empty.mp4") == "E-CLIP-FORMAT"


@pytest.mark.parametrize("suffix", [*FILM, *ANIMATIONS])
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_cut_files_are_refused_or_shorter(tmp_path, suffix, share):
    path = write_clip(clip(), tmp_path / f"clip{suffix}", 8)
    content = path.read_bytes()
    path.write_bytes(content[: max(20, int(len(content) * share))])
    try:
        num_frames = len(read_clip(path)[0])
    except LoadError as error:
        num_frames = 0 if error.code == "E-CLIP-BROKEN" else 7
    assert num_frames < 7


def test_large_clips_are_refused(tmp_path, monkeypatch):
    path = write_clip(clip(), tmp_path / "clip.mp4", 8)
    monkeypatch.setattr("vivant.media.decode.MAX_FRAME_PIXELS", 96 * 64 - 1)
    assert code_of(LoadError, read_clip, path) == "E-CLIP-SIZE"
    monkeypatch.undo()
    monkeypatch.setattr("vivant.media.decode.MAX_CLIP_BYTES", 5 * 96 * 64 * 3)
    assert code_of(LoadError, read_clip, path) == "E-CLIP-SIZE"
