"""What is measured of a face, and which complaint follows from it."""

import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import tiny
from vivant.faces.align import CROP_POINTS
from vivant.faces.check import check, drawn, summary
from vivant.faces.encoders import pixels_of
from vivant.faces.found import Found
from vivant.faces.quality import BLURRED, MODEL_POINTS, Quality, blur, grades, measure, turns

GOOD = Quality(size=200.0, yaw=10.0, roll=-20.0, blur=0.3, margin=0.5)


def seen(turn: float, nod: float = 0.0, roll: float = 0.0, size: float = 12.0) -> Tensor:
    """The model's points as a camera far away sees them, turned by degrees."""
    a, b, c = (math.radians(angle) for angle in (turn, nod, roll))
    across = torch.tensor([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    down = torch.tensor([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    around = torch.tensor([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    points = torch.tensor(MODEL_POINTS) @ (around @ down @ across).T
    return points[:, :2] * torch.tensor([size, -size]) + 300


@pytest.mark.parametrize("turn", [-80, -46, -44, -10, 0, 30, 60, 88])
def test_the_turn_of_a_face_is_read_off_its_points(turn):
    for roll in (0, 25, -90):  # of the camera's axes, which point up: anticlockwise in the photo
        assert turns(seen(turn, roll=roll)) == pytest.approx((turn, -roll), abs=0.5)
    assert turns(seen(turn, nod=15))[0] == pytest.approx(turn, abs=8)


def face(points: Tensor, box: tuple[float, float, float, float]) -> Found:
    return Found(box, 0.9, points)


def noisy(side: int = 512) -> Tensor:
    """Detail of all sizes."""
    layers = [
        F.interpolate(tiny.noise(1, 3, side // n, side // n, seed=n), (side, side), mode="bilinear")[0]
        for n in (2, 8, 32)
    ]
    return (sum(layers, torch.zeros(3, side, side)) * 25 + 128).clamp(0, 255)


def blurred(photo: Tensor, deviation: float) -> Tensor:
    taps = torch.arange(-40, 41)
    weights = torch.exp(-(taps**2) / (2 * deviation**2))
    weights = (weights / weights.sum()).reshape(1, 1, 1, -1)
    rows = F.conv2d(F.pad(photo[:, None], (40, 40, 0, 0), mode="reflect"), weights)
    return F.conv2d(F.pad(rows, (0, 0, 40, 40), mode="reflect"), weights.mT)[:, 0]


def test_more_blur_is_more_blur():
    aligned = face(torch.tensor(CROP_POINTS), (100.0, 100.0, 410.0, 480.0))
    values = [blur(photo, aligned) for photo in (noisy(), *(blurred(noisy(), d) for d in (3.0, 8.0)))]
    assert values == sorted(values)
    assert values[0] < BLURRED < values[2]


def test_size_and_margin_are_those_of_the_box():
    quality = measure(noisy(), face(torch.tensor(CROP_POINTS), (101.0, 90.0, 401.0, 490.0)))
    assert (quality.size, quality.margin) == (300, pytest.approx(22 / 300))
    assert abs(quality.yaw) < 5
    assert measure(noisy(), face(torch.tensor(CROP_POINTS), (-30.0, 90.0, 270.0, 490.0))).margin == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"size": 111.9}, "W-FACE-SMALL"),
        ({"yaw": -45.1}, "W-FACE-PROFILE"),
        ({"roll": 46}, "W-FACE-TILTED"),
        ({"blur": 0.61}, "W-FACE-BLURRED"),
        ({"margin": 0.01}, "W-FACE-CUT"),
    ],
)
def test_each_complaint_has_its_cause(change, code):
    one = [face(torch.tensor(CROP_POINTS), (0.0, 0.0, 9.0, 9.0))]
    assert grades(one, GOOD, is_chosen=False) == ()
    assert [grade.code for grade in grades(one, GOOD._replace(**change), is_chosen=False)] == [code]


def test_several_faces_are_a_complaint_until_one_is_chosen():
    two = [face(torch.tensor(CROP_POINTS), (0.0, 0.0, 9.0, 9.0))] * 2
    assert [grade.code for grade in grades(two, GOOD, is_chosen=False)] == ["W-FACE-SEVERAL"]
    assert grades(two, GOOD, is_chosen=True) == ()
    assert [grade.code for grade in grades([], None, is_chosen=True)] == ["E-FACE-NONE"]


class Told:
    """Finds what it was told."""

    def __init__(self, *found: Found):
        self.found, self.seen = list(found), torch.empty(0)

    def faces_in(self, photo: Tensor) -> list[Found]:
        self.seen = photo
        return self.found


def test_boxes_are_in_pixels_of_the_photo():
    """Detectors see large photos shrunk to 1024 pixels."""
    points = torch.tensor(CROP_POINTS) / 2
    detector = Told(face(points + 500, (540.0, 540.0, 740.0, 760.0)), face(points, (40.0, 40.0, 140.0, 150.0)))
    image = Image.new("RGB", (2048, 1536))
    found = check(image, detector)
    assert detector.seen.shape == (3, 768, 1024)
    assert [f.box for f in found.faces] == [(80, 80, 280, 300), (1080, 1080, 1480, 1520)]
    assert torch.equal(found.faces[0].points, points * 2)
    assert (found.chosen, found.size) == (1, (2048, 1536))
    assert found.quality is not None
    assert found.quality.size == 400
    by_box = check(image, detector, (70.0, 90.0, 290.0, 290.0))
    assert by_box.chosen == 0
    assert by_box.to_json()["faces"][0]["box"] == [80, 80, 280, 300]
    assert "number 0 at 80,80,280,300" in summary(by_box)[0]
    picture = pixels_of(drawn(image, by_box))
    assert picture[:, 80, 150].tolist() == [0, 160, 60]
    assert picture[:, 1080, 1200].tolist() == [230, 120, 0]
    assert pixels_of(image).max() == 0


def test_a_photo_without_faces_says_so():
    found = check(Image.new("RGB", (90, 80)), Told())
    assert (found.chosen, found.quality, found.faces) == (None, None, ())
    assert [grade.code for grade in found.grades] == ["E-FACE-NONE"]
    assert "[E-FACE-NONE]" in summary(found)[0]
