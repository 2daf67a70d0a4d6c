"""The drawn world: scenes, their motions, their words, and the data sets made of them."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vivant.pocket.world import (
    CAMERA_MOTIONS,
    COLOURS,
    GROUNDS,
    KINDS,
    MAGNITUDES,
    MOTIONS,
    PHOTO_MOTIONS,
    STYLES,
    DrawnClips,
    Scene,
    caption,
    mask,
    painter,
    photo_caption,
    photo_clip,
    render,
    sample_scene,
    vocabulary,
)

F = 7
SIZE = 64
HALF = SIZE / 2
THING_MOTIONS = [motion for motion in MOTIONS if motion not in CAMERA_MOTIONS]


def scene(seed: int = 0, **given: Any) -> Scene:
    return sample_scene(np.random.default_rng(seed), **given)


def moved(scene: Scene, **changes: Any) -> Scene:
    """The scene with its main thing changed."""
    return replace(scene, main=replace(scene.main, **changes))


def masks(scene: Scene) -> np.ndarray:
    return mask(scene, F, SIZE).astype(np.float64)


def centres(scene: Scene) -> np.ndarray:
    """Where the main thing is in each frame: x and y in pixels from the middle of the picture."""
    m = masks(scene)
    axis = np.arange(SIZE) + 0.5 - HALF
    return np.stack([(m * axis).sum((1, 2)), (m * axis[:, None]).sum((1, 2))], axis=1) / m.sum((1, 2))[:, None]


def tilts(scene: Scene) -> np.ndarray:
    """How far the main thing has turned since the first frame, in degrees clockwise, by its longest axis."""
    m = masks(scene)
    axis = np.arange(SIZE) + 0.5 - HALF
    x, y = (v[:, None, None] for v in centres(scene).T)
    dx, dy = axis - x, axis[:, None] - y
    angle = np.arctan2(2 * (m * dx * dy).sum((1, 2)), (m * (dx**2 - dy**2)).sum((1, 2))) / 2
    return np.degrees(np.unwrap(angle, period=np.pi) - angle[0])


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for rounding: the largest difference is a few of 255 levels, and hardly any pixel has one."""
    difference = np.abs(a.astype(int) - b.astype(int))
    return bool(difference.max() <= 6 and difference.mean() < 0.05)


def bright(pixels: np.ndarray) -> float:
    return float(pixels.mean()) / 255


def test_a_seed_decides_everything_and_nothing_else_does():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = scene(3), caption(scene(3), np.random.default_rng(5)), render(scene(3), F, SIZE)
    np.random.seed(2)
    second = scene(3), caption(scene(3), np.random.default_rng(5)), render(scene(3), F, SIZE)
    assert first[:2] == second[:2]
    assert np.array_equal(first[2], second[2])
    np.random.seed(1)
    assert np.array_equal(before, np.random.get_state()[1])
    assert len({scene(seed) for seed in range(50)}) == 50


def test_every_choice_is_even():
    scenes = [scene(seed) for seed in range(2400)]
    for name, expected in (("style", STYLES), ("motion", MOTIONS), ("magnitude", MAGNITUDES)):
        _assert_even(Counter(getattr(s, name) for s in scenes), expected, len(scenes))
    for name, expected in (("kind", KINDS), ("colour", COLOURS), ("size", ("small", "medium", "large"))):
        _assert_even(Counter(getattr(s.main, name) for s in scenes), expected, len(scenes))
    still_camera = [s for s in scenes if s.motion not in CAMERA_MOTIONS]
    _assert_even(Counter(s.ground for s in still_camera), GROUNDS, len(still_camera))
    assert 0.3 < np.mean([s.second is not None for s in scenes]) < 0.4


def _assert_even(counts: Counter[str], expected: tuple[str, ...], num: int) -> None:
    assert set(counts) == set(expected)
    mean = num / len(expected)
    assert all(abs(count - mean) < 4.5 * mean**0.5 for count in counts.values()), counts


def test_what_is_given_is_kept():
    given: dict[str, Any] = {"style": "neon", "ground": "sea", "tone": "green", "motion": "turn", "magnitude": "large"}
    drawn = scene(1, kind="fish", colour="red", size="small", has_second=True, **given)
    assert {name: getattr(drawn, name) for name in given} == given
    assert (drawn.main.kind, drawn.main.colour, drawn.main.size) == ("fish", "red", "small")
    assert drawn.second is not None
    assert scene(1, has_second=False).second is None
    assert scene(1, ground="night", tone="pink", has_second=True).second is not None  # a tone that no draw gives


def test_a_style_changes_nothing_else():
    for seed in range(20):
        assert replace(scene(seed, style="paper"), style="neon") == scene(seed, style="neon")
        assert replace(scene(seed), style="neon") == scene(seed, style="neon")


def test_things_stand_out_from_the_ground_and_from_each_other():
    for seed in range(300):
        s = scene(seed, has_second=True)
        assert s.second is not None
        assert s.tone not in (s.main.colour, s.second.colour)
        assert s.main.kind != s.second.kind
        assert s.main.colour != s.second.colour
        assert s.second.radius < s.main.radius


def test_things_that_go_sideways_look_where_they_go():
    for seed in range(20):
        assert scene(seed, motion="left").main.faces_left
        assert not scene(seed, motion="right").main.faces_left
    fish = scene(0, kind="fish", motion="still")
    assert not np.allclose(masks(moved(fish, faces_left=True)), masks(moved(fish, faces_left=False)))


@pytest.mark.parametrize(
    ("motion", "direction"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))]
)
@pytest.mark.parametrize(("magnitude", "travel"), [("small", 0.3), ("moderate", 0.6), ("large", 0.95)])
def test_things_go_where_the_motion_says(motion, direction, magnitude, travel):
    for seed in range(4):
        s = scene(seed, motion=motion, magnitude=magnitude, size="small")
        steps = np.diff(centres(s), axis=0)
        expected = np.array(direction) * travel * HALF / (F - 1)
        assert np.allclose(steps, expected, atol=0.12)
        assert np.allclose(masks(s).sum((1, 2)), masks(s)[0].sum(), rtol=0.01)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_growing_and_shrinking_are_steady_and_in_place(magnitude):
    growth = {"small": 1.2, "moderate": 1.45, "large": 1.7}[magnitude]
    for motion, factor in (("growing", growth), ("shrinking", 1 / growth)):
        s = moved(scene(1, motion=motion, magnitude=magnitude, size="medium", kind="heart"), x=0.0, y=0.0, angle=0.0)
        areas = masks(s).sum((1, 2))
        assert np.all(np.diff(areas) > 0) if factor > 1 else np.all(np.diff(areas) < 0)
        assert areas[-1] / areas[0] == pytest.approx(factor**2, rel=0.02)
        assert np.abs(centres(s)[:, 0]).max() < 0.05
        assert np.abs(tilts(s)).max() < 1


@pytest.mark.parametrize(("magnitude", "spin", "roll"), [("small", 30, 12), ("moderate", 60, 25), ("large", 110, 45)])
def test_turning_goes_round_in_the_direction_named(magnitude, spin, roll):
    for motion, degrees in (("clockwise", spin), ("counterclockwise", -spin), ("turn", roll)):
        s = moved(scene(1, motion=motion, magnitude=magnitude, size="medium", kind="fish"), x=0.3, y=-0.1)
        assert tilts(s) == pytest.approx(np.linspace(0, degrees, F), abs=1.5)
        x, y = centres(s).T
        round_middle = np.degrees(np.arctan2(y, x) - np.arctan2(y[0], x[0]))[-1]
        assert round_middle == pytest.approx(degrees if motion == "turn" else 0, abs=6)


@pytest.mark.parametrize(("magnitude", "height"), [("small", 0.3), ("moderate", 0.55), ("large", 0.85)])
def test_bouncing_goes_down_up_and_down_again(magnitude, height):
    s = scene(2, motion="bouncing", magnitude=magnitude, size="small", kind="ball")
    x, y = (centres(s) - centres(s)[0]).T
    assert np.abs(x).max() < 0.05
    assert y[[0, 4]] == pytest.approx(0, abs=0.05)
    # On the floor (frames 2 and 6 of 0 to 6) it is flatter, so that its middle is lower.
    assert y[[2, 6]] == pytest.approx((height + 0.2 * 0.3) * HALF, abs=0.3)
    areas = masks(s).sum((1, 2))
    assert areas[2] == pytest.approx(0.8 * areas[0], rel=0.02)


def test_still_is_still():
    for seed in range(6):
        frames = render(scene(seed, motion="still"), F, SIZE)
        assert all(np.array_equal(frame, frames[0]) for frame in frames)


@pytest.mark.parametrize("motion", [motion for motion in MOTIONS if motion != "still"])
def test_everything_else_moves_by_its_magnitude(motion):
    """Measured by how much the mask of a thing changes from frame to frame, all frames together."""
    x = {"left": 0.45, "pan right": 0.45, "right": -0.45, "pan left": -0.45}.get(motion, 0.2)
    y = {"up": 0.45, "down": -0.45, "bouncing": -0.45}.get(motion, 0.0)
    changes = []
    for magnitude in MAGNITUDES:
        s = moved(scene(5, motion=motion, magnitude=magnitude, size="medium", kind="fish"), x=x, y=y)
        changes.append(np.abs(np.diff(masks(s), axis=0)).sum())
    assert changes[0] > 40
    assert changes[1] > 1.1 * changes[0]
    assert changes[2] > 1.1 * changes[1]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("motion", THING_MOTIONS)
def test_the_ground_stays_while_things_move(style, motion):
    s = scene(3, style=style, motion=motion, size="small", magnitude="moderate", has_second=True)
    frames = render(s, F, SIZE)
    reach = np.zeros((SIZE, SIZE), bool)
    for y, x in np.argwhere(masks(s).max(0) > 0):
        reach[max(0, y - 12) : y + 13, max(0, x - 12) : x + 13] = True
    assert not reach.all()
    assert np.array_equal(frames[:, ~reach], np.broadcast_to(frames[0, ~reach], frames[:, ~reach].shape))
    assert np.array_equal(frames[0], frames[-1]) == (motion == "still")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("ground", GROUNDS[1:])
def test_the_camera_moves_everything_and_nothing_else(style, ground):
    """Against stills of the same scene in which the camera's move is a cut, so that pixels fall on pixels."""
    s = scene(4, style=style, ground=ground, magnitude="small", has_second=True, size="medium", motion="still")
    wide, narrow = 96, 80  # 1.2, the growth of a small zoom
    inner = slice((wide - narrow) // 2, (wide + narrow) // 2)
    far, near = (render(s, 1, size)[0] for size in (wide, narrow))
    assert close(render(replace(s, motion="zoom in"), F, narrow)[-1], far[inner, inner])
    assert close(render(replace(s, motion="zoom out"), F, wide)[-1][inner, inner], near)
    shift = 12  # 0.3 of half the picture
    assert close(render(replace(s, motion="pan left"), F, narrow)[-1][:, shift:], near[:, :-shift])
    assert close(render(replace(s, motion="pan right"), F, narrow)[-1][:, :-shift], near[:, shift:])
    assert not close(near[:, shift:], near[:, :-shift])


def test_the_first_frame_of_every_motion_is_the_still():
    s = scene(6, motion="still", ground="hills", has_second=True)
    still = render(s, 1, SIZE)
    assert still.shape == (1, SIZE, SIZE, 3)
    for motion in MOTIONS:
        assert close(render(replace(s, motion=motion), F, SIZE)[0], still[0])


def test_more_frames_are_finer_not_longer():
    s = scene(7, motion="right", magnitude="large")
    assert close(render(s, 2, SIZE)[-1], render(s, 9, SIZE)[-1])


def test_a_longer_side_shows_more_ground():
    for style in STYLES:
        s = scene(8, style=style, motion="zoom out", has_second=True)
        square, wide, tall = (render(s, F, size) for size in (64, (64, 96), (80, 64)))
        assert wide.shape == (F, 64, 96, 3)
        assert close(wide[:, :, 16:80], square)
        assert close(tall[:, 8:72], square)


def test_the_main_thing_can_be_seen_in_every_frame():
    for seed in range(200):
        s = scene(seed)
        whole = mask(moved(replace(s, motion="still"), x=0.0, y=0.0), 1, SIZE).sum()
        scale = {"growing": 1, "zoom in": 1, "shrinking": -1, "zoom out": -1}.get(s.motion, 0)
        growth = {"small": 1.2, "moderate": 1.45, "large": 1.7}[s.magnitude] ** scale
        expected = whole * growth ** (2 * np.linspace(0, 1, F))
        lost = 0.25 if s.motion == "bouncing" else 0.1  # it is flat when it lands
        assert np.all(masks(s).sum((1, 2)) > (1 - lost) * expected), (seed, s)


@pytest.mark.parametrize("style", STYLES)
def test_the_mask_is_where_the_main_thing_is_painted(style):
    s = moved(
        scene(9, style=style, kind="star", colour="red", tone="blue", ground="plain", motion="still"), x=0.2, y=0.1
    )
    other = moved(s, colour="green")
    differs = (render(s, 1, SIZE)[0].astype(int) - render(other, 1, SIZE)[0]).any(-1)
    inside = mask(s, 1, SIZE)[0] > 0.9
    assert inside.sum() > 100
    assert differs[inside].all()


@pytest.mark.parametrize("style", STYLES)
def test_no_shadow_and_no_light_is_cut_off(style, monkeypatch):
    scenes = [scene(seed, style=style, has_second=True) for seed in range(40)]
    before = [render(s, F, SIZE) for s in scenes]
    monkeypatch.setattr(painter, "REACH", 9)
    for s, frames in zip(scenes, before, strict=True):
        assert np.array_equal(render(s, F, SIZE), frames)


@pytest.mark.parametrize("style", STYLES)
def test_colours_are_clearly_distinct(style):
    shown = {}
    for colour in COLOURS:
        s = scene(9, style=style, kind="square", colour=colour, tone="green", ground="plain", motion="still")
        shown[colour] = render(s, 1, SIZE)[0][mask(s, 1, SIZE)[0] > 0.99].mean(0)
    pairs = [(a, b) for a in COLOURS for b in COLOURS if a < b]
    assert min(np.abs(shown[a] - shown[b]).sum() for a, b in pairs) > 25
    assert shown["red"].argmax() == 0
    assert shown["green"].argmax() == 1
    assert shown["blue"].argmax() == 2
    assert np.ptp(shown["white"]) < 16


def test_nobody_would_confuse_the_styles():
    for seed in range(20):
        s = scene(seed, ground="hills", motion="still")
        paper, neon = (bright(render(replace(s, style=style), 1, SIZE)) for style in STYLES)
        assert paper > 0.5
        assert neon < 0.35


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_own_shape(kind):
    s = moved(scene(9, motion="still", size="large", kind=kind), x=0.0, y=0.0, angle=0.0, faces_left=False)
    shape = mask(s, 1, SIZE)
    assert 150 < shape.sum() < 1000
    for other in KINDS:
        if other != kind:
            assert np.abs(shape - mask(moved(s, kind=other), 1, SIZE)).sum() > 0.12 * shape.sum()


def test_captions_name_what_is_seen_in_few_words():
    words = set(vocabulary())
    assert len(words) == len(vocabulary()) < 150
    for seed in range(300):
        s = scene(seed)
        for text in (caption(s), caption(s, np.random.default_rng(seed)), caption(s, with_motion=False)):
            assert set(text.replace(",", "").split()) <= words, text
            assert f"{s.main.colour} {s.main.kind}" in text
            assert s.second is None or f"{s.second.colour} {s.second.kind}" in text
            assert s.style in text or "paper" in text
            assert "  " not in text
            assert ", ," not in text
            assert not text.startswith(",")
        assert s.main.size in caption(s)
        assert s.tone in caption(s)


def test_the_canonical_caption():
    s = replace(scene(1, has_second=False), style="paper", ground="hills", tone="blue", magnitude="moderate")
    s = moved(s, kind="star", colour="red", size="small")
    assert caption(replace(s, motion="left")) == "a small red star moving left over blue hills, paper cut"
    assert caption(replace(s, motion="left", magnitude="large")).startswith("a small red star moving left a lot over")
    assert caption(replace(s, motion="zoom in")) == "a small red star over blue hills, camera zooms in, paper cut"
    assert caption(s, with_motion=False) == "a small red star over blue hills, paper cut"
    assert photo_caption("zoom in", "moderate") == "a photo, camera zooms in"
    assert photo_caption("zoom in", "moderate", with_motion=False) == "a photo"


def test_photos_are_named_by_words_that_nobody_knows_or_not_at_all():
    captions = [photo_caption("zoom in", "moderate", np.random.default_rng(seed)) for seed in range(300)]
    known = set(vocabulary())
    unknown = [set(text.replace(",", "").split()) - known for text in captions]
    assert max(map(len, unknown)) == 1
    assert len(set().union(*unknown)) > 100
    assert "zoom in" in captions
    assert not any(text.startswith((",", " ")) or "  " in text for text in captions)


def test_captions_are_varied_and_tell_motions_apart():
    s = scene(1, motion="left")
    texts = {caption(s, np.random.default_rng(seed)) for seed in range(200)}
    assert len(texts) > 60
    assert all("left" in text and "right" not in text for text in texts)
    assert {caption(replace(s, motion=motion)) for motion in MOTIONS} >= {caption(s)}
    assert len({caption(replace(s, motion=motion)) for motion in MOTIONS}) == len(MOTIONS)
    stills = {caption(s, np.random.default_rng(seed), with_motion=False) for seed in range(100)}
    assert not any("left" in text or "camera" in text for text in stills)


def test_clips_depend_on_their_index_and_split_alone():
    clips = DrawnClips(40, F, SIZE)
    assert len(clips) == 40
    again = DrawnClips(1000, 1, 128)
    assert [clips.scene(i) for i in range(40)] == [again.scene(i) for i in range(40)]
    one, two = (clips.read(3, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(one.pixels, two.pixels)
    assert one.caption == two.caption
    assert one.scene == clips.scene(3)
    assert np.array_equal(one.pixels, render(one.scene, F, SIZE))
    assert len({clips.read(3, np.random.default_rng(seed)).caption for seed in range(20)}) > 5
    with pytest.raises(IndexError, match="40"):
        clips.scene(40)


def test_held_out_scenes_are_new():
    train, held_out = (
        {replace(s, style="paper") for i in range(500) if (s := DrawnClips(500, F, SIZE, split=split).scene(i))}
        for split in ("train", "held out")
    )
    assert len(train) == len(held_out) == 500
    assert not train & held_out
    places = [{(s.main.x, s.main.y) for s in scenes} for scenes in (train, held_out)]
    assert not places[0] & places[1]


def test_sets_of_one_style_show_the_same_scenes():
    paper, neon = (DrawnClips(20, F, SIZE, style=style) for style in STYLES)
    for i in range(20):
        assert replace(paper.scene(i), style="neon") == neon.scene(i)


def test_stills_tell_no_motion():
    for i in range(30):
        clip = DrawnClips(30, 1, SIZE, photos=(photo(),)).read(i, np.random.default_rng(i))
        assert clip.pixels.shape == (1, SIZE, SIZE, 3)
        assert not {"camera", "moving", "turning", "growing"} & set(clip.caption.replace(",", "").split())


def photo(h: int = 150, w: int = 210) -> np.ndarray:
    """A slope from left to right in red, an equal one from top to bottom in green, and white in blue."""
    x, y = np.meshgrid(np.arange(w), np.arange(h))
    return np.stack([x, y, np.full_like(x, 255)], axis=-1).astype(np.uint8)


def slopes(frame: np.ndarray) -> np.ndarray:
    """How much redder (first row) and greener a pixel is than its left (first column) and its upper neighbour."""
    red_green = frame[..., :2].astype(float)
    return np.stack([np.diff(red_green, axis=axis).mean((0, 1)) for axis in (1, 0)], axis=1)


@pytest.mark.parametrize("motion", PHOTO_MOTIONS)
@pytest.mark.parametrize("size", [(64, 64), (48, 72)])
def test_the_camera_moves_over_photos_as_over_scenes(motion, size):
    for seed in range(8):
        clip = photo_clip(photo(), np.random.default_rng(seed), motion, F, size, "large")
        assert clip.scene is None
        assert clip.pixels.shape == (F, *size, 3)
        assert clip.pixels.dtype == np.uint8
        assert clip.pixels[..., 2].min() > 252, "the camera left the photo"
        assert len(set(clip.caption.replace(",", "").split()) - set(vocabulary())) <= 1  # a made-up name
        first, last = clip.pixels[0], clip.pixels[-1]
        middles = clip.pixels[:, size[0] // 2 - 1 : size[0] // 2 + 1, size[1] // 2 - 1 : size[1] // 2 + 1, :2]
        way = np.diff(middles.astype(float).mean((1, 2)), axis=0)
        slope = slopes(first)[0, 0]
        assert slopes(first) == pytest.approx(slope * np.eye(2), abs=0.05 * slope)
        expected = {"pan left": -0.95, "pan right": 0.95}.get(motion, 0) * min(size) / 2 * slope / (F - 1)
        assert way[:, 0] == pytest.approx(expected, abs=1.6)  # of 255 levels
        assert way[:, 1] == pytest.approx(0, abs=1.6)  # of 255 levels
        zoom = {"zoom in": 1.7, "zoom out": 1 / 1.7}.get(motion, 1)
        turn = np.radians(45 if motion == "turn" else 0)
        turned = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        assert slopes(last) == pytest.approx(slope / zoom * turned, abs=0.08 * slope)
        if motion == "still":
            assert np.array_equal(first, last)


@pytest.mark.parametrize("stripe", [1, 2])
@pytest.mark.parametrize("motion", ["zoom out", "turn", "pan left"])
def test_photos_are_not_aliased(motion, stripe):
    """Stripes finer than a pixel are nearly grey; taken at points they would have a deviation of 128."""
    stripes = np.zeros((600, 600, 3), np.uint8)
    stripes[:, np.arange(600) // stripe % 2 == 0] = 255
    for seed in range(4):
        frames = photo_clip(stripes, np.random.default_rng(seed), motion, F, SIZE, "large").pixels
        assert frames[-1].mean() == pytest.approx(127.5, abs=3)
        assert frames[-1].std() < 20


def test_photos_take_their_share_of_a_set():
    clips = DrawnClips(200, 2, 16, photos=(photo(), 255 - photo()))
    photos = [i for i in range(200) if clips.scene(i) is None]
    assert 30 < len(photos) < 70
    assert all(DrawnClips(200, 2, 16).scene(i) is not None for i in photos)
    assert all(clips.read(i, np.random.default_rng(0)).scene is None for i in photos)
    assert all(clips.read(i, np.random.default_rng(0)).scene == clips.scene(i) for i in range(10))


def test_photos_have_no_things_that_move():
    with pytest.raises(ValueError, match="left"):
        photo_clip(photo(), np.random.default_rng(0), "left", F, SIZE)
