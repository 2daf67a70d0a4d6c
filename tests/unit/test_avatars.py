"""The drawn world of people: who they are, what they do, and that pictures say it and sentences do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vivant.faces.align import CROP_POINTS, least_squares
from vivant.pocket.avatars import (
    ACTIONS,
    PARTS,
    TRAITS,
    Avatar,
    AvatarClips,
    Setting,
    act,
    aligned,
    cut_out,
    places,
    sample_avatar,
    sample_setting,
    sample_still,
    sentence,
    square,
    still,
    vocabulary,
)

PLAIN = Setting("plain", "yellow", "green")
FACE, HAIR = PARTS.index("face"), PARTS.index("hair")
AVATAR = Avatar(
    "porcelain", "black", "short", "blue", "oval", "thin", "small", "red", "none", "none", "plain", 0.8, 0.34
)


def clip(index: int, seed: int = 0, **changes):
    return AvatarClips(40, **changes).read(index, np.random.default_rng(seed))


def test_clips_are_the_same_whenever_they_are_read():
    one, other = clip(3), clip(3)
    assert one.caption == other.caption
    for name in ("pixels", "face", "crop", "portrait"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert one.pixels.shape == (9, 64, 64, 3)
    assert not np.array_equal(one.pixels, clip(4).pixels)


def test_the_generator_chooses_words_and_the_other_picture_only():
    one, other = clip(3, crosses=1.0), clip(3, seed=1, crosses=1.0)
    assert np.array_equal(one.pixels, other.pixels)
    assert one.caption != other.caption
    assert not np.array_equal(one.crop, other.crop)
    with pytest.raises(IndexError):
        clip(40)


def test_no_combination_of_traits_is_in_both_splits():
    rng = np.random.default_rng(0)
    drawn = [sample_avatar(rng) for _ in range(2000)]
    held_out = [avatar for avatar in drawn if avatar.split == "held out"]
    assert 180 < len(held_out) < 320  # an eighth
    assert all(replace(avatar, width=0.7, eye_gap=0.3).split == avatar.split for avatar in drawn)
    for split in ("train", "held out"):
        assert {clip(i, split=split).avatar.split for i in range(10)} == {split}


def test_traits_are_drawn_evenly():
    rng = np.random.default_rng(1)
    indices = np.array([sample_avatar(rng, "train").indices for _ in range(3000)])
    for column, (name, options) in zip(indices.T, TRAITS.items(), strict=True):
        shares = np.bincount(column, minlength=len(options)) / len(column)
        wanted = np.full(len(options), 1 / len(options))
        if name in ("glasses", "beard"):
            wanted[:] = 0.5 / (len(options) - 1)
            wanted[0] = 0.5
        assert np.abs(shares - wanted).max() < 0.05, name


@pytest.mark.parametrize("name", TRAITS)
def test_every_trait_is_seen_in_the_head_and_nowhere_else(name):
    first = square(AVATAR, still(), PLAIN, 64)
    seen = []
    for option in TRAITS[name]:
        drawn = square(replace(AVATAR, **{name: option}), still(), PLAIN, 64)
        seen.append(drawn.pixels.tobytes())
        changed = (drawn.pixels != first.pixels).any(-1)[0]
        assert not changed[:, :8].any()  # the ground beside the head
        if option != getattr(AVATAR, name):
            assert 6 <= changed.sum() < 2600, option
    assert len(set(seen)) == len(TRAITS[name])


@pytest.mark.parametrize(
    "turn", [{}, {"yaw": 0.4}, {"roll": 0.25}, {"x": 0.2, "y": -0.1, "scale": 0.4}, {"pitch": -0.25}]
)
def test_points_are_where_the_features_are_drawn(turn):
    """The pupils are dark, and the white of the eyes is beside them."""
    pose, size = still(**turn), 256
    pixels = square(replace(AVATAR, eyes="brown"), pose, PLAIN, size).pixels[0].astype(int)
    points = (places(pose, AVATAR.eye_gap)[0] + 1) * size / 2
    scale = float(pose.scale[0]) * size / 2
    for x, y in points[:2]:
        assert pixels[round(y), round(x)].max() < 100
        assert pixels[round(y), round(x - 0.13 * scale)].min() > 150
    left, right = points[3:]
    mouth = pixels[round(points[3:, 1].mean()), round((left[0] + right[0]) / 2)]
    assert mouth[0] > mouth[1] + 60  # red lips
    assert 0.4 * scale < right[0] - left[0] < 0.6 * scale


def test_aligned_crops_have_the_face_where_networks_expect_it():
    pose = sample_still(np.random.default_rng(3))
    upright = least_squares(torch.from_numpy(places(pose, AVATAR.eye_gap)[0]), torch.tensor(CROP_POINTS))
    assert abs(abs(upright.a) / 512) > 0.1
    crop = aligned(AVATAR, replace(pose, closing=np.zeros(1, np.float32)), PLAIN, 256, "crop")
    middle = crop.pixels[0].astype(int)
    dark = [
        middle[round(y / 2) - 6 : round(y / 2) + 7, round(x / 2) - 6 : round(x / 2) + 7].max(-1).min()
        for x, y in CROP_POINTS[:2]
    ]
    assert max(dark) < 90
    assert (crop.labels[0, 100:200, 100:156] == FACE).mean() > 0.95
    cut = cut_out(crop)
    outside = ~np.isin(crop.labels[0], (FACE, HAIR))
    assert outside.any()
    assert (cut[outside] == 255).all()
    assert np.array_equal(cut[~outside], crop.pixels[0][~outside])


def test_a_picture_in_other_light_is_of_the_same_person():
    """Cross-face: another pose, light, ground and shirt; without it, a frame of the clip."""
    crosses, frames = clip(5, crosses=1.0), clip(5, crosses=0.0)
    assert crosses.avatar == frames.avatar
    own = np.concatenate([frames.crop.reshape(-1, 3)]).mean(0)
    assert np.abs(own - crosses.crop.reshape(-1, 3).mean(0)).max() < 60
    assert not np.array_equal(crosses.crop, frames.crop)


def test_actions_are_what_they_are_called():
    tracks = {action: act(action, 9) for action in ACTIONS}
    assert tracks["look left"].yaw[-1] < -0.4 < -0.1 < tracks["look left"].yaw[0]
    assert np.array_equal(tracks["look right"].yaw, -tracks["look left"].yaw)
    assert tracks["nod"].pitch.max() > 0.3 > -0.3 > tracks["nod"].pitch.min()
    assert tracks["shake"].yaw.max() > 0.4
    assert tracks["shake"].yaw.min() < -0.4
    assert tracks["smile"].smile[0] == 0
    assert tracks["smile"].smile[-1] == 1
    assert tracks["talk"].opening.max() > 0.9
    assert np.isnan(tracks["nod"].hand).all()
    assert np.ptp(tracks["wave"].hand) > 0.4
    films = [square(AVATAR, pose, PLAIN, 64).pixels.astype(int) for pose in tracks.values()]
    for i, film in enumerate(films):
        assert np.abs(film[0] - film[2:]).max() > 50  # it is seen
        assert all(np.abs(film - other).mean() > 0.3 for other in films[:i])


def test_sentences_tell_action_shirt_and_ground_but_not_who_it_is():
    rng, known = np.random.default_rng(2), set(vocabulary())
    for i in range(200):
        setting, action = sample_setting(rng), ACTIONS[i % len(ACTIONS)]
        assert set(sentence(action, setting, rng).split()) <= known
    assert sentence("nod", PLAIN) == "a person in a green shirt nods on plain yellow"
    said = {name for options in TRAITS.values() for name in options} & known
    assert said <= {
        "white",
        "blue",
        "green",
        "pink",
        "purple",
        "none",
        "plain",
        "red",
        "small",
    }  # of grounds and shirts


def test_what_is_in_front_covers_what_is_behind():
    painted = square(replace(AVATAR, hair="long"), still(), PLAIN, 64)
    shares = [float((painted.labels == i).mean()) for i in range(len(PARTS))]
    assert all(share > 0.01 for share in shares), shares
    assert painted.labels[0, 30, 32] == FACE
    assert painted.labels[0, 18, 32] == HAIR
    assert (painted.labels[0, 60:, 20:44] == PARTS.index("cloth")).mean() > 0.9
