"""What a file is: the published files' names and shapes, and marks of what others write."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sources import ROOT
from vivant.errors import LoadError
from vivant.hub.family import Kind, identify, refuse
from vivant.hub.header import Header, Stored, read_header

LDM = "model.diffusion_model.input_blocks"
TO_K = "transformer_blocks.0.attn2.to_k"
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def header(**shapes: tuple[int, ...]) -> Header:
    return Header({name.replace("/", "."): Stored("F16", shape) for name, shape in shapes.items()}, {})


def published(name: str) -> Header:
    """The tensors of a published file, from its manifest."""
    table = json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    return Header({key: Stored("F16", tuple(shape)) for key, shape in table.get("tensors", table).items()}, {})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd15_single_file", Kind("model", "Stable Diffusion 1.5", "the original")),
        ("sd15_unet2d", Kind("unet", "Stable Diffusion 1.5", "diffusers")),
        ("sd15_vae", Kind("vae", "Stable Diffusion 1.5", "diffusers")),
        ("pia_ckpt_original", Kind("motion module", "Stable Diffusion 1.5", "AnimateDiff")),
        ("pia_motion_adapter", Kind("motion module", "Stable Diffusion 1.5", "diffusers")),
        ("consisid_transformer", Kind("transformer", "ConsisID", "diffusers")),
        ("cogvideox_vae", Kind("vae", "CogVideoX", "diffusers")),
    ],
)
def test_published_files_are_known(name: str, kind: Kind):
    assert identify(published(name)) == kind


@pytest.mark.parametrize(
    ("shapes", "what", "family"),
    [
        ({f"{LDM}.0.0.weight": (320, 9, 3, 3)}, "model", "Stable Diffusion 1.5 inpainting"),
        ({f"{LDM}.0.0.weight": (320, 8, 3, 3)}, "model", "InstructPix2Pix"),
        (
            {f"{LDM}.0.0.weight": (320, 4, 3, 3), f"{LDM}.1.1.{TO_K}.weight": (320, 1024)},
            "model",
            "Stable Diffusion 2",
        ),
        (
            {f"{LDM}.0.0.weight": (320, 4, 3, 3), f"{LDM}.4.1.{TO_K}.weight": (640, 2048)},
            "model",
            "Stable Diffusion XL",
        ),
        (
            {f"{LDM}.0.0.weight": (320, 4, 3, 3), "model.diffusion_model.label_emb.0.0.weight": (1280, 2816)},
            "model",
            "Stable Diffusion XL",
        ),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (4, 4)}, "model", "Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "model", "Flux"),
        ({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "model", "Flux"),
        (
            {
                "conv_in.weight": (320, 4, 3, 3),
                "time_embedding.linear_1.weight": (1280, 320),
                "add_embedding.linear_1.weight": (1280, 2816),
            },
            "unet",
            "Stable Diffusion XL",
        ),
        ({f"{KOHYA}.lora_down.weight": (4, 768), f"{KOHYA}.lora_up.weight": (320, 4)}, "LoRA", "Stable Diffusion 1.5"),
        ({f"{KOHYA}.lora_down.weight": (4, 1024)}, "LoRA", "Stable Diffusion 2"),
        ({f"{KOHYA}.hada_w1_b": (4, 2048)}, "LoRA", "Stable Diffusion XL"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280)}, "LoRA", "Stable Diffusion XL"),
        ({f"unet.down_blocks.0.attentions.0.{TO_K}.lora_A.weight": (4, 768)}, "LoRA", "Stable Diffusion 1.5"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072)}, "LoRA", "Flux"),
        ({"transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": (4, 3072)}, "LoRA", "CogVideoX"),
        (
            {"down_blocks.0.motion_modules.0.temporal_transformer.x.processor.to_q_lora.down.weight": (4, 320)},
            "LoRA",
            "unknown",
        ),
        (
            {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)},
            "IP-Adapter",
            "Stable Diffusion 1.5",
        ),
        ({"ip_adapter.1.to_k_ip.weight": (640, 2048)}, "IP-Adapter", "Stable Diffusion XL"),
        (
            {"ip_adapter.0.to_q_lora.down.weight": (128, 320), "ip_adapter.1.to_k_ip.weight": (320, 768)},
            "IP-Adapter",
            "Stable Diffusion 1.5",
        ),
        ({"string_to_param.*": (3, 768)}, "textual inversion", "Stable Diffusion 1.5"),
        ({"emb_params": (1, 1024)}, "textual inversion", "Stable Diffusion 2"),
        ({"<cat>": (768,)}, "textual inversion", "Stable Diffusion 1.5"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "textual inversion", "Stable Diffusion XL"),
        ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "ControlNet", "unknown"),
        ({"first_stage_model.encoder.down.0.block.0.conv1.weight": (128, 128, 3, 3)}, "vae", "unknown"),
        ({"text_model.embeddings.token_embedding.weight": (49408, 768)}, "text encoder", "Stable Diffusion 1.5"),
        ({"something.weight": (4, 4)}, "unknown file", "unknown"),
        ({}, "unknown file", "unknown"),
    ],
)
def test_others_are_known_by_their_marks(shapes: dict[str, tuple[int, ...]], what: str, family: str):
    kind = identify(header(**shapes))
    assert (kind.what, kind.family) == (what, family)


def test_what_is_something_else_or_of_another_family_is_refused_by_name():
    path = Path("x.safetensors")
    lora = Kind("LoRA", "Stable Diffusion XL", "kohya")
    with pytest.raises(LoadError, match=r"E-FILE-FAMILY.*a LoRA of Stable Diffusion XL, as kohya writes it"):
        refuse(path, lora, ["LoRA"])
    refuse(path, lora, ["LoRA"], ["Stable Diffusion XL"])
    with pytest.raises(LoadError, match=r"E-FILE-KIND.*load_lora_weights"):
        refuse(path, Kind("LoRA", "Stable Diffusion 1.5", "kohya"), ["model"])
    refuse(path, Kind("LoRA", "unknown"), ["LoRA"])
    refuse(path, identify(header()), ["model"])


def test_a_header_is_read_without_the_tensors(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file({"a.b": torch.ones(2, 3, dtype=torch.bfloat16)}, path, metadata={"title": "x"})
    found = read_header(path)
    assert found == Header({"a.b": Stored("BF16", (2, 3))}, {"title": "x"})
    assert (found.shape("a.b"), found.shape("a.c")) == ((2, 3), ())


def test_tables_in_a_pickle_s_table_are_joined(tmp_path: Path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.ones(2), "steps": 7}, "optimizer": {"m": torch.ones(5)}}, path)
    assert read_header(path).tensors == {"a": Stored("F32", (2,))}
    torch.save({"image_proj": {"w": torch.ones(2, 5)}, "ip_adapter": {"1.k": torch.ones(3).half()}}, path)
    assert read_header(path).tensors == {"image_proj.w": Stored("F32", (2, 5)), "ip_adapter.1.k": Stored("F16", (3,))}


def test_a_pickle_without_tensors_has_no_header(tmp_path: Path):
    path = tmp_path / "a.pt"
    torch.save({"a": 1}, path)
    with pytest.raises(LoadError, match="E-WEIGHTS-PICKLE"):
        read_header(path)


def huge() -> bytes:
    return (2 << 30).to_bytes(8, "little") + b"{}"


def overlapping() -> bytes:
    entry = '"%s":{"dtype":"F32","shape":[4],"data_offsets":[%d,%d]}'
    text = ("{" + entry % ("a", 0, 16) + "," + entry % ("b", 8, 24) + "}").encode()
    return len(text).to_bytes(8, "little") + text + bytes(24)


@pytest.mark.parametrize("content", [b"", b"\x00", huge(), overlapping(), b"\xff" * 64])
def test_a_damaged_file_has_no_header(tmp_path: Path, content: bytes):
    for name in ("a.safetensors", "a.ckpt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LoadError, match=r"E-WEIGHTS-(BROKEN|PICKLE)"):
            read_header(tmp_path / name)


class Canary:
    """Makes a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_pickle_is_run(tmp_path: Path):
    canary = tmp_path / "canary"
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps({"a": Canary(canary)}))
    torch.save({"a": Canary(canary)}, tmp_path / "zip.ckpt")
    for name in ("raw.ckpt", "zip.ckpt"):
        with pytest.raises(LoadError, match="E-WEIGHTS-PICKLE"):
            read_header(tmp_path / name)
    assert not canary.exists()
    torch.load(tmp_path / "zip.ckpt", weights_only=False)
    assert canary.exists()  # it would have been
