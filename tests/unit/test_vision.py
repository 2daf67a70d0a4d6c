"""CLIP's image encoder and its processor: against transformers', and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny_ip
from vivant.errors import InputError, LoadError
from vivant.vision import CLIPImageProcessor, embed_pictures, load_image_encoder, save_image_encoder


@pytest.mark.parametrize("size", [(70, 55), (33, 91), (42, 42), (41, 40), (300, 17)])
@pytest.mark.parametrize(("edge", "crop"), [(42, 42), (31, 24)])
def test_pictures_are_prepared_to_the_bit(size, edge, crop):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    picture = tiny_ip.person(4, size)
    theirs = CLIPImageProcessorPil(size=edge, crop_size=crop)(picture, return_tensors="pt").pixel_values
    ours = CLIPImageProcessor(edge, crop)([picture, picture]).pixel_values
    assert ours.dtype == torch.float32
    assert theirs.std() > 0.1
    assert torch.equal(ours, theirs.expand_as(ours))


def test_pictures_in_other_forms(tmp_path):
    picture = tiny_ip.person(4)
    picture.save(tmp_path / "person.png")
    processor = CLIPImageProcessor(42, 42)
    wanted = processor(picture).pixel_values
    for form in (tmp_path / "person.png", np.asarray(picture), np.asarray(picture) / 255.0, picture.convert("RGBA")):
        assert torch.equal(processor(form).pixel_values, wanted)
    with pytest.raises(InputError, match="E-ARG-VALUE"):
        processor(picture, return_tensors="np")
    with pytest.raises(InputError, match="E-IMAGE-MISSING"):
        processor(tmp_path / "nobody.png")


@pytest.mark.parametrize(
    "config",
    [
        {"size": 42, "crop_size": 42, "feature_extractor_type": "CLIPFeatureExtractor"},
        {"size": {"shortest_edge": 42}, "crop_size": {"height": 42, "width": 42}, "rescale_factor": 1 / 255},
    ],
)
def test_every_published_form_of_the_configuration(config, tmp_path):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = CLIPImageProcessor.from_pretrained(tmp_path)
    assert processor == CLIPImageProcessor(42, 42)
    processor.save_pretrained(tmp_path / "again")
    assert CLIPImageProcessor.from_pretrained(tmp_path / "again") == processor
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path / "again")
    picture = tiny_ip.person(4)
    assert torch.equal(theirs(picture, return_tensors="pt").pixel_values, processor(picture).pixel_values)


@pytest.mark.parametrize(
    "change",
    [
        {"resample": 2},
        {"do_normalize": False},
        {"rescale_factor": 1.0},
        {"size": 0},
        {"size": {"height": 42, "width": 50}},
        {"size": "224"},
        {"size": 10**9, "crop_size": 10**9},
        {"crop_size": 225},
        {"crop_size": {"height": 42, "width": 50}},
        {"image_mean": [0.5]},
        {"image_std": [0.0, 1.0, 1.0]},
    ],
)
def test_other_preparations_are_refused(change):
    with pytest.raises(LoadError, match=r"E-CONFIG-VALUE.*not CLIP's"):
        CLIPImageProcessor.from_config(change)


def test_the_encoder_is_read_strictly_and_written_back(tmp_path):
    theirs = tiny_ip.encoder()
    theirs.save_pretrained(tmp_path / "theirs")
    encoder = load_image_encoder(tmp_path / "theirs", dtype=torch.float32)
    pixels = [CLIPImageProcessor(42, 42)(tiny_ip.person(seed)).pixel_values[0] for seed in (1, 2)]
    with torch.no_grad():
        wanted = theirs(torch.stack(pixels), output_hidden_states=True)
    embeds, nothing = embed_pictures(encoder, pixels, positions=False)
    assert torch.equal(embeds, wanted.image_embeds)
    assert not nothing.any()
    assert nothing.shape == embeds.shape
    embeds, nothing = embed_pictures(encoder, pixels, positions=True)
    assert torch.equal(embeds, wanted.hidden_states[-2])
    assert torch.equal(nothing[0], nothing[1])
    assert nothing.std() > 0.1
    save_image_encoder(encoder, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())
    assert load_image_encoder(tmp_path / "ours", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_older_and_larger_files(tmp_path):
    """A whole CLIP with its text half, and the stored table of positions."""
    theirs = tiny_ip.encoder()
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    more = {"vision_model.embeddings.position_ids": torch.arange(tiny_ip.POSITIONS)[None]}
    more |= {"text_model.final_layer_norm.weight": torch.ones(3), "logit_scale": torch.ones(1)}
    save_file({**state, **more}, tmp_path / "model.safetensors")
    half = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "clip", "projection_dim": half["projection_dim"], "vision_config": half}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    encoder = load_image_encoder(tmp_path)
    pixels = [CLIPImageProcessor(42, 42)(tiny_ip.person()).pixel_values[0]]
    with torch.no_grad():
        assert torch.equal(embed_pictures(encoder, pixels, False)[0], theirs(torch.stack(pixels)).image_embeds)


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (lambda folder: (folder / "config.json").unlink(), "E-FILE-MISSING"),
        (lambda folder: (folder / "config.json").write_text('{"hidden_size": -3}'), "E-CONFIG-VALUE"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 9), "E-WEIGHTS-BROKEN"),
        (
            lambda folder: save_file({"visual_projection.weight": torch.ones(26, 36)}, folder / "model.safetensors"),
            "E-KEYS-MISMATCH",
        ),
    ],
)
def test_broken_encoders_are_refused(tmp_path, break_it, code):
    tiny_ip.encoder().save_pretrained(tmp_path)
    break_it(tmp_path)
    with pytest.raises(LoadError, match=code):
        load_image_encoder(tmp_path)


def test_grey_pictures_become_rgb():
    grey = Image.new("L", (50, 60), 128)
    processor = CLIPImageProcessor(42, 42)
    mean, std = (torch.tensor(each)[:, None, None] for each in (processor.image_mean, processor.image_std))
    assert torch.allclose(processor(grey).pixel_values[0] * std + mean, torch.tensor(128 / 255))
