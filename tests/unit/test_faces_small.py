"""The small face networks that ship, on portraits and against the programs that published them."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from torch import Tensor

from portraits import PERSONS, WHOLE, as_tensor, portrait
from sources import ROOT
from tolerances import assert_parity
from vivant.errors import LoadError
from vivant.faces.antelope import ArcFace
from vivant.faces.centerface import CenterFace, fitted
from vivant.faces.dlib import CHIP, CHIP_POINTS, SAME_PERSON, DlibResNet, chip, decoded
from vivant.faces.found import Found
from vivant.faces.mesh import FaceMesh, inside, parse
from vivant.faces.parse import LABELS
from vivant.faces.small import WEIGHTS, SmallFaces

GOLDEN = load_file(ROOT / "tests" / "golden" / "small_faces.safetensors")
"""See make_small_faces.py beside it."""
SMALL = SmallFaces()


def the_face(photo: Tensor) -> Found:
    (face,) = SMALL.detector.faces_in(photo)
    return face


def golden_picture() -> Tensor:
    return portrait("astronaut")[:, 40:232, 128:320]


# ------------------------------------------------------------------------------------------ the published programs


def test_the_detector_is_the_published_one():
    maps = SMALL.detector(golden_picture()[None, :, :128, :160])
    for name, seen in maps._asdict().items():
        assert_parity(seen, GOLDEN[name])
        assert (seen - GOLDEN[name]).abs().max() < 1e-5
    face = the_face(portrait("astronaut"))
    assert_parity(torch.tensor(face.box), GOLDEN["box"])
    assert_parity(face.points, GOLDEN["five"])
    assert face.score == pytest.approx(GOLDEN["score"].item(), abs=1e-5)


def test_the_recogniser_is_the_published_one():
    """The points are those of the template, so nothing is turned or made smaller."""
    seen = SMALL.recogniser.embed(golden_picture()[:, :CHIP, :CHIP], torch.tensor(CHIP_POINTS))
    assert_parity(seen[0], GOLDEN["embedding"])


def test_the_mesh_is_the_published_one():
    """The mesh is held in float16 in both places, and calculated in float32."""
    seen = SMALL.mesh(golden_picture()[None] / 255)
    assert_parity(seen.points.flatten(), GOLDEN["mesh"])
    assert seen.scores.item() == pytest.approx(GOLDEN["presence"].item(), abs=1e-4)
    assert SMALL.mesh(torch.full((1, 3, 192, 192), 0.5)).scores.item() < 0.1


def test_bytes_stand_for_numbers_of_a_range():
    code, bounds = torch.tensor([0, 100, 255], dtype=torch.uint8), torch.tensor([0.01, -0.5], dtype=torch.float64)
    assert torch.equal(decoded(code, bounds), torch.tensor([-0.5, 0.5, 2.05]))
    stored = load_file(WEIGHTS / "dlib.safetensors")
    assert sum(name.endswith(".code") for name in stored) > 100
    assert {t.dtype for name, t in stored.items() if name.endswith(".code")} == {torch.uint8}
    assert {t.dtype for t in SMALL.recogniser.state_dict().values()} == {torch.float32}


# ------------------------------------------------------------------------------------------ the detector


@pytest.mark.parametrize("name", PERSONS)
def test_the_one_face_of_a_portrait_is_found(name):
    photo = portrait(name)
    face = the_face(photo)
    left_eye, right_eye, nose, left_mouth, right_mouth = face.points.tolist()
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    left, top, right, bottom = face.box
    assert all(left < x < right and top < y < bottom for x, y in face.points.tolist())
    assert 0.5 < face.width / face.height < 1


def test_points_are_where_they_are_in_the_photo():
    """Read off the picture by eye."""
    face = the_face(portrait("astronaut"))
    due = torch.tensor([[203.0, 102], [247, 105], [223, 125], [204, 143], [241, 144]])
    assert (face.points - due).norm(dim=1).max() < 4
    assert face.box == pytest.approx((182, 58, 270, 178), abs=6)
    assert face.score > 0.85


@pytest.mark.parametrize(
    ("factor", "height", "width", "x", "y"),
    [(1, 512, 512, 0, 0), (2, 1100, 1777, 600, 30), (2, 1800, 1050, 10, 700), (0.5, 300, 261, 3, 40)],
)
def test_pixels_are_those_of_the_photo_whatever_its_size(factor, height, width, x, y):
    """Larger than what the network looks at, wider, higher, and with sides that it has to fill up."""
    face = the_face(portrait("astronaut"))
    inner = F.interpolate(portrait("astronaut")[None], scale_factor=factor, mode="area")[0]
    photo = torch.full((3, height, width), 128.0)
    photo[:, y : y + inner.shape[1], x : x + inner.shape[2]] = inner
    other, at = the_face(photo), torch.tensor([float(x), float(y)])
    assert ((other.points - at) / factor - face.points).norm(dim=1).max() < 5
    assert torch.allclose((torch.tensor(other.box) - at.repeat(2)) / factor, torch.tensor(face.box), atol=10)


def test_a_strip_is_made_smaller_by_whole_pixels():
    strip, scale = fitted(torch.zeros(3, 2560, 90))
    assert strip.shape == (3, 640, 32)
    assert scale.tolist() == pytest.approx([22 / 90, 0.25])
    assert fitted(torch.zeros(3, 1, 5000))[0].shape == (3, 32, 640)


def test_all_faces_are_found_and_nothing_else():
    beside = torch.cat([portrait("obama.jpg")[:, :900], portrait("biden.jpg")[:, :900]], dim=2)
    boxes = sorted(face.box for face in SMALL.detector.faces_in(beside))
    assert len(boxes) == 2
    assert boxes[0][2] < 910 < boxes[1][0]
    assert SMALL.detector.faces_in(beside, threshold=0.99) == []
    for name in ("chelsea", "coffee", "rocket", "hubble_deep_field"):
        assert SMALL.detector.faces_in(as_tensor(getattr(data, name)())) == [], name


def test_the_surest_face_is_the_first():
    photo = portrait("obama.jpg")
    tiny = F.interpolate(photo[None], (171, 137), mode="area")[0]
    both = F.pad(photo, (0, 200, 0, 0))
    both[:, :171, 920:1057] = tiny
    scores = [face.score for face in SMALL.detector.faces_in(both)]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)


# ------------------------------------------------------------------------------------------ the recogniser


def embedding(name: str) -> Tensor:
    return SMALL.recogniser.embed(portrait(name), the_face(portrait(name)).points)[0]


def test_one_person_is_nearer_than_another():
    embeddings = {name: embedding(name) for name in PERSONS}
    same, other = [], []
    for a, b in combinations(PERSONS, 2):
        (same if PERSONS[a] == PERSONS[b] else other).append((embeddings[a] - embeddings[b]).norm().item())
    assert len(same) == 10
    assert len(other) == 11
    assert max(same) < SAME_PERSON - 0.05
    assert min(other) > SAME_PERSON + 0.1


def test_the_template_is_the_mean_face_of_dlib():
    """Of its points, both eyes by six, the tip of the nose and the corners of the mouth, with a margin of a quarter."""
    x = [0.121737, 0.187122, 0.265825, 0.334606, 0.260918, 0.182743, 0.645647, 0.714428, 0.793132, 0.858516, 0.79751]
    y = [0.216423, 0.178758, 0.179852, 0.231733, 0.245099, 0.244077, 0.231733, 0.179852, 0.178758, 0.216423, 0.244077]
    x, y = [*x, 0.719335, 0.490127, 0.254149, 0.726104], [*y, 0.245099, 0.515625, 0.780233, 0.780233]
    mean = torch.tensor([x, y]).T
    mean = torch.cat([mean[:6].mean(0, keepdim=True), mean[6:12].mean(0, keepdim=True), mean[12:]])
    assert torch.allclose(torch.tensor(CHIP_POINTS), (0.25 + mean) / 1.5 * CHIP, atol=1e-3)


def test_a_face_is_cut_out_as_dlib_does():
    """Its points come to lie on the template; in a turned photo as well."""
    spots = torch.tensor(CHIP_POINTS)
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    points = 3 * spots @ turn + torch.tensor([300.0, 400.0])
    photo = torch.zeros(3, 1000, 1000)
    for x, y in points.round().int().tolist():
        photo[:, y - 4 : y + 5, x - 4 : x + 5] = 255
    cut = chip(photo, points)
    assert cut.shape == (3, CHIP, CHIP)
    for x, y in spots.round().int().tolist():
        assert cut[0, y, x] > 200
    assert (cut[0] > 100).float().mean() < 0.01


def test_the_size_of_a_photo_hardly_matters():
    """What is made smaller is made smooth; without that the distance is 0.07."""
    photo, points = portrait("biden.jpg"), the_face(portrait("biden.jpg")).points
    small = F.interpolate(photo[None], scale_factor=0.3, mode="area")[0]
    a, b = (SMALL.recogniser.embed(*one) for one in ((photo, points), (small, (points + 0.5) * 0.3 - 0.5)))
    assert (a - b).norm() < 0.045


def test_embeddings_of_two_recognisers_have_two_names():
    assert SMALL.space == DlibResNet.SPACE == "dlib-128"
    assert ArcFace.SPACE == "antelopev2-512"
    assert embedding("astronaut").shape == (128,)


# ------------------------------------------------------------------------------------------ the mesh


@pytest.mark.parametrize("name", WHOLE)
def test_the_parts_of_a_face_are_where_its_points_are(name):
    photo = portrait(name)
    face = the_face(photo)
    mesh = SMALL.mesh.points_of(photo, face.points)
    assert mesh.shape == (468, 2)
    width = (face.points[1] - face.points[0]).norm()
    eyes = [mesh[[33, 133]].mean(0), mesh[[263, 362]].mean(0)]  # corners
    for seen, due in zip([*eyes, mesh[1], mesh[61], mesh[291]], face.points, strict=True):
        assert (seen - due).norm() < 0.25 * width
    labels = parse(mesh, *photo.shape[1:])
    left_eye, right_eye = (LABELS[labels[tuple(eye.round().int().flip(0))]] for eye in eyes)
    assert (left_eye, right_eye) == ("left eye", "right eye")
    assert LABELS[labels[tuple(face.points[2].round().int().flip(0))]] == "nose"
    lips = labels[tuple(face.points[3:].mean(0).round().int().flip(0))]
    assert LABELS[lips] in ("upper lip", "mouth", "lower lip")
    parts = [int((labels == LABELS.index(part)).sum()) for part in ("skin", "nose", "left brow", "left eye")]
    assert parts == sorted(parts, reverse=True)
    assert parts[-1] > 0
    assert 0.5 < int((labels > 0).sum()) / face.area < 1.1


def test_a_turned_face_is_found_by_its_points():
    picture = Image.fromarray(data.astronaut())
    turned = as_tensor(np.array(picture.rotate(25, Image.Resampling.BILINEAR, center=(226, 115))))
    angle = torch.deg2rad(torch.tensor(25.0))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    middle = torch.tensor([226.0, 115.0])
    points = the_face(portrait("astronaut")).points
    upright = SMALL.mesh.points_of(portrait("astronaut"), points)
    other = SMALL.mesh.points_of(turned, (points - middle) @ turn + middle)
    assert ((upright - middle) @ turn + middle - other).norm(dim=1).max() < 3


def test_pixels_inside_a_line():
    square = torch.tensor([[1.5, 0.5], [4.5, 0.5], [4.5, 2.5], [1.5, 2.5]])
    due = torch.zeros(4, 6, dtype=torch.bool)
    due[1:3, 2:5] = True
    assert torch.equal(inside(square, 4, 6), due)
    hollow = torch.tensor([[-3.0, -3], [9, -3], [9, 9], [3, 1.5], [-3, 9]])  # reaches beyond the picture
    seen = inside(hollow, 4, 6)
    assert seen[:2].all()
    assert not seen[3, 3]
    assert seen[3, 0]


# ------------------------------------------------------------------------------------------ the files


def test_a_network_is_read_when_it_is_asked_for():
    small = SmallFaces()
    assert vars(small) == {}
    assert small.detector is small.detector
    assert vars(small).keys() == {"detector"}
    assert not any(p.requires_grad for p in small.detector.parameters())
    assert not small.detector.training


def test_the_files_are_small_and_say_their_licence():
    files = sorted(path.name for path in WEIGHTS.iterdir())
    assert files == ["NOTICES.md", "centerface.safetensors", "dlib.safetensors", "mesh.safetensors"]
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 15.1e6
    assert "faces/weights/*" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    notices = (WEIGHTS / "NOTICES.md").read_text(encoding="utf-8")
    for name in files[1:]:
        assert f"`{name}`" in notices
        assert b'"license":' in (WEIGHTS / name).read_bytes()[:400]


@pytest.mark.parametrize(("network", "other"), [(CenterFace, "dlib"), (DlibResNet, "mesh"), (FaceMesh, "centerface")])
def test_another_file_is_refused(network: type, other: str):
    with pytest.raises(LoadError, match="E-KEYS-MISMATCH"):
        network.from_file(Path(WEIGHTS) / f"{other}.safetensors")
