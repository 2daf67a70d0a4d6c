"""`vivant.convert` in both directions: every tensor as it was, the target whole or not at all."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
import tiny_pia
import tiny_repo
import tiny_single
from vivant import convert as module
from vivant.cli import main
from vivant.convert import convert
from vivant.errors import InputError, LoadError, OutputError
from vivant.pia.motion import MotionAdapter
from vivant.pipelines.pia import PIAPipeline

TEXT = tiny_single.TEXT


@pytest.fixture(scope="module")
def state():
    """A whole small model in which every network has another data type."""
    whole = tiny_single.whole(
        {"unet": tiny_pia.base(), "vae": tiny_pia.vae(), "text_encoder": tiny_repo.text_encoder()}
    )
    types = {tiny_single.UNET: torch.float16, tiny_single.VAE: torch.float32, TEXT: torch.bfloat16}

    def cast(name: str, value: torch.Tensor) -> torch.Tensor:
        dtype = next(dtype for prefix, dtype in types.items() if name.startswith(prefix))
        return value.to(dtype) if value.is_floating_point() else value

    return {name: cast(name, value.detach()) for name, value in whole.items()}


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    return tiny_single.write(state, tmp_path_factory.mktemp("models") / "model.safetensors")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_single.configurations(tmp_path_factory.mktemp("config"))


def assert_same(found, due):
    assert found.keys() == due.keys()
    for name, value in due.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        # Bits, for NaN and minus zero too.
        assert torch.equal(found[name].contiguous().view(torch.uint8), value.contiguous().view(torch.uint8)), name


def test_a_model_there_and_back(tmp_path, state, file, config):
    there = convert(file, tmp_path / "model", config=config)
    assert (there.form, there.tensors) == ("repository", len(state) - 1)
    assert there.dtypes.keys() == {"float16", "float32", "bfloat16"}
    assert there.aside == (f"{TEXT}embeddings.position_ids",)
    back = convert(tmp_path / "model", tmp_path / "back.safetensors")
    assert (back.form, back.tensors) == ("single file", len(state))
    assert back.bytes == sum(value.nbytes for value in state.values())
    assert_same(load_file(tmp_path / "back.safetensors"), state)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_repository_there_and_back(tmp_path, config):
    repo = tiny_repo.write_base(tmp_path / "repo", variant="fp16")
    convert(repo, tmp_path / "model.safetensors", variant="fp16")
    convert(tmp_path / "model.safetensors", tmp_path / "again", config=config)
    for old, new in (
        ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.safetensors"),
        ("vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors"),
    ):
        assert_same(load_file(tmp_path / "again" / new), load_file(repo / old))
    text = load_file(repo / "text_encoder" / "model.fp16.safetensors")
    due = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in text.items()}
    assert_same(load_file(tmp_path / "again" / "text_encoder" / "model.safetensors"), due)
    pipe = PIAPipeline.from_pretrained(tmp_path / "again", motion_adapter=tiny_pia.adapter())
    assert pipe.scheduler.config.beta_schedule == tiny.SCHEDULER["beta_schedule"]
    assert pipe.tokenizer.bos_token_id == tiny_repo.BOS


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_motion_modules_there_and_back(tmp_path, ending):
    adapter = {name: value.half() for name, value in tiny_pia.adapter().state_dict().items()}
    state = tiny_single.motion(adapter)
    path = tiny_single.write(state, tmp_path / f"pia.{ending}")
    assert convert(path, tmp_path / "adapter", config=_written(tmp_path, tiny.ADAPTER)).form == "component"
    assert_same(load_file(tmp_path / "adapter" / "diffusion_pytorch_model.safetensors"), adapter)
    assert MotionAdapter.from_pretrained(tmp_path / "adapter").config.conv_in_channels == 9
    convert(tmp_path / "adapter", tmp_path / "back.safetensors")
    assert_same(load_file(tmp_path / "back.safetensors"), state)


def _written(folder: Path, values) -> Path:
    (folder / "fields").mkdir()
    (folder / "fields" / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder / "fields"


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_networks_alone(tmp_path, config, part):
    write = {
        "vae": lambda: tiny_single.vae(tiny_pia.vae().state_dict(), ""),
        "unet": lambda: tiny_single.unet(tiny_pia.base().state_dict(), tiny.UNET2D, ""),
        "text_encoder": lambda: tiny_single.text(tiny_repo.text_encoder().state_dict(), "text_model."),
    }[part]
    state = {name: value for name, value in write().items() if "position_ids" not in name}
    path = tiny_single.write(state, tmp_path / "part.safetensors")
    assert convert(path, tmp_path / part, config=config).form == "component"
    convert(tmp_path / part, tmp_path / "back.safetensors")
    assert_same(load_file(tmp_path / "back.safetensors"), state)


def test_a_file_without_a_vae_takes_one(tmp_path, state, file, config):
    path = tiny_single.write(
        {name: value for name, value in state.items() if not name.startswith(tiny_single.VAE)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(LoadError, match=r"E-FILE-PART.*--vae"):
        convert(path, tmp_path / "model", config=config)
    assert not (tmp_path / "model").exists()
    tiny_pia.vae().save_pretrained(tmp_path / "vae")
    done = convert(path, tmp_path / "model", config=config, vae=tmp_path / "vae")
    assert any("VAE" in note for note in done.notes)
    written = load_file(tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors")
    assert_same(written, {name: value.detach() for name, value in tiny_pia.vae().state_dict().items()})


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.bfloat16])
def test_small_data_types_stay(tmp_path, state, config, stored):
    cast = {name: value.to(stored) if value.is_floating_point() else value for name, value in state.items()}
    convert(tiny_single.write(cast, tmp_path / "model.safetensors"), tmp_path / "model", config=config)
    convert(tmp_path / "model", tmp_path / "back.safetensors")
    assert_same(load_file(tmp_path / "back.safetensors"), cast)


def test_nothing_is_replaced_unasked(tmp_path, file, config):
    convert(file, tmp_path / "model", config=config)
    before = (tmp_path / "model" / "model_index.json").stat().st_mtime_ns
    with pytest.raises(OutputError, match=r"E-OUTPUT-EXISTS.*holds a model already"):
        convert(file, tmp_path / "model", config=config)
    convert(tmp_path / "model", tmp_path / "back.safetensors")
    with pytest.raises(OutputError, match="E-OUTPUT-EXISTS"):
        convert(tmp_path / "model", tmp_path / "back.safetensors")
    assert (tmp_path / "model" / "model_index.json").stat().st_mtime_ns == before
    convert(file, tmp_path / "model", config=config, overwrite=True)
    convert(tmp_path / "model", tmp_path / "back.safetensors", overwrite=True)
    assert (tmp_path / "model" / "model_index.json").stat().st_mtime_ns > before


def test_a_folder_with_other_files_is_never_replaced(tmp_path, file, config):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(OutputError, match=r"E-OUTPUT-EXISTS.*letters.txt"):
        convert(file, tmp_path / "home", config=config, overwrite=True)
    assert (tmp_path / "home" / "letters.txt").read_text(encoding="utf-8") == "dear"


def test_a_folder_is_not_replaced_by_what_lies_in_it(tmp_path, config):
    folder = tmp_path / "vae"
    folder.mkdir()
    path = tiny_single.write(tiny_pia.vae().state_dict(), folder / "model.safetensors")
    with pytest.raises(InputError, match="E-CONVERT-TARGET"):
        convert(path, folder, config=config, overwrite=True)
    assert path.is_file()


def test_a_failure_leaves_nothing(tmp_path, file, config, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.parts, "save_component", fail)
    with pytest.raises(OutputError, match="No space left"):
        convert(file, tmp_path / "model", config=config)
    tiny_pia.vae().save_pretrained(tmp_path / "vae")
    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(OutputError, match="No space left"):
        convert(tmp_path / "vae", tmp_path / "vae.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vae"]


@pytest.mark.parametrize(
    ("target", "given", "error"),
    [
        ("model.safetensors", {}, "E-CONVERT-TARGET"),
        ("model", {"variant": "fp16"}, "E-CONVERT-OPTION"),
        ("none/model", {}, "E-OUTPUT-FOLDER"),
    ],
)
def test_what_makes_no_sense_for_a_file(tmp_path, file, config, target, given, error):
    with pytest.raises((InputError, OutputError), match=error):
        convert(file, tmp_path / target, config=config, **given)


@pytest.mark.parametrize(
    ("target", "given", "error"),
    [
        ("model.ckpt", {}, "E-CONVERT-TARGET"),
        ("model", {}, "E-CONVERT-TARGET"),
        ("model.safetensors", {"vae": "vae.safetensors"}, "E-CONVERT-OPTION"),
        ("model.safetensors", {"config": "config"}, "E-CONVERT-OPTION"),
    ],
)
def test_what_makes_no_sense_for_a_repository(tmp_path, target, given, error):
    tiny_pia.vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match=error):
        convert(tmp_path / "vae", tmp_path / target, **given)


def test_an_assembled_network_has_no_single_file(tmp_path):
    tiny_pia.pipeline().save_pretrained(tmp_path / "pia")
    with pytest.raises(LoadError, match=r"E-CONVERT-SOURCE.*UNetMotionModel"):
        convert(tmp_path / "pia", tmp_path / "pia.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match="E-FILE-MISSING"):
        convert(tmp_path / "empty", tmp_path / "pia.safetensors")
    (tmp_path / "empty" / "config.json").write_text('{"_class_name": "ControlNetModel"}', encoding="utf-8")
    with pytest.raises(LoadError, match=r"E-CONVERT-SOURCE.*ControlNetModel"):
        convert(tmp_path / "empty", tmp_path / "pia.safetensors")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_command(tmp_path, file, config, capsys):
    arguments = [str(file), str(tmp_path / "model"), "--config", str(config)]
    assert main(["convert", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "model")
    assert "position_ids" in shown.err
    assert "float16" in shown.err
    assert main(["convert", *arguments, "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "E-OUTPUT-EXISTS"
    assert main(["convert", *arguments, "--json", "--overwrite"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["form"], done["warnings"]) == ("repository", [])
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "back.safetensors")]) == 0
    assert (tmp_path / "back.safetensors").is_file()
