"""Condition pictures: every way to give them, and how they get the clip's size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vivant.errors import InputError, VivantWarning
from vivant.media.pictures import num_pictures, pictures
from vivant.media.still import fit, to_tensor

H, W = 24, 40


def pixels(seed: int = 1, size: tuple[int, int] = (H, W)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def floats(seed: int = 1, size: tuple[int, int] = (H, W)) -> torch.Tensor:
    return torch.from_numpy(pixels(seed, size)).permute(2, 0, 1) / 255


def read(source: Any, how: Any = "crop") -> torch.Tensor:
    return pictures(source, H, W, how)


def test_every_way_to_give_a_picture_is_the_same(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(pixels()).save(path)
    expected = to_tensor(Image.fromarray(pixels()))
    assert expected.shape == (1, 3, H, W)
    assert expected.min() < -0.9
    assert expected.max() > 0.9
    tensor = floats()
    ways = [path, str(path), path.read_bytes(), Image.fromarray(pixels()), pixels(), pixels() / 255, tensor]
    ways += [(pixels() / 255).astype(np.float32), torch.from_numpy(pixels()).permute(2, 0, 1), tensor.double()]
    for way in ways:
        assert torch.equal(read(way), expected)
        assert torch.equal(read([way]), expected)
        assert torch.equal(read((way, way)), expected.expand(2, -1, -1, -1))
        assert num_pictures(way) == 1
        assert num_pictures([way, way]) == 2


@pytest.mark.parametrize("kind", [np.uint8, np.float32, torch.uint8, torch.float32])
def test_batches_are_taken_apart(kind):
    array = np.stack([pixels(s) for s in (1, 2, 3)])
    batch: Any = array if kind == np.uint8 else (array / 255).astype(np.float32)
    if isinstance(kind, torch.dtype):
        batch = torch.from_numpy(array).permute(0, 3, 1, 2)
        batch = batch / 255 if kind == torch.float32 else batch
    expected = torch.cat([to_tensor(Image.fromarray(pixels(s))) for s in (1, 2, 3)])
    assert torch.equal(read(batch), expected)
    assert torch.equal(read([batch[0], batch[1:]]), expected)
    assert num_pictures(batch) == 3
    assert num_pictures([batch[0], batch[1:]]) == 3


def test_kinds_may_be_mixed():
    mixed = read([Image.fromarray(pixels(1)), pixels(2), floats(3)])
    assert torch.equal(mixed, torch.cat([to_tensor(Image.fromarray(pixels(s))) for s in (1, 2, 3)]))


def test_floats_of_the_right_size_are_not_rounded():
    fine = floats() * 0.999 + 0.0003
    assert torch.equal(read(fine), fine[None] * 2 - 1)
    assert not torch.equal(read(fine), read(floats()))


def test_negative_values_say_that_all_are_signed():
    """As in diffusers, over the whole batch: a bright picture among signed ones is not taken to be unsigned."""
    dark, bright = floats(1) * 2 - 1, floats(2)
    with pytest.warns(VivantWarning, match="W-IMAGE-SIGNED"):
        assert torch.equal(read(torch.stack([dark, bright])), torch.stack([dark, bright]))
    with pytest.warns(VivantWarning, match="W-IMAGE-SIGNED"):
        both = read([bright, dark, Image.fromarray(pixels(3))])
    assert torch.equal(both, torch.cat([bright[None], dark[None], to_tensor(Image.fromarray(pixels(3)))]))


@pytest.mark.parametrize("how", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(48, 80), (60, 40), (17, 90), (16, 16)])
def test_another_size_is_fitted_with_antialiasing(how, size):
    image = Image.fromarray(pixels(1, size))
    expected = to_tensor(fit(image, W, H, how))
    assert expected.shape == (1, 3, H, W)
    for way in (image, pixels(1, size), floats(1, size), pixels(1, size) / 255):
        assert torch.equal(read(way, how), expected)
    with pytest.warns(VivantWarning, match="W-IMAGE-SIGNED"):
        assert torch.equal(read(floats(1, size) * 2 - 1, how), expected)


def test_shrinking_averages_instead_of_picking():
    """A fine chequer becomes grey; the port, which picks single latents, would keep its values."""
    chequer = ((np.indices((10 * H, 10 * W)).sum(0) % 2) * 255).astype(np.uint8)
    assert read(np.stack([chequer] * 3, axis=2)).abs().max() < 0.05


def test_crop_pad_and_stretch_differ():
    wide = np.zeros((H, 2 * W, 3), np.uint8)
    wide[:, W // 2 : 3 * W // 2] = 255
    cropped, padded, stretched = (read(wide, how) for how in ("crop", "pad", "stretch"))
    assert cropped.min() > 0.9  # only the white middle is left
    assert (padded[0, 0, :, W // 2] == -1).sum() == H // 2  # bars above and below, the middle between them
    assert stretched[0, 0, H // 2, 0] == -1
    assert stretched[0, 0, H // 2, W // 2] == 1


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (None, "E-IMAGE-NONE"),
        ([], "E-IMAGE-NONE"),
        ([None], "E-IMAGE-NONE"),
        ([pixels(), None], "E-IMAGE-NONE"),
        (np.zeros((0, H, W, 3), np.uint8), "E-IMAGE-NONE"),
        (floats() * 255, "E-IMAGE-RANGE"),
        (pixels().astype(np.float32), "E-IMAGE-RANGE"),
        (torch.full((3, H, W), float("nan")), "E-IMAGE-RANGE"),
        (torch.full((3, H, W), float("inf")), "E-IMAGE-RANGE"),
        (torch.zeros(3, 0, W), "E-IMAGE-EMPTY"),
        (torch.zeros(2, H, W), "E-IMAGE-ARRAY"),
        (torch.zeros(1, 1, 3, H, W), "E-IMAGE-ARRAY"),
        (np.zeros((H, W, 5), np.uint8), "E-IMAGE-ARRAY"),
        (torch.zeros(3, H, W, dtype=torch.int64), "E-IMAGE-ARRAY"),
        (Path("nowhere.png"), "E-IMAGE-MISSING"),
        (7, "E-IMAGE-TYPE"),
        ({"image": 1}, "E-IMAGE-TYPE"),
        (torch.zeros(3, 8, 8), "E-IMAGE-SMALL"),
    ],
)
@pytest.mark.unchecked
def test_what_is_no_picture_is_refused(source, code):
    with pytest.raises(InputError) as refusal:
        read(source)
    assert refusal.value.code == code


def test_grey_and_transparent_arrays():
    grey = np.random.default_rng(1).integers(0, 256, (H, W), dtype=np.uint8)
    assert torch.equal(read(grey), read(np.stack([grey] * 3, axis=2)))
    assert torch.equal(read(grey[..., None] / 255), read(grey))
    clear = np.concatenate([pixels(), np.zeros((H, W, 1), np.uint8)], axis=2)
    assert torch.equal(read(clear), torch.ones(1, 3, H, W))
