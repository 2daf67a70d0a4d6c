"""Faces in a photo: anchors, boxes, and which one is meant."""

import json

import pytest
import torch
from torch import Tensor

from vivant.errors import InputError
from vivant.faces.detect import MEAN, Offsets, RetinaFace, anchors
from vivant.faces.found import Found, choose, found, overlap, same_as


def face(left: float, top: float, side: float, score: float = 0.9) -> Found:
    return Found((left, top, left + side, top + side), score, torch.zeros(5, 2))


def test_anchors_are_squares_around_the_middle_of_each_place():
    places = anchors(20, 40)
    assert len(places) == 2 * (3 * 5 + 2 * 3 + 1 * 2)
    assert places[0].tolist() == [4, 4, 16, 16]
    assert places[1].tolist() == [4, 4, 32, 32]
    assert places[2].tolist() == [12, 4, 16, 16]
    assert places[10].tolist() == [4, 12, 16, 16]
    assert places[-1].tolist() == [48, 16, 512, 512]


class Said(RetinaFace):
    """Says of one anchor what it is told, and remembers what it saw."""

    def __init__(self, index: int, boxes: list[float], points: list[float]):
        super().__init__(width=4, depths=(1, 1, 1, 1), channels=8)
        self.index, self.said, self.seen = index, (boxes, points), None

    def forward(self, x: Tensor) -> Offsets:
        self.seen = x
        num = len(anchors(*x.shape[2:]))
        boxes, scores, points = (
            torch.zeros(1, num, 4),
            torch.tensor([[1.0, 0.0]]).repeat(1, num, 1),
            torch.zeros(1, num, 10),
        )
        boxes[0, self.index], points[0, self.index] = (torch.tensor(value) for value in self.said)
        scores[0, self.index] = torch.tensor([0.02, 0.98])
        return Offsets(boxes, scores, points)


def test_offsets_are_parts_of_the_anchor():
    """Centres by a tenth of its side, sides by the exponential of a fifth; as facexlib decodes them."""
    network = Said(3, [1.0, -2.0, 5.0, 0.0], [float(i) for i in range(10)])
    photo = torch.arange(3.0)[:, None, None].expand(3, 20, 40).contiguous()
    (seen,) = network.faces_in(photo)
    middle, side = torch.tensor([12 + 0.1 * 32, 4 - 0.2 * 32]), torch.tensor([32 * 2.718281828, 32.0])
    assert torch.allclose(torch.tensor(seen.box), torch.cat([middle - side / 2, middle + side / 2]))
    assert torch.allclose(seen.points, torch.tensor([12.0, 4.0]) + 0.1 * 32 * torch.arange(10.0).reshape(5, 2))
    assert seen.score == pytest.approx(0.98)
    assert network.seen[0, :, 0, 0].tolist() == [2 - MEAN[0], 1 - MEAN[1], 0 - MEAN[2]]
    assert network.faces_in(photo, threshold=0.99) == []


def test_of_overlapping_boxes_the_surest_stays():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [6, 0, 16, 10], [40, 40, 50, 50]])
    points = torch.arange(40.0).reshape(4, 5, 2)
    seen = found(boxes, torch.tensor([0.8, 0.9, 0.7, 0.4]), points, 0.5)
    assert [one.box[0] for one in seen] == [1, 6]
    assert torch.equal(seen[0].points, points[1])
    assert overlap(boxes[:1], boxes[1:]).tolist()[0] == pytest.approx([90 / 110, 40 / 160, 0])
    assert overlap(boxes[:1], boxes[1:2], pixel=1.0).item() == pytest.approx(110 / 132)


FACES = [face(200, 10, 50, 0.99), face(20, 10, 80), face(100, 100, 40)]


@pytest.mark.parametrize(
    ("choice", "left"),
    [("largest", 20), ("center", 100), (0, 20), (1, 100), (2, 200), ((195.0, 5.0, 255.0, 60.0), 200)],
)
def test_one_face_is_meant(choice, left):
    assert choose(FACES, choice, 250, 240).box[0] == left


@pytest.mark.unchecked
@pytest.mark.parametrize("choice", [3, -1, "smallest", True, (0.0, 0.0, 5.0, 5.0), (1.0, 2.0), None], ids=json.dumps)
def test_a_face_that_there_is_not_is_refused(choice):
    with pytest.raises(InputError, match="E-FACE-CHOICE"):
        choose(FACES, choice, 250, 240)


def test_a_photo_without_faces_is_refused():
    with pytest.raises(InputError, match="E-FACE-NONE"):
        choose([], "largest", 250, 240)


def test_the_same_face_of_another_detector():
    other = [face(22, 14, 78), face(105, 100, 40)]
    assert same_as(FACES[1], other) is other[0]
    assert same_as(FACES[2], other) is other[1]
    assert same_as(FACES[0], other) is None
    assert same_as(FACES[0], []) is None
