"""The base of all pipelines, on a small stand-in for a text-to-image pipeline."""

import json
import pickle
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import tiny
import tiny_repo
from tolerances import assert_parity
from vivant import placement
from vivant.errors import InputError, LoadError, VivantWarning
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNet2DConditionModel, UNetMotionModel
from vivant.pipelines.base import DiffusionPipeline
from vivant.placement import pages
from vivant.schedulers import DDIMScheduler, EulerDiscreteScheduler, UnknownScheduler
from vivant.text import clip
from vivant.vae.image import AutoencoderKL
from vivant.vision import CLIPImageProcessor


class StableDiffusionPipeline(DiffusionPipeline):
    """Holds its components; its name makes diffusers read what it saves."""

    _loading_options: ClassVar = {"UNetMotionModel": ("numerics",)}

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: Any,
        tokenizer: Any,
        unet: UNet2DConditionModel | UNetMotionModel,
        scheduler: Any,
        motion_adapter: MotionAdapter | None = None,
        feature_extractor: Any = None,
        *,
        numerics: str = "diffusers",
    ):
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            motion_adapter=motion_adapter,
            feature_extractor=feature_extractor,
        )
        self.numerics = numerics


class Encoder(DiffusionPipeline):
    """A pipeline that shares some components with the other."""

    def __init__(self, text_encoder, tokenizer, *, length: int = 77):
        super().__init__(text_encoder=text_encoder, tokenizer=tokenizer)
        self.length = length


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_repo.write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    return tiny_repo.write_base(tmp_path_factory.mktemp("half"), "fp16")


@pytest.fixture
def pipe(base) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(base)


def copy(base: Path, folder: Path) -> Path:
    """The repository again, without copying weights."""
    for path in base.rglob("*"):
        target = folder / path.relative_to(base)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
    return folder


def rewrite_index(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "model_index.json").read_text()) | changes
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if v is not ...}))


def same_weights(ours: nn.Module, other: nn.Module) -> None:
    left, right = ours.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


# Reading


def test_a_base_repository(pipe):
    assert type(pipe.vae) is AutoencoderKL
    assert type(pipe.unet) is UNet2DConditionModel
    assert type(pipe.scheduler) is DDIMScheduler
    assert pipe.scheduler.config.beta_schedule == "linear"
    assert type(pipe.text_encoder).__name__ == "CLIPTextModel"
    assert clip.encode(pipe.tokenizer, pipe.text_encoder, ["cat"]).shape == (1, 77, tiny.TEXT_DIM)
    assert (pipe.motion_adapter, pipe.feature_extractor) == (None, CLIPImageProcessor())
    assert pipe.dtype == torch.float32
    assert pipe.device == torch.device("cpu")
    assert pipe.unet.conv_in.weight[0, 0, 0, 0] == tiny.rule("conv_in.weight", (16, 4, 3, 3))[0, 0, 0, 0]


def test_what_is_left_out_is_noted(pipe):
    assert any(note.startswith("safety_checker") for note in pipe.notes)
    assert len(pipe.notes) == 1


def test_an_optional_component_that_nobody_reads_is_noted(base, tmp_path):
    folder = copy(base, tmp_path)
    rewrite_index(folder, feature_extractor=["transformers", "ViTImageProcessor"])
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert any(note.startswith("feature_extractor (ViTImageProcessor)") for note in pipe.notes)
    assert pipe.feature_extractor is None


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_one_data_type_for_all(base, name):
    pipe = StableDiffusionPipeline.from_pretrained(base, **{name: torch.bfloat16})
    assert {n.dtype for n in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.bfloat16}


def test_two_data_types_are_refused(base):
    with pytest.raises(InputError, match="E-DTYPE-TWICE"):
        StableDiffusionPipeline.from_pretrained(base, dtype=torch.float16, torch_dtype=torch.float32)


def test_from_the_hub_cache(base, tmp_path):
    tiny_repo.into_cache(tmp_path, "artist/style", base)
    pipe = StableDiffusionPipeline.from_pretrained("artist/style", cache_dir=tmp_path)
    assert type(pipe.unet) is UNet2DConditionModel
    with pytest.raises(LoadError, match="E-REPO-OFFLINE"):
        StableDiffusionPipeline.from_pretrained("artist/other", cache_dir=tmp_path)


def test_components_in_place_of_those_of_the_repository(base, pipe, tmp_path):
    broken = copy(base, tmp_path / "broken")
    for name in ("vae", "unet"):  # not even looked at
        (broken / name / "config.json").unlink()
    again = StableDiffusionPipeline.from_pretrained(broken, unet=pipe.unet, vae=pipe.vae, text_encoder=None)
    assert again.unet is pipe.unet
    assert (again.vae, again.text_encoder) == (pipe.vae, None)
    with pytest.raises(LoadError, match=r"E-FILE-MISSING.*config.json"):
        StableDiffusionPipeline.from_pretrained(broken, unet=pipe.unet)


def test_options_reach_the_pipeline_and_its_components(base, pipe, tmp_path):
    adapter = tiny.fill(MotionAdapter(**tiny.ADAPTER))
    pipe.unet = UNetMotionModel.from_unet2d(pipe.unet, adapter)
    pipe.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path, numerics="original")
    assert (again.numerics, again.unet.numerics) == ("original", "original")
    assert StableDiffusionPipeline.from_pretrained(tmp_path).unet.numerics == "diffusers"


@pytest.mark.parametrize(
    ("keyword", "value", "code"),
    [
        ("unett", None, "E-ARG-UNKNOWN"),
        ("custom_pipeline", "x", "E-ARG-UNKNOWN"),
        ("image_encoder", None, "E-ARG-UNKNOWN"),
        ("safety_checker", object(), "E-ARG-VALUE"),
        ("requires_safety_checker", True, "E-ARG-VALUE"),
        ("low_cpu_mem_usage", False, "E-ARG-VALUE"),
        ("device_map", "balanced", "E-ARG-VALUE"),
        ("use_safetensors", False, "E-ARG-VALUE"),
        ("force_download", True, "E-ARG-VALUE"),
        ("trust_remote_code", True, "E-ARG-VALUE"),
    ],
)
def test_keywords_that_would_be_ignored(base, keyword, value, code):
    with pytest.raises(InputError, match=keyword) as error:
        StableDiffusionPipeline.from_pretrained(base, **{keyword: value})
    assert error.value.code == code


def test_the_base_class_itself_loads_nothing(base, pipe):
    with pytest.raises(InputError, match=r"E-PIPELINE-BASE.*PIAPipeline"):
        DiffusionPipeline.from_pretrained(base)
    with pytest.raises(InputError, match="E-PIPELINE-BASE"):
        DiffusionPipeline.from_pipe(pipe)


def test_the_nearest_keyword_is_named(base):
    with pytest.raises(InputError, match=r"Did you mean unet\?"):
        StableDiffusionPipeline.from_pretrained(base, unett=None)


def test_keywords_that_ask_for_what_happens_anyway(base):
    StableDiffusionPipeline.from_pretrained(
        base,
        safety_checker=None,
        requires_safety_checker=False,
        low_cpu_mem_usage=True,
        use_safetensors=True,
        device_map=None,
        force_download=False,
        trust_remote_code=False,
    )


def test_pickles_are_read_unless_refused(base, tmp_path):
    folder = copy(base, tmp_path)
    torch.save(tiny_repo.text_encoder().state_dict(), folder / "text_encoder" / "pytorch_model.bin")
    (folder / "text_encoder" / "model.safetensors").unlink()
    same_weights(StableDiffusionPipeline.from_pretrained(folder).text_encoder, tiny_repo.text_encoder())
    with pytest.raises(LoadError, match=r"E-REPO-PICKLE.*text_encoder"):
        StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True)


def test_variants(half, base):
    pipe = StableDiffusionPipeline.from_pretrained(half, variant="fp16", torch_dtype=torch.float16)
    assert pipe.unet.dtype == torch.float16
    assert len(pipe.notes) == 1
    with pytest.raises(LoadError, match=r'E-WEIGHTS-VARIANT.*variant="fp16"'):
        StableDiffusionPipeline.from_pretrained(half)
    with pytest.raises(LoadError, match=r"E-WEIGHTS-VARIANT.*no variant"):
        StableDiffusionPipeline.from_pretrained(base, variant="fp16")


def test_a_component_without_the_variant_is_read_plain(half, base, tmp_path):
    folder = copy(half, tmp_path)
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    (folder / "vae" / "diffusion_pytorch_model.safetensors").hardlink_to(
        base / "vae" / "diffusion_pytorch_model.safetensors"
    )
    pipe = StableDiffusionPipeline.from_pretrained(folder, variant="fp16")
    same_weights(pipe.vae, StableDiffusionPipeline.from_pretrained(base).vae)
    assert any(note.startswith('vae has no variant "fp16"') for note in pipe.notes)


def test_folders_that_are_no_pipeline(base, tmp_path):
    with pytest.raises(LoadError, match=r"E-REPO-INDEX.*single component"):
        StableDiffusionPipeline.from_pretrained(base / "unet")
    with pytest.raises(LoadError, match="E-REPO-INDEX"):
        StableDiffusionPipeline.from_pretrained(tmp_path)


def test_a_repository_that_lacks_a_component(base, tmp_path):
    folder = copy(base, tmp_path)
    rewrite_index(folder, unet=...)
    with pytest.raises(LoadError, match=r"E-REPO-COMPONENT.*lacks unet"):
        StableDiffusionPipeline.from_pretrained(folder)
    rewrite_index(folder, unet=[None, None], text_encoder=[None, None])
    with pytest.raises(LoadError, match=r"E-REPO-COMPONENT.*lacks unet,"):
        StableDiffusionPipeline.from_pretrained(folder)
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    pipe = StableDiffusionPipeline.from_pretrained(folder, unet=unet)
    assert (pipe.unet, pipe.text_encoder) == (unet, None)


def test_a_component_that_is_needed_is_not_none(base):
    with pytest.raises(InputError, match=r"E-COMPONENT-TYPE.*vae is None.*AutoencoderKL"):
        StableDiffusionPipeline.from_pretrained(base, vae=None)


def test_a_component_of_a_class_that_we_lack(base, tmp_path):
    folder = copy(base, tmp_path)
    rewrite_index(folder, vae=["diffusers", "AsymmetricAutoencoderKL"])
    with pytest.raises(LoadError, match=r"E-COMPONENT-CLASS.*vae is a diffusers.AsymmetricAutoencoderKL"):
        StableDiffusionPipeline.from_pretrained(folder)


def test_a_scheduler_that_we_lack_is_kept(base, tmp_path):
    folder = copy(base, tmp_path / "there")
    config = {"_class_name": "MadeUpScheduler", "beta_start": 0.1, "wave": [1, 2]}
    (folder / "scheduler" / "scheduler_config.json").unlink()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    rewrite_index(folder, scheduler=["diffusers", "MadeUpScheduler"])
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert type(pipe.scheduler) is UnknownScheduler
    pipe.save_pretrained(tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "MadeUpScheduler"]
    saved = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert saved.items() >= config.items()


def test_the_family_is_checked_before_any_tensor_is_read(base, tmp_path):
    class Picky(StableDiffusionPipeline):
        @classmethod
        def _check_repository(cls, folder, index, given):
            assert index["_class_name"] == "StableDiffusionPipeline"
            assert given == {"text_encoder": None, "numerics": "original"}
            raise LoadError("E-FAMILY", "wrong family")

    folder = copy(base, tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(LoadError, match="E-FAMILY"):
        Picky.from_pretrained(folder, text_encoder=None, numerics="original")


# Writing


def test_round_trip(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {k: v for k, v in index.items() if k[0] != "_"} == {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "motion_adapter": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", type(pipe.tokenizer).__name__],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    assert index["_class_name"] == "StableDiffusionPipeline"
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    for name in ("unet", "vae", "text_encoder"):
        same_weights(getattr(again, name), getattr(pipe, name))
    assert dict(again.scheduler.config).items() >= tiny_repo.public(tiny.SCHEDULER).items()
    assert again.notes == []


def test_the_oracle_reads_it_and_we_read_what_the_oracle_writes(pipe, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pipe.save_pretrained(tmp_path / "ours", variant="x")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "ours", variant="x", safety_checker=None, feature_extractor=None
    )
    for name in ("unet", "vae", "text_encoder"):
        same_weights(getattr(theirs, name), getattr(pipe, name))
    assert type(theirs.scheduler) is diffusers.DDIMScheduler
    assert theirs.scheduler.config.beta_schedule == "linear"
    ids = theirs.tokenizer(["cat in a field"], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(ids, clip.tokenise(pipe.tokenizer, ["cat in a field"]).ids)
    theirs.save_pretrained(tmp_path / "theirs", variant="y")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "theirs", variant="y")
    for name in ("unet", "vae", "text_encoder"):
        same_weights(getattr(again, name), getattr(pipe, name))
    prompt = ["the photo of a running cat"]
    assert_parity(
        clip.encode(again.tokenizer, again.text_encoder, prompt), clip.encode(pipe.tokenizer, pipe.text_encoder, prompt)
    )


def test_variants_and_shards_are_written(pipe, tmp_path):
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("diffusion_pytorch_model.fp16-*.safetensors"))) > 1
    assert len(list((tmp_path / "text_encoder").glob("model.fp16-*.safetensors"))) > 1
    again = StableDiffusionPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    same_weights(again.unet, pipe.unet)
    same_weights(again.text_encoder, pipe.text_encoder)


def test_pickles_are_not_written(pipe, tmp_path):
    with pytest.raises(InputError, match="E-SAVE-PICKLE"):
        pipe.save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.iterdir()) == []


# Components


def test_components_make_another_pipeline(pipe):
    assert list(pipe.components) == [
        "vae",
        "text_encoder",
        "tokenizer",
        "unet",
        "scheduler",
        "motion_adapter",
        "feature_extractor",
    ]
    again = StableDiffusionPipeline(**pipe.components)
    assert all(again.components[name] is value for name, value in pipe.components.items())


def test_from_pipe(pipe):
    pipe.numerics = "original"
    encoder = Encoder.from_pipe(pipe, length=20)
    assert encoder.text_encoder is pipe.text_encoder
    assert encoder.length == 20
    assert not hasattr(encoder, "unet")
    again = StableDiffusionPipeline.from_pipe(pipe, text_encoder=None, safety_checker=None)
    assert (again.numerics, again.text_encoder) == ("original", None)
    assert not hasattr(again, "safety_checker")
    with pytest.raises(LoadError, match=r"E-REPO-COMPONENT.*lacks vae"):
        StableDiffusionPipeline.from_pipe(pipe, vae=None)
    assert StableDiffusionPipeline.from_pipe(pipe, numerics="diffusers").numerics == "diffusers"
    with pytest.raises(LoadError, match=r"E-REPO-COMPONENT.*Encoder lacks vae, unet, scheduler"):
        StableDiffusionPipeline.from_pipe(encoder)
    with pytest.raises(InputError, match="E-ARG-UNKNOWN"):
        Encoder.from_pipe(pipe, unet=None)


@pytest.mark.parametrize("name", ["load_ip_adapter", "load_textual_inversion", "from_single_file"])
def test_methods_that_are_not_here_yet(pipe, name):
    with pytest.raises(InputError, match=rf"E-NOT-YET.*StableDiffusionPipeline.{name}"):
        getattr(pipe, name)("some/repository", weight_name="x.safetensors")
    with pytest.raises(InputError, match="E-NOT-YET"):
        getattr(StableDiffusionPipeline, name)("model.safetensors")
    assert list(pipe.components) == list(StableDiffusionPipeline(**pipe.components).components)


def test_schedulers_are_exchanged(pipe):
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert type(pipe.scheduler) is EulerDiscreteScheduler
    assert pipe.config["scheduler"] == ("diffusers", "EulerDiscreteScheduler")


def test_schedulers_of_the_oracle_are_translated(pipe):
    diffusers = pytest.importorskip("diffusers")
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(dict(pipe.scheduler.config))
    assert type(pipe.scheduler) is EulerDiscreteScheduler
    assert pipe.scheduler.config.beta_schedule == "linear"


def test_components_of_another_type_are_refused(pipe):
    with pytest.raises(InputError, match=r"E-COMPONENT-TYPE.*vae is a vivant.UNet2DConditionModel.*AutoencoderKL"):
        pipe.vae = pipe.unet
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.MotionAdapter(**tiny_repo.public(tiny.ADAPTER))
    with pytest.raises(InputError, match=r"E-COMPONENT-TYPE.*diffusers.MotionAdapter"):
        pipe.motion_adapter = theirs
    pipe.motion_adapter = None


def test_the_components_can_be_read_off(pipe):
    text = repr(pipe)
    assert text.startswith("StableDiffusionPipeline(\n  vae: AutoencoderKL,")
    assert "  motion_adapter: None," in text


# Placement


def test_to(pipe):
    assert pipe.to(torch.bfloat16) is pipe
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype, pipe.dtype} == {torch.bfloat16}
    assert pipe.to("cpu", torch.float32).dtype == torch.float32
    assert pipe.to(torch.device("cpu"), dtype=torch.float16).dtype == torch.float16
    assert pipe.to(dtype=torch.float32, device="meta").device.type == "meta"
    assert (pipe.memory.device, pipe._execution_device.type) == ("meta", "meta")


@pytest.mark.parametrize("arguments", [("cpu", "cpu"), (torch.float16, torch.float32), (3,), (object(),)])
def test_to_nowhere(pipe, arguments):
    with pytest.raises(InputError, match="E-TO-ARGS"):
        pipe.to(*arguments)


def test_to_a_device_that_is_not_there(pipe):
    with pytest.raises(InputError, match="E-DEVICE"):
        pipe.to("nonsense")


@pytest.mark.parametrize("call", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_without_an_accelerator_says_so_once(pipe, call, monkeypatch):
    monkeypatch.setattr(placement, "machine", placement.Machine)
    if pages.supported():
        getattr(pipe, call)()  # all weights are in files, which get them back
        assert not any("W-OFFLOAD" in note for note in pipe.notes)
    pipe.to(torch.bfloat16)
    with pytest.warns(VivantWarning, match=r"W-OFFLOAD-CPU.*lie in no file"):
        getattr(pipe, call)()
    getattr(pipe, call)(gpu_id=0)  # a second warning would be an error
    assert any("W-OFFLOAD-CPU" in note for note in pipe.notes)
    assert pipe._execution_device == torch.device("cpu")
    assert not placement.moves(pipe.memory)


def test_offloading_from_an_accelerator(pipe, monkeypatch):
    monkeypatch.setattr(placement, "machine", lambda: placement.Machine(("cuda",)))
    monkeypatch.setattr(placement, "check_place", lambda *_: None)
    pipe.to(torch.bfloat16)
    pipe.enable_model_cpu_offload(gpu_id=1)
    assert pipe.memory == placement.MemoryPolicy("cuda:1", torch.bfloat16, "component")
    assert str(pipe._execution_device) == "cuda:1"
    assert pipe.device == torch.device("cpu")
    pipe.enable_sequential_cpu_offload()
    assert pipe.memory.residency == "layer"
    assert pipe.to("cpu").memory == placement.MemoryPolicy("cpu", torch.bfloat16, "resident")


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "meta:x"])
def test_offloading_from_what_is_not_there_is_refused_before_anything_moves(pipe, monkeypatch, device):
    def check(device: str, dtype: torch.dtype) -> None:
        checked.append((device, dtype))
        raise InputError("E-DEVICE", "It does not answer.")

    checked: list[tuple[str, torch.dtype]] = []
    monkeypatch.setattr(placement, "check_place", check)
    monkeypatch.setattr(placement, "move", lambda *_: pytest.fail("moved"))
    with pytest.raises(InputError, match="E-DEVICE"):
        pipe.enable_model_cpu_offload(device=device)
    assert checked == ([("cuda:77", torch.float32)] if device == "cuda:77" else [])
    assert pipe.memory == placement.MemoryPolicy("cpu", torch.float32, "resident")


def test_freeing_brings_components_back(pipe, monkeypatch):
    monkeypatch.setattr(placement, "machine", lambda: placement.Machine(("cuda",)))
    monkeypatch.setattr(placement, "check_place", lambda *_: None)
    moved = []
    monkeypatch.setattr(placement, "move", lambda networks, device, dtype=None: moved.append((len(networks), device)))
    pipe.maybe_free_model_hooks()
    assert moved == []
    pipe.enable_model_cpu_offload()
    pipe.maybe_free_model_hooks()
    assert moved == [(3, "cpu"), (3, "cpu")]


def test_float16_on_a_cpu_warns_once(pipe):
    assert pipe._prepare_run() == placement.MemoryPolicy("cpu", torch.float32, "resident")
    pipe.to(torch.float16)
    with pytest.warns(VivantWarning, match="W-CPU-FLOAT16"):
        pipe._prepare_run()
    assert pipe._prepare_run().dtype == torch.float16


def test_attention_switches_change_nothing_and_say_so(pipe):
    with pytest.warns(VivantWarning, match="W-ATTENTION"):
        pipe.enable_attention_slicing()
    pipe.enable_attention_slicing(1)
    pipe.enable_xformers_memory_efficient_attention()
    pipe.disable_attention_slicing()
    pipe.disable_xformers_memory_efficient_attention()
    with pytest.raises(InputError, match="E-ATTENTION-OP"):
        pipe.enable_xformers_memory_efficient_attention(attention_op=pickle)


# The progress bar


def test_progress_bar(pipe, capsys):
    pipe.set_progress_bar_config(desc="Painting", leave=True)
    with pipe.progress_bar(total=3) as bar:
        for _ in range(3):
            bar.update()
    shown = capsys.readouterr().err
    assert "Painting" in shown
    assert "3/3" in shown
    assert list(pipe.progress_bar(range(4))) == [0, 1, 2, 3]
    assert "4/4" in capsys.readouterr().err


def test_progress_bar_switched_off(pipe, capsys):
    pipe.set_progress_bar_config(disable=True)
    assert list(pipe.progress_bar([1, 2])) == [1, 2]
    assert capsys.readouterr().err == ""


def test_progress_of_nothing(pipe):
    with pytest.raises(InputError, match="E-PROGRESS"):
        pipe.progress_bar()
