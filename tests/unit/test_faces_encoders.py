"""From photos to what ConsisID reads of a face: real photos, real detection, one face for every branch."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny_faces
import tiny_repo
from portraits import WHOLE, portrait
from tolerances import assert_parity
from vivant.errors import InputError, LoadError
from vivant.faces.align import CROP_POINTS, robust, shrunken
from vivant.faces.check import check
from vivant.faces.encoders import CLIP_MEAN, CLIP_STD, WHITE, Encoders, pixels_of
from vivant.faces.face import Face, average
from vivant.faces.found import Found
from vivant.faces.parse import LABELS, BiSeNet
from vivant.faces.small import SmallFaces

ENCODERS = tiny_faces.seeing()
TEMPLATE = torch.tensor(CROP_POINTS)


def image(name: str) -> Image.Image:
    return Image.fromarray(portrait(name).permute(1, 2, 0).byte().numpy())


def group(*names: str | None, side: int = 500) -> Image.Image:
    """Portraits beside each other; None leaves a place empty."""
    together = Image.new("RGB", (side * len(names), side), "white")
    for i, name in enumerate(names):
        if name is not None:
            one = image(name)
            one.thumbnail((side, side))
            together.paste(one, (side * i, 0))
    return together


class Finding:
    """Finds what it was told."""

    def __init__(self, *faces: Found):
        self.faces = list(faces)

    def faces_in(self, photo: Tensor) -> list[Found]:
        return self.faces


class Skin(BiSeNet):
    """Takes everything for a face."""

    @classmethod
    def of(cls, parser: BiSeNet) -> BiSeNet:
        return cls.from_state(parser.state_dict())

    def labels(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), *x.shape[2:], dtype=torch.long)


def encoders(**changes: Any) -> Encoders:
    return Encoders(**{**ENCODERS.__dict__, **changes})


def assert_same(a: Face, b: Face) -> None:
    """The same person, crop, embedding, key points and box."""
    assert_parity(a.id_cond, b.id_cond)
    assert a.image.tobytes() == b.image.tobytes()
    assert torch.allclose(a.keypoints, b.keypoints, atol=1e-3)
    assert a.box == pytest.approx(b.box, abs=0.01)


# --------------------------------------------------------------------------------------------------- one face for all


@pytest.mark.parametrize("name", WHOLE)
def test_a_portrait_gives_a_face(name):
    face = ENCODERS.encode(image(name))
    assert face.id_cond.shape == (1, 128 + tiny_faces.EMBEDDING)
    assert [tuple(h.shape) for h in face.id_vit_hidden] == [(1, 10, tiny_faces.WIDTH)] * 5
    assert face.id_cond[0, 128:].norm().item() == pytest.approx(1, abs=1e-5)
    assert face.image.size == (512, 512)
    assert (face.keypoints - TEMPLATE).abs().max() < 40
    assert face.quality.size == pytest.approx(min(face.box[2] - face.box[0], face.box[3] - face.box[1]))


@pytest.mark.parametrize("pair", [("obama.jpg", "biden.jpg"), ("astronaut", "obama2.jpg")])
def test_of_a_group_every_branch_sees_the_chosen_person(pair):
    """What diffusers gives the largest face's embedding and the most central one's crop of."""
    both = group(*pair)
    found = sorted(SmallFaces().detector.faces_in(pixels_of(both)), key=lambda face: face.center)
    assert len(found) == 2
    for i, name in enumerate(pair):
        alone = [None, None]
        alone[i] = name
        one = encoders(scrfd=Finding(found[i]), detector=Finding(found[i])).encode(group(*alone))
        assert one.box == found[i].box
        assert_same(ENCODERS.encode(both, i), one)
        left, top, right, bottom = one.box
        assert_same(ENCODERS.encode(both, (left - 5, top + 5, right, bottom)), one)
    assert ENCODERS.encode(both).box == max(found, key=lambda face: face.area).box


def test_the_crop_is_the_chosen_face_s_though_the_other_detector_prefers_another():
    both = pixels_of(group("obama.jpg", "biden.jpg"))
    found = sorted(SmallFaces().detector.faces_in(shrunken(both, 1024)), key=lambda face: face.center)
    for i in range(2):
        moved = [Found(face.box, face.score, face.points + 3) for face in found]
        face = encoders(scrfd=Finding(*found), detector=Finding(*moved[::-1])).encode_pixels(both, i)
        to_crop = robust(moved[i].points, TEMPLATE)
        assert torch.allclose(face.keypoints, to_crop.apply(found[i].points), atol=1e-3)


def test_a_box_is_in_pixels_of_the_photo_though_a_smaller_one_is_seen():
    large = group("obama.jpg", "biden.jpg", side=900)
    for i in range(2):
        due = ENCODERS.encode(large, i)
        assert ENCODERS.encode(large, due.box).box == due.box
        assert 900 * i < due.box[0] < due.box[2] < 900 * (i + 1)


def test_beyond_the_photo_a_crop_is_grey():
    """As facexlib has it; the parser may take it for skin."""
    photo = portrait("obama.jpg")
    edge = Found((0.0, 0.0, 300.0, 400.0), 0.9, TEMPLATE - 150)
    seen = encoders(scrfd=Finding(edge), detector=Finding(edge), parser=Skin.of(ENCODERS.parser)).encode_pixels(photo)
    assert pixels_of(seen.image)[:, 10, 10].tolist() == [132, 133, 135]


def test_a_face_that_only_one_detector_finds():
    photo = portrait("obama.jpg")
    (seen,) = SmallFaces().detector.faces_in(shrunken(photo, 1024))
    whole = encoders().encode_pixels(photo)
    assert_same(encoders(detector=Finding()).encode_pixels(photo), whole)
    with pytest.warns(UserWarning, match="W-FACE-CROP"):
        cropped = encoders(scrfd=Finding(), detector=Finding(seen)).encode_pixels(photo)
    assert cropped.image.tobytes() == whole.image.tobytes()
    assert len(cropped.notes) == 1
    assert (cropped.id_cond - whole.id_cond)[:, :128].norm() > 0.01  # of the crop, not of the photo
    assert (cropped.id_cond - whole.id_cond)[:, :128].norm() < 0.4  # and still of the same person
    with pytest.raises(InputError, match="E-FACE-NONE"):
        encoders(scrfd=Finding(), detector=Finding()).encode_pixels(photo)


def test_the_photo_is_stretched_where_the_face_is_not_cut_out():
    face = encoders().encode(image("biden.jpg"), align=False)
    shrunk = shrunken(portrait("biden.jpg"), 1024)
    assert face.image.size == (shrunk.shape[2], shrunk.shape[1])
    assert torch.equal(pixels_of(face.image), shrunk)
    (seen,) = SmallFaces().detector.faces_in(shrunk)
    assert torch.allclose(face.keypoints, seen.points, atol=1e-3)


def test_no_gradients_are_kept():
    face = encoders().encode(image("astronaut"))
    assert not any(tensor.requires_grad for tensor in (face.id_cond, *face.id_vit_hidden, face.keypoints))


# --------------------------------------------------------------------------------------------- the reference's formulas


def test_the_flow_is_the_reference_s_step_by_step():
    """process_face_embeddings of diffusers 0.42, whose packages need torchvision, with OpenCV and torch."""
    bgr = cv2.cvtColor(np.array(image("astronaut")), cv2.COLOR_RGB2BGR)
    (seen,) = SmallFaces().detector.faces_in(portrait("astronaut"))
    matrix, _ = cv2.estimateAffinePartial2D(seen.points.numpy(), np.array(CROP_POINTS), method=cv2.LMEDS)
    crop = cv2.warpAffine(bgr, matrix, (512, 512), borderMode=cv2.BORDER_CONSTANT, borderValue=(135, 133, 132))
    x = torch.from_numpy(cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None].float() / 255
    imagenet = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    labels = ENCODERS.parser((x - imagenet[0]) / imagenet[1]).argmax(dim=1, keepdim=True)
    around = sum((labels == i) for i in (0, 16, 18, 7, 8, 9, 14, 15)).bool()
    grey = (0.299 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]).repeat(1, 3, 1, 1)
    assert 0.02 < around.float().mean() < 0.98
    small = torch.nn.functional.interpolate(
        torch.where(around, torch.ones_like(x), grey), (24, 24), mode="bicubic", antialias=True
    )
    clip = torch.tensor([CLIP_MEAN, CLIP_STD])[..., None, None]
    pooled, hidden = ENCODERS.vision((small - clip[0]) / clip[1])

    face = ENCODERS.encode(image("astronaut"))
    coloured = (torch.where(around, torch.ones_like(x), x)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    off = np.abs(np.array(face.image).astype(int) - coloured)
    assert (off > 1).mean() < 1e-4  # OpenCV 5 reads between pixels in 1/32 steps on some processors
    assert_parity(face.id_cond[:, 128:], pooled / pooled.norm(2, 1, True), torch.bfloat16)
    for ours, theirs in zip(face.id_vit_hidden, hidden, strict=True):
        assert_parity(ours, theirs, torch.bfloat16)


def test_what_becomes_white_is_what_the_reference_names():
    assert sorted(LABELS.index(name) for name in WHITE) == [0, 7, 8, 9, 14, 15, 16, 18]


# -------------------------------------------------------------------------------------------------------- bad photos


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    upright = image("obama.jpg")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    turned.save(tmp_path / "lying.png")
    face = ENCODERS.encode(tmp_path / "turned.png")
    assert_same(face, ENCODERS.encode(upright))
    lying = check(Image.open(tmp_path / "lying.png").convert("RGB"), SmallFaces().detector)
    assert [grade.code for grade in lying.grades] == ["W-FACE-TILTED"]


def test_any_kind_of_picture(tmp_path):
    upright = image("biden.jpg")
    due = ENCODERS.encode(upright)
    upright.convert("CMYK").save(tmp_path / "cmyk.tif")
    upright.convert("RGBA").save(tmp_path / "rgba.png")
    upright.convert("L").save(tmp_path / "grey.png")
    grey = np.array(upright.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "16.png")
    for name in ("cmyk.tif", "rgba.png", "grey.png", "16.png"):
        face = ENCODERS.encode(tmp_path / name)
        assert face.box == pytest.approx(due.box, abs=8), name
        assert (face.id_cond - due.id_cond)[:, :128].norm() < 0.5, name
    assert_same(ENCODERS.encode(tmp_path / "rgba.png"), due)
    assert_same(ENCODERS.encode(np.array(upright)), due)
    assert_same(ENCODERS.encode(portrait("biden.jpg") / 255), due)


def test_small_cut_many_none_and_drawn_faces_are_graded():
    detector = SmallFaces().detector

    def codes(picture: Image.Image, **more: Any) -> list[str]:
        return [grade.code for grade in check(picture, detector, **more).grades]

    whole = image("obama.jpg")
    assert codes(whole) == []
    tiny = whole.resize((round(whole.width * 40 / 252), round(whole.height * 40 / 252)))
    assert codes(tiny) == ["W-FACE-SMALL"]
    box = check(whole, detector).faces[0].box
    middle = round((box[0] + box[2]) / 2 + 40)
    assert "W-FACE-CUT" in codes(whole.crop((0, 0, middle, whole.height)))
    assert codes(image("obama_partial_face.jpg")) == ["W-FACE-CUT"]
    two = group("obama.jpg", "biden.jpg", side=900)
    assert codes(two) == ["W-FACE-SEVERAL"]
    assert codes(two, choice=1) == []
    ten = Image.new("RGB", (2000, 800))
    for row in range(2):
        ten.paste(group("obama.jpg", "biden.jpg", "obama2.jpg", "obama3.jpg", "astronaut", side=400), (0, 400 * row))
    assert len(check(ten, detector).faces) == 10
    assert codes(ten) == ["W-FACE-SEVERAL", "W-FACE-SMALL"]
    assert codes(Image.new("RGB", (300, 200), "white")) == ["E-FACE-NONE"]
    house = Image.new("RGB", (300, 300), "white")
    draw = ImageDraw.Draw(house)
    draw.polygon([(50, 150), (150, 50), (250, 150)], fill="red")
    draw.rectangle((60, 150, 240, 280), fill="brown")
    assert codes(house) == ["E-FACE-NONE"]


# ------------------------------------------------------------------------------------------------------------ values


def test_a_face_needs_its_photo_no_more(tmp_path):
    face = ENCODERS.encode(image("obama.jpg"))
    path = face.save(tmp_path / "face.safetensors")
    again = Face.load(path)
    assert_same(again, face)
    assert torch.equal(again.id_cond, face.id_cond)
    assert all(map(torch.equal, again.id_vit_hidden, face.id_vit_hidden))
    assert again.quality == face.quality
    assert path.stat().st_size < 1_000_000  # the crop, not the photo
    assert [p.name for p in tmp_path.iterdir()] == ["face.safetensors"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"image": None}, "E-IDENTITY-TENSORS"),
        ({"quality": None}, "E-IDENTITY-TENSORS"),
        ({"image": torch.zeros(1, 512, 512, 3)}, "E-IDENTITY-TENSORS"),
        ({"image": torch.zeros(1, 512, 512, 4, dtype=torch.uint8)}, "E-IDENTITY-SHAPE"),
        ({"image": torch.zeros(1, 0, 512, 3, dtype=torch.uint8)}, "E-IDENTITY-SHAPE"),
        ({"box": torch.zeros(2, 4)}, "E-IDENTITY-SHAPE"),
        ({"extra": torch.zeros(1)}, "E-IDENTITY-TENSORS"),
    ],
)
def test_files_that_are_no_face(tmp_path, change, code):
    path = ENCODERS.encode(image("obama.jpg")).save(tmp_path / "face.safetensors")
    named = {name: tensor for name, tensor in {**load_file(path), **change}.items() if tensor is not None}
    save_file(named, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=code):
        Face.load(tmp_path / "other.safetensors")


def test_several_photos_of_a_person_are_averaged():
    names = ("obama.jpg", "obama2.jpg", "obama3.jpg")
    faces = [ENCODERS.encode(image(name)) for name in names]
    together = ENCODERS.encode_all([image(name) for name in names])
    assert_parity(together.id_cond, sum(face.id_cond for face in faces) / 3)
    assert_parity(together.id_vit_hidden[2], sum(face.id_vit_hidden[2] for face in faces) / 3)
    assert together.image.tobytes() == faces[0].image.tobytes()
    assert average(faces[:1]) is faces[0]
    with pytest.raises(InputError, match="E-FACE-NONE"):
        average([])


# ------------------------------------------------------------------------------------------------------- repositories


def test_the_files_of_a_repository_are_read(tmp_path):
    loaded = Encoders.from_pretrained(tiny_faces.write(tmp_path / "repo"))
    face = loaded.encode(image("astronaut"))
    assert face.id_cond.shape == (1, tiny_faces.ARCFACE + tiny_faces.EMBEDDING)
    assert torch.isfinite(face.id_cond).all()
    half = Encoders.from_pretrained(tmp_path / "repo", dtype=torch.bfloat16)
    assert (half.vision.dtype, half.parser.dtype) == (torch.bfloat16, torch.float32)
    assert_parity(half.encode(image("astronaut")).id_cond, face.id_cond, torch.bfloat16)


def test_a_converted_file_stands_for_its_pickle(tmp_path):
    repository = tiny_faces.write(tmp_path / "repo")
    pickle = repository / "face_encoder" / "parsing_bisenet.pth"
    save_file(torch.load(pickle, weights_only=True), pickle.with_suffix(".safetensors"))
    pickle.unlink()
    Encoders.from_pretrained(repository)


@pytest.mark.parametrize("name", ["EVA02_CLIP_L_336_psz14_s6B.pt", "models/antelopev2/glintr100.onnx"])
def test_a_file_that_is_missing_is_named(tmp_path, name):
    repository = tiny_faces.write(tmp_path / "repo")
    (repository / "face_encoder" / name).unlink()
    with pytest.raises(LoadError, match=r"E-FACE-MODEL.*" + Path(name).name):
        Encoders.from_pretrained(repository)


def test_a_hub_repository_is_read_with_a_word_about_its_licence(tmp_path):
    tiny_repo.into_cache(tmp_path / "cache", "people/consisid", tiny_faces.write(tmp_path / "repo"))
    with pytest.warns(UserWarning, match="W-FACE-LICENCE"):
        Encoders.from_pretrained("people/consisid", cache_dir=tmp_path / "cache", local_files_only=True)


def test_json_of_a_check_holds_plain_values():
    found = check(group("obama.jpg", "biden.jpg"), SmallFaces().detector)
    told = json.loads(json.dumps(found.to_json()))
    assert (told["width"], told["height"], len(told["faces"]), told["chosen"] in (0, 1)) == (1000, 500, 2, True)
    assert told["quality"].keys() == {"size", "yaw", "roll", "blur", "margin"}
