"""What `from_single_file` accepts, leaves aside, reports and refuses."""

import json
import os
import socket
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tiny
import tiny_pia
import tiny_repo
import tiny_single
from vivant import placement
from vivant.errors import InputError, LoadError, VivantWarning
from vivant.hub import load, single_file
from vivant.hub.header import read_header
from vivant.hub.repo import Source
from vivant.hub.single_file import find, look_for, open_file, prediction, report_on
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNet2DConditionModel, UNetMotionModel
from vivant.pipelines.pia import PIAPipeline
from vivant.text.clip import shipped_tokenizer, text_encoder_from_single_file
from vivant.vae.image import AutoencoderKL

GOLDEN = Path(__file__).parents[1] / "golden"
UNET, VAE, TEXT = tiny_single.UNET, tiny_single.VAE, tiny_single.TEXT
HEADS = {"motion_num_attention_heads": 4, "motion_norm_num_groups": 8}


@pytest.fixture(scope="module")
def state():
    """A whole small model, in float32."""
    return tiny_single.whole({"unet": tiny_pia.base(), "vae": tiny_pia.vae(), "text_encoder": tiny_repo.text_encoder()})


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    return tiny_single.write(state, tmp_path_factory.mktemp("models") / "model.safetensors")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_single.configurations(tmp_path_factory.mktemp("config"))


@pytest.fixture
def loaded(config):
    """Loads a pipeline from a file, with what small models need."""

    def load_pipeline(path, **given):
        given = {"config": config, "motion_adapter": tiny_pia.adapter(), **given}
        return PIAPipeline.from_single_file(path, **given)

    return load_pipeline


def same(ours, theirs) -> bool:
    mine, other = ours.state_dict(), theirs.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in mine.items())


def without(state, *prefixes):
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


# ------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("ending", ["safetensors", "ckpt", "pt", "bin"])
def test_every_kind_of_file(tmp_path, state, loaded, ending):
    pipe = loaded(tiny_single.write(state, tmp_path / f"model.{ending}"))
    assert same(pipe.unet, tiny_pia.unet())
    assert same(pipe.vae, tiny_pia.vae())
    assert pipe.tokenizer.bos_token_id == tiny_repo.BOS


def test_a_pickle_of_the_old_form(tmp_path, state, loaded):
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": dict(state)}, path, _use_new_zipfile_serialization=False)
    assert same(loaded(path).vae, tiny_pia.vae())


def test_the_report_says_what_came_of_every_tensor(file, state, loaded):
    report = loaded(file).report
    assert report.matched == len(state) - 1
    assert report.aside == (f"{TEXT}embeddings.position_ids",)
    assert (report.unmatched, report.share, report.base) == ((), 1.0, "unknown")
    assert "the original" in report.kind
    assert report.sentence() in loaded(file).notes
    assert str(len(state) - 1) in report.sentence()


def test_leftovers_are_left_aside(tmp_path, state, loaded):
    more = {
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.diffusion_modelinput_blocks00weight": state[f"{UNET}input_blocks.0.0.weight"] + 1,
        "alphas_cumprod": torch.ones(1000),
        f"{VAE}loss.logvar": torch.zeros(1),
        "cond_stage_model.logit_scale": torch.ones(()),
        f"{TEXT}embeddings.position_ids": torch.arange(77.0)[None],
    }
    pipe = loaded(tiny_single.write({**state, **more}, tmp_path / "model.safetensors"))
    assert same(pipe.unet, tiny_pia.unet())
    assert set(pipe.report.aside) == set(more)
    assert pipe.text_encoder is not None
    ids = next(value for name, value in pipe.text_encoder.named_buffers() if name.endswith("position_ids"))
    assert ids.dtype == torch.int64


def test_position_ids_may_be_absent(tmp_path, state, loaded):
    path = tiny_single.write(without(state, f"{TEXT}embeddings.position_ids"), tmp_path / "model.safetensors")
    assert loaded(path).report.aside == ()


def test_a_text_encoder_without_its_level(tmp_path, state, loaded):
    shorter = {name.replace(TEXT, "cond_stage_model.transformer."): value for name, value in state.items()}
    pipe = loaded(tiny_single.write(shorter, tmp_path / "model.safetensors"))
    assert same(pipe.text_encoder, tiny_repo.text_encoder())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("asked", [None, torch.bfloat16])
def test_data_types(tmp_path, state, loaded, stored, asked):
    cast = {name: value.to(stored) if value.is_floating_point() else value for name, value in state.items()}
    pipe = loaded(tiny_single.write(cast, tmp_path / "model.safetensors"), dtype=asked)
    due = asked or torch.float32
    assert (pipe.dtype, pipe.vae.dtype, pipe.text_encoder.dtype) == (due, due, due)
    weight = tiny_pia.vae().encoder.conv_in.weight
    assert torch.equal(pipe.vae.encoder.conv_in.weight, weight.to(stored).to(due))


def test_tensors_of_the_right_type_are_mapped_and_not_copied(file, config):
    vae = AutoencoderKL.from_single_file(file, config=config, dtype=torch.float32)
    held, total = placement.stays([vae])
    assert total > 0
    assert held == 0


def test_what_was_read_only_to_be_converted_is_given_back(state, file, monkeypatch):
    given_back = []
    monkeypatch.setattr(load.pages, "give_back", given_back.append)
    AutoencoderKL.from_single_file(file, config=tiny.VAE, dtype=torch.float32)
    assert given_back == []
    AutoencoderKL.from_single_file(file, config=tiny.VAE, dtype=torch.bfloat16)
    assert len(given_back) == sum(name.startswith(VAE) for name in state)


def test_tensors_in_memory_are_never_given_back(state):
    before = {name: value.clone() for name, value in state.items()}
    vae = AutoencoderKL.from_single_file(state, config=tiny.VAE, dtype=torch.bfloat16)
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert torch.equal(vae.encoder.conv_in.weight, tiny_pia.vae().encoder.conv_in.weight.bfloat16())


def test_a_table_of_tensors(state):
    assert same(AutoencoderKL.from_single_file(state, config=tiny.VAE), tiny_pia.vae())


@pytest.mark.parametrize("form", ["mapping", "repository", "folder", "fields"])
def test_where_a_configuration_comes_from(file, config, form):
    given = {
        "mapping": {"config": tiny.VAE},
        "repository": {"config": config},
        "folder": {"config": config / "vae"},
        "fields": {k: v for k, v in tiny.VAE.items() if not k.startswith("_")},
    }[form]
    vae = AutoencoderKL.from_single_file(file, **given)
    assert same(vae, tiny_pia.vae())
    assert vae.report.matched == len(vae.state_dict())
    assert vae.report.unmatched == ()


def test_given_components_replace_those_of_the_file(file, loaded):
    vae = tiny_pia.vae()
    pipe = loaded(file, vae=vae, numerics="original")
    assert pipe.vae is vae
    assert pipe.numerics == "original"
    assert any(name.startswith(VAE) for name in pipe.report.aside)
    assert pipe.report.unmatched == ()


def test_nothing_touches_the_network(tmp_path, monkeypatch):
    """A full-size model of zeros, its configurations and tokenizer, with sockets that refuse and the hub online."""
    import huggingface_hub.constants

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    base = hollow(tmp_path / "model.safetensors", "sd15_single_file")
    motion = hollow(tmp_path / "pia.safetensors", "pia_ckpt_original")
    adapter = MotionAdapter.from_single_file(motion, dtype=torch.float16)
    pipe = PIAPipeline.from_single_file(base, motion_adapter=adapter, dtype=torch.float16)
    assert pipe.report.matched == 1130
    assert pipe.report.base == "Stable Diffusion 1.5"
    assert pipe.tokenizer is not None
    assert pipe.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert type(pipe.scheduler).__name__ == "PNDMScheduler"
    assert pipe.scheduler.config.steps_offset == 1
    assert pipe.vae.config.scaling_factor == 0.18215
    assert pipe.unet.config.in_channels == 9


def hollow(path: Path, manifest: str) -> Path:
    """A full-size file in half precision whose values are a hole: all zero, and no space on disk."""
    tensors = json.loads((GOLDEN / f"{manifest}.json").read_text(encoding="utf-8"))["tensors"]
    header, at = {}, 0
    for name, shape in tensors.items():
        end = at + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + at)
    return path


def test_the_tokenizer_is_the_published_one():
    import hashlib

    data = (single_file.SD15 / "tokenizer" / "merges.txt").read_bytes()
    known = "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"
    assert hashlib.sha256(data).hexdigest() == known
    tokenizer = shipped_tokenizer(single_file.SD15 / "tokenizer")
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token_id) == (49408, 77, 49407)
    assert tokenizer.decode(tokenizer("Déjà vu, 日本!").input_ids[1:-1]).strip() == "déjà vu , 日本 !"


@pytest.mark.parametrize(
    ("marks", "metadata", "fields"),
    [
        (["v_pred"], {}, {"prediction_type": "v_prediction"}),
        (["v_pred", "ztsnr"], {}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        ([], {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction"}),
        ([], {"modelspec.prediction_type": "epsilon"}, {}),
    ],
)
def test_models_that_predict_velocity(tmp_path, state, loaded, marks, metadata, fields):
    path = tmp_path / "model.safetensors"
    save_file({**state, **{name: torch.zeros(0) for name in marks}}, path, metadata=metadata)
    assert prediction(read_header(path)) == fields
    pipe = loaded(path)
    assert {name: pipe.scheduler.config[name] for name in fields} == fields
    assert any("asks for" in note for note in pipe.notes) == bool(fields)
    given = loaded(path, scheduler=tiny_pia.pipeline().scheduler)
    assert given.scheduler.config.prediction_type == "epsilon"


# ------------------------------------------------------------------------------------------------- where it lies


@pytest.mark.parametrize(
    "link",
    [
        "someone/model/blob/main/sub/model.safetensors",
        "someone/model/resolve/main/sub/model.safetensors",
        "someone/model/sub/model.safetensors",
        "https://huggingface.co/someone/model/blob/main/sub/model.safetensors",
        "https://huggingface.co/someone/model/resolve/main/sub/model.safetensors?download=true",
        "hf.co/someone/model/blob/main/sub/model.safetensors",
    ],
)
def test_files_of_the_hub(tmp_path, file, link):
    repository = tmp_path / "repository" / "sub"
    repository.mkdir(parents=True)
    os.link(file, repository / "model.safetensors")
    snapshot = tiny_repo.into_cache(tmp_path / "cache", "someone/model", tmp_path / "repository")
    place = Source("", cache_dir=tmp_path / "cache", local_files_only=True)
    assert find(link, place) == snapshot / "sub" / "model.safetensors"
    vae = AutoencoderKL.from_single_file(link, config=tiny.VAE, cache_dir=tmp_path / "cache", local_files_only=True)
    assert same(vae, tiny_pia.vae())


def test_a_file_in_a_variant_of_the_hub(tmp_path, file):
    (tmp_path / "repository").mkdir()
    os.link(file, tmp_path / "repository" / "diffusion_pytorch_model.fp16.safetensors")
    snapshot = tiny_repo.into_cache(tmp_path / "cache", "someone/model", tmp_path / "repository")
    place = Source("", cache_dir=tmp_path / "cache", local_files_only=True)
    name = "diffusion_pytorch_model.fp16.safetensors"
    assert find(f"someone/model/blob/main/{name}", place) == snapshot / name


@pytest.mark.parametrize(
    ("link", "code"),
    [
        ("nothing.safetensors", "E-FILE-MISSING"),
        ("https://civitai.com/api/download/models/1", "E-FILE-MISSING"),
        ("https://example.org/someone/model/blob/main/model.safetensors", "E-FILE-MISSING"),
        ("someone/model/blob/main/../../../model.safetensors", "E-FILE-MISSING"),
        ("someone/model/blob/main/model.safetensors", "E-REPO-OFFLINE"),
        (Path("someone/model/blob/main/model.safetensors"), "E-FILE-MISSING"),
        (".", "E-REPO-FOLDER"),
        ("", "E-FILE-MISSING"),
        ("a\0b", "E-FILE-MISSING"),
    ],
)
def test_what_is_no_file(tmp_path, monkeypatch, link, code):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError) as caught:
        find(link, Source("", cache_dir=tmp_path / "cache", local_files_only=True))
    assert caught.value.code == code


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("prefix", "name", "part"), [(VAE, "vae", "VAE"), (TEXT, "text_encoder", "text encoder")])
def test_a_file_that_lacks_a_network(tmp_path, state, loaded, prefix, name, part):
    path = tiny_single.write(without(state, prefix), tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=rf"E-FILE-PART.*has no {part}.*{name}=…"):
        loaded(path)
    given = {"vae": tiny_pia.vae(), "text_encoder": tiny_repo.text_encoder()}[name]
    assert getattr(loaded(path, **{name: given}), name) is given


def test_a_tensor_too_few_or_too_many_names_the_nearest(tmp_path, state, loaded):
    name = f"{UNET}middle_block.1.proj_in.weight"
    other = {key.replace("1.proj_in.weight", "1.projin.weight") if key == name else key: v for key, v in state.items()}
    path = tiny_single.write(other, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=r"E-KEYS-MISMATCH.*projin.weight \(nearest missing: \S*middle_block.1.proj_in"):
        loaded(path)


def test_a_wrong_shape_is_named_in_the_words_of_the_file(tmp_path, state, loaded):
    name = f"{UNET}time_embed.0.weight"
    path = tiny_single.write({**state, name: state[name][:, :-1]}, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=rf"E-KEYS-MISMATCH.*{name} is \[64, 15\], should be \[64, 16\]"):
        loaded(path)


def test_a_full_size_file_does_not_fit_a_small_configuration(tmp_path, loaded):
    with pytest.raises(LoadError, match="E-KEYS-MISMATCH"):
        loaded(hollow(tmp_path / "model.safetensors", "sd15_single_file"))


def test_strangers_are_reported_and_many_of_them_warn(tmp_path, state, loaded):
    few = {**state, "somebody.else": torch.ones(2)}
    assert loaded(tiny_single.write(few, tmp_path / "few.safetensors")).report.unmatched == ("somebody.else",)
    many = {**state, **{f"stranger.{i}": torch.ones(2) for i in range(len(state) // 5)}}
    with pytest.warns(VivantWarning, match="W-KEYS-UNMATCHED"):
        report = loaded(tiny_single.write(many, tmp_path / "many.safetensors")).report
    assert 0.8 < report.share < 0.9


def wrong(what: str, state) -> dict[str, torch.Tensor]:
    """A small file with the marks of another family."""
    text = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    first = f"{UNET}input_blocks.0.0.weight"
    return {
        "Stable Diffusion XL": {**state, f"{UNET}label_emb.0.0.weight": torch.zeros(4, 4)},
        "Stable Diffusion 2": {**state, text: torch.zeros(16, 1024)},
        "Stable Diffusion 1.5 inpainting": {**state, first: torch.zeros(16, 9, 3, 3)},
        "InstructPix2Pix": {**state, first: torch.zeros(16, 8, 3, 3)},
        "Flux": {"double_blocks.0.img_attn.qkv.weight": torch.zeros(12, 4)},
        "Stable Diffusion 3": {"joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(12, 4)},
    }[what]


@pytest.mark.parametrize(
    "what",
    [
        "Stable Diffusion XL",
        "Stable Diffusion 2",
        "Stable Diffusion 1.5 inpainting",
        "InstructPix2Pix",
        "Flux",
        "Stable Diffusion 3",
    ],
)
def test_other_families_are_refused_by_name_before_a_tensor_is_read(tmp_path, monkeypatch, state, loaded, what):
    path = tiny_single.write(wrong(what, state), tmp_path / "model.safetensors")
    monkeypatch.setattr(single_file, "read_file", lambda path: pytest.fail("tensors were read"))
    start = time.process_time()
    with pytest.raises(LoadError, match=rf"E-FILE-FAMILY.*{what}"):
        loaded(path)
    assert time.process_time() - start < 2
    with pytest.raises(LoadError, match="E-FILE-FAMILY"):
        UNet2DConditionModel.from_single_file(path, config=tiny.UNET2D)


def test_other_kinds_are_refused(tmp_path, state, loaded):
    vae = tiny_single.write(tiny_single.vae(tiny_pia.vae().state_dict(), ""), tmp_path / "vae.safetensors")
    motion = tiny_single.write(tiny_single.motion(tiny_pia.adapter().state_dict()), tmp_path / "mm.safetensors")
    lora = {"lora_unet_x.lora_up.weight": torch.ones(4, 2), "lora_unet_x.lora_down.weight": torch.ones(2, 4)}
    for path, hint in (
        (vae, "AutoencoderKL.from_single_file"),
        (motion, "MotionAdapter.from_single_file"),
        (tiny_single.write(lora, tmp_path / "lora.safetensors"), "load_lora_weights"),
    ):
        with pytest.raises(LoadError, match=rf"E-FILE-KIND.*{hint}"):
            loaded(path)
    with pytest.raises(LoadError, match="E-FILE-KIND"):
        MotionAdapter.from_single_file(vae)
    with pytest.raises(LoadError, match="E-FILE-PART"):
        AutoencoderKL.from_single_file({"whatever": torch.ones(3, 3, 3)}, config=tiny.VAE)
    with pytest.raises(LoadError, match="E-FILE-KIND"):
        text_encoder_from_single_file(motion)


def test_motion_modules_that_cannot_drive_pia(tmp_path, file, loaded, monkeypatch):
    plain = {name: value for name, value in tiny_pia.adapter().state_dict().items() if not name.startswith("conv_in")}
    path = tiny_single.write(tiny_single.motion(plain), tmp_path / "v3_sd15_mm.ckpt")
    adapter = MotionAdapter.from_single_file(path, **HEADS)
    monkeypatch.setattr(single_file, "read_file", lambda path: pytest.fail("tensors were read"))
    with pytest.raises(InputError, match="E-ADAPTER-NOT-PIA"):
        loaded(file, motion_adapter=adapter)
    with pytest.raises(InputError, match="E-ADAPTER-NONE"):
        loaded(file, motion_adapter=None)


def test_frames_beyond_the_positions_of_a_module(tmp_path, file, loaded):
    state = {
        name: value[:, :24] if name.endswith("pe") else value for name, value in tiny_pia.adapter().state_dict().items()
    }
    path = tiny_single.write(tiny_single.motion(state), tmp_path / "mm.ckpt")
    pipe = loaded(file, motion_adapter=MotionAdapter.from_single_file(path, **HEADS))
    assert pipe.unet.config.motion_max_seq_length == 24
    with pytest.raises(InputError, match=r"E-FRAMES-MAX.*25 frames.*24"):
        tiny_pia.run(pipe, num_frames=25)


def test_positions_that_differ_between_two_attentions(tmp_path):
    state = tiny_single.motion(tiny_pia.adapter().state_dict())
    name = next(name for name in state if "attention_blocks.1.pos_encoder" in name)
    path = tiny_single.write({**state, name: state[name] + 1e-3}, tmp_path / "mm.safetensors")
    with pytest.raises(LoadError, match=r"E-KEYS-MISMATCH.*differ"):
        MotionAdapter.from_single_file(path, **HEADS)


def test_positions_may_be_absent(tmp_path):
    state = {k: v for k, v in tiny_single.motion(tiny_pia.adapter().state_dict()).items() if "pos_encoder" not in k}
    adapter = MotionAdapter.from_single_file(tiny_single.write(state, tmp_path / "mm.safetensors"), **HEADS)
    assert same(adapter, tiny_pia.adapter())


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"original_config": "v1-inference.yaml"}, "E-ARG-VALUE"),
        ({"original_config_file": "v1-inference.yaml"}, "E-ARG-VALUE"),
        ({"disable_mmap": True}, "E-ARG-VALUE"),
        ({"load_safety_checker": True}, "E-ARG-VALUE"),
        ({"scaling_factor": 0.2}, "E-ARG-UNKNOWN"),
        ({"vae": "vae.safetensors"}, "E-COMPONENT-TYPE"),
        ({"numerics": "exact"}, "E-NUMERICS"),
        ({"dtype": torch.int8}, "E-DTYPE"),
        ({"dtype": torch.float16, "torch_dtype": torch.float32}, "E-DTYPE-TWICE"),
    ],
)
@pytest.mark.unchecked
def test_keywords_that_cannot_be_honoured(file, loaded, monkeypatch, given, code):
    monkeypatch.setattr(single_file, "read_file", lambda path: pytest.fail("tensors were read"))
    with pytest.raises(InputError) as caught:
        loaded(file, **given)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "given",
    [{"original_config": None}, {"disable_mmap": False}, {"load_safety_checker": False}, {"safety_checker": None}],
)
def test_keywords_that_change_nothing(file, loaded, given):
    assert loaded(file, **given).vae is not None


def test_networks_that_have_no_single_files(file):
    with pytest.raises(InputError, match=r"E-NOT-YET.*UNetMotionModel"):
        UNetMotionModel.from_single_file(file)
    with pytest.raises(InputError, match="E-ARG-VALUE"):
        AutoencoderKL.from_single_file(file, original_config="v1.yaml", config=tiny.VAE)


def test_a_report_of_a_network_alone(file):
    found = look_for(open_file(file, Source("")), single_file.VAE)
    _, names = AutoencoderKL.from_found(found, tiny.VAE, None)
    report = report_on(found.file, names)
    assert report.matched + len(report.aside) == len(found.file.header.tensors)
