"""Alignment of faces, against OpenCV."""

import cv2
import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from vivant.errors import InputError
from vivant.faces.align import (
    CROP_BORDER,
    CROP_POINTS,
    Similarity,
    least_squares,
    resized,
    robust,
    shrunken,
    tried_pairs,
    warp,
)

TEMPLATE = torch.tensor(CROP_POINTS)


def tensor(photo: np.ndarray) -> Tensor:
    return torch.tensor(photo).permute(2, 0, 1).float()


def matrix(similarity: Similarity) -> np.ndarray:
    a, b = similarity
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def faces(num: int, displaced: float) -> list[np.ndarray]:
    """Five points each: the template turned, scaled, shifted, noisy, and one of them somewhere else."""
    rng, found = np.random.default_rng(3), []
    for noise in np.resize([0.01, 1.0, 5.0], num):
        to_crop = Similarity(complex(*rng.normal(size=2)) / 2, complex(*rng.normal(size=2)) * 200)
        points = to_crop.inverse.apply(TEMPLATE.double()).numpy() + noise * rng.normal(size=(5, 2))
        points[rng.integers(5)] += displaced * rng.normal(size=2)
        found.append(points)
    return found


@pytest.mark.parametrize("displaced", [0.0, 80.0])
def test_the_similarity_is_opencv_s(displaced):
    apart = []
    for points in faces(200, displaced):
        due, _ = cv2.estimateAffinePartial2D(points, np.array(CROP_POINTS), method=cv2.LMEDS)
        ours = matrix(robust(torch.tensor(points), TEMPLATE))
        places = np.concatenate([points, np.ones((5, 1))], axis=1)
        assert np.abs(places @ ours.T - places @ due.T).max() < 1e-2  # pixels of the crop
        plain = matrix(least_squares(torch.tensor(points), TEMPLATE))
        apart.append(np.abs(places @ plain.T - places @ due.T).max())
    # Of points that agree it is the plain least squares.
    assert np.median(apart) > 10 if displaced else np.median(apart) < 1e-3


def test_points_that_are_one_are_refused():
    for align in (robust, least_squares):
        with pytest.raises(InputError, match="E-FACE-POINTS"):
            align(torch.full((5, 2), 7.0), TEMPLATE)


def test_a_similarity_and_its_inverse():
    to_crop = Similarity(0.5 - 1.5j, 30 + 4j)
    points = torch.tensor([[3.0, 4.0], [10.0, -2.0]])
    assert torch.allclose(to_crop.apply(points), torch.tensor([[37.5, 1.5], [32.0, -12.0]]))
    assert torch.allclose(to_crop.inverse.apply(to_crop.apply(points)), points)


def test_pairs_are_different_points():
    assert len(tried_pairs(5)) == 13
    assert all(i != j and {i, j} <= set(range(5)) for i, j in tried_pairs(5))


@pytest.mark.parametrize("border", [CROP_BORDER, (0, 0, 0)])
def test_crops_are_opencv_s(border):
    """Beyond the edges of the photo too."""
    photo, to_crop = data.coffee(), Similarity(0.7 + 0.3j, 20 - 60j)
    due = cv2.warpAffine(photo, matrix(to_crop), (512, 512), borderValue=border)
    ours = warp(tensor(photo), to_crop, 512, border)
    assert (due == border).all(-1).mean() > 0.1
    apart = (ours - tensor(due)).abs()
    assert apart.max() <= 1
    assert apart.mean() < 1e-3


def test_large_photos_are_shrunk_as_by_opencv():
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (700, 1100, 3), dtype=np.uint8)
    due = cv2.resize(photo, (512, int(700 * 512 / 1100)), interpolation=cv2.INTER_LANCZOS4)
    apart = (shrunken(tensor(photo), 512) - tensor(due)).abs()
    assert apart.max() <= 1
    assert apart.mean() < 0.1
    assert shrunken(tensor(photo), 1100).shape == (3, 700, 1100)
    assert torch.equal(shrunken(tensor(photo), 2000), tensor(photo))


@pytest.mark.parametrize("size", [(112, 112), (427, 640), (700, 900)])
def test_resizing_is_opencv_s(size):
    photo = data.coffee()
    apart = (resized(tensor(photo), size) - tensor(cv2.resize(photo, size[::-1]))).abs()
    assert apart.max() <= 1
    assert apart.mean() < 1e-3
