"""Portrait: one call from a face, its identity and a sentence to a video, with recipe and report."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_consisid as small
import vivant
from vivant import CogVideoXDDIMScheduler, DDIMScheduler, HeunDiscreteScheduler
from vivant.api.portrait import Portrait
from vivant.api.result import Progress, Result
from vivant.consisid.conditioning import Face
from vivant.consisid.identity_file import People, read_people, save_identity
from vivant.errors import Cancelled, InputError, OutputError, VivantWarning
from vivant.media.frames import frames_hash
from vivant.media.recipe import read_recipe
from vivant.media.video import probe
from vivant.request import ConsisIDRequest
from vivant.vae.video import AutoencoderKLCogVideoX

SMALL: dict[str, Any] = {"num_inference_steps": 2, "seed": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A repository of ConsisID."""
    path = tmp_path_factory.mktemp("models") / "consisid"
    small.pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def portrait(folder) -> Portrait:
    return Portrait.from_pretrained(folder, dtype=torch.float32, device="cpu")


def photo(seed: int = 1, size: tuple[int, int] = (50, 60)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def face(num: int = 1) -> Face:
    given: Any = small.face(num)
    return Face(given["id_cond"], tuple(given["id_vit_hidden"]))


def person(number: int) -> Face:
    """One of several people."""
    people = face(3)
    return Face(people.id_cond[number, None], tuple(hidden[number, None] for hidden in people.id_vit_hidden))


def film(portrait: Portrait, **changes: Any) -> Result:
    return portrait.film(**{"image": photo(), "prompt": "a sea", "identity": face(), **SMALL, **changes})


@pytest.fixture(scope="module")
def result(portrait) -> Result:
    return film(portrait)


# ------------------------------------------------------------------------------------------------- what it makes


def test_a_result_holds_clip_recipe_and_report(result, folder):
    assert [(clip.shape, clip.dtype) for clip in result.clips] == [((9, 48, 80, 3), np.uint8)]
    assert result.fps == 8
    assert list(result.report.seconds) == ["load", "denoise", "decode"]
    assert min(result.report.seconds.values()) > 0
    assert (result.report.device, result.report.dtype) == ("cpu", "float32: as asked")
    assert (result.report.findings, result.report.notes) == ((), ())
    recipe = result.recipe
    assert recipe["kind"] == "consisid"
    assert recipe["frames_hashes"] == [frames_hash(result.clips[0])]
    assert (recipe["request"]["height"], recipe["request"]["width"]) == (48, 80)
    assert (recipe["request"]["num_frames"], recipe["request"]["max_sequence_length"]) == (9, small.WORDS)
    assert recipe["models"]["weights"].keys() == {"transformer", "vae", "text_encoder"}
    assert recipe["models"]["scheduler"]["_class_name"] == "CogVideoXDPMScheduler"
    assert recipe["image"]["sizes"] == [[60, 50]]
    assert recipe["versions"]["vivant"] == vivant.__version__


def test_a_recipe_holds_no_path_and_no_face(portrait, folder, tmp_path):
    path = save_identity(face(), tmp_path / "anna.safetensors")
    photo().save(tmp_path / "anna.png")
    recipe = film(portrait, image=tmp_path / "anna.png", identity=path).recipe
    text = json.dumps(recipe)
    assert not any(found in text for found in (str(tmp_path), str(folder.parent), "anna"))
    assert recipe["identity"] == {"digests": list(read_people(face()).digests)}
    numbers = [value for value in _leaves(recipe) if isinstance(value, float)]
    given = {round(float(value), 4) for value in face().id_cond.flatten()}
    assert not given & {round(value, 4) for value in numbers}


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict | list):
        return [leaf for inner in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(inner)]
    return [value]


@pytest.mark.parametrize(
    "given", [{}, {"guidance_scale": 1.0}, {"use_dynamic_cfg": True}, {"negative_prompt": "a park"}, {"num_frames": 9}]
)
def test_it_is_the_pipeline_with_the_seed_s_generator(portrait, given):
    made = film(portrait, **given)
    call = {"image": photo(), "prompt": "a sea", "num_inference_steps": 2, "output_type": "np", **given}
    frames = small.pipeline()(**small.asked(**call, generator=torch.Generator().manual_seed(7))).frames
    assert np.array_equal((frames[0] * 255).round().astype(np.uint8), made.clips[0])


def test_a_recipe_repeats_its_frames(portrait, result):
    again = portrait.film(photo(), identity=face(), **ConsisIDRequest.from_json(result.recipe["request"]).fields())
    assert again.recipe == result.recipe
    for changes in ({"seed": 8}, {"identity": person(1)}, {"image": photo(2)}, {"prompt": "a park"}):
        other = film(portrait, **changes)
        assert other.recipe["frames_hashes"] != result.recipe["frames_hashes"], changes
        assert other.recipe["models"] == result.recipe["models"]


@pytest.mark.parametrize("residency", ["component", "layer"])
def test_every_residency_gives_the_same_frames(folder, result, residency):
    thrifty = Portrait.from_pretrained(folder, dtype=torch.float32, device="cpu", residency=residency)
    made = film(thrifty)
    assert made.recipe["frames_hashes"] == result.recipe["frames_hashes"]
    assert made.recipe["models"]["weights"] == result.recipe["models"]["weights"]
    assert (made.report.residency, result.report.residency) == (residency, "resident")
    assert made.report.attention == "torch sdpa"


@pytest.mark.unchecked
def test_a_residency_that_there_is_not_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(InputError, match="E-RESIDENCY"):
        Portrait.from_pretrained(tmp_path, residency="gpu")


def test_a_random_seed_is_recorded(portrait):
    one, two = (film(portrait, seed=-1, num_inference_steps=1) for _ in range(2))
    seeds = [made.recipe["request"]["seed"] for made in (one, two)]
    assert min(seeds) >= 0
    assert seeds[0] != seeds[1]
    again = film(portrait, seed=seeds[0], num_inference_steps=1)
    assert again.recipe["frames_hashes"] == one.recipe["frames_hashes"]


def test_people_prompts_and_videos_are_never_mixed(portrait):
    pictures, people, prompts = [photo(1), photo(2, (40, 70))], [person(0), person(1)], ["a sea", "a park"]
    given = {"num_inference_steps": 1, "num_videos_per_prompt": 2}
    made = film(portrait, image=pictures, identity=people, prompt=prompts, seed=[3, -1, 5, 6], **given)
    assert len(made.clips) == len(set(made.recipe["frames_hashes"])) == 4
    seeds = made.recipe["request"]["seed"]
    assert (seeds[0], seeds[2], seeds[3]) == (3, 5, 6)
    assert len(made.recipe["identity"]["digests"]) == 2
    for i in range(4):
        one = {"image": pictures[i // 2], "identity": people[i // 2], "prompt": prompts[i // 2], "seed": [seeds[i]]}
        alone = film(portrait, **one, num_inference_steps=1)
        assert np.abs(alone.clips[0].astype(int) - made.clips[i].astype(int)).max() <= 1


def test_every_kind_of_identity_is_the_same(portrait, result, tmp_path):
    path = save_identity(face(), tmp_path / "face.safetensors")
    for identity in (path, str(path), [path], [face()], People(face())):
        assert film(portrait, identity=identity).recipe == result.recipe


def test_key_points_serve_the_checkpoints_that_read_them(portrait, result, folder, tmp_path):
    points = torch.tensor([[[12.0, 15], [30, 15], [20, 25], [14, 35], [28, 35]]])
    ignored = film(portrait, identity=People(face(), points))  # and no warning
    assert np.array_equal(ignored.clips[0], result.clips[0])
    small.pipeline(is_kps=True).save_pretrained(tmp_path)
    reads = Portrait.from_pretrained(tmp_path, dtype=torch.float32, device="cpu")
    given = {"num_inference_steps": 1, "image": photo()}
    seen = film(reads, identity=People(face(), points), **given)
    frames = small.pipeline(is_kps=True)(
        **small.asked(**given, kps_cond=points, generator=torch.Generator().manual_seed(7), output_type="np")
    ).frames
    assert np.array_equal((frames[0] * 255).round().astype(np.uint8), seen.clips[0])
    with pytest.raises(InputError, match="E-KEY-POINTS"):
        film(reads, identity=People(face(), points + 1000), **given)


def test_other_sizes_and_lengths_are_made_with_a_note(portrait):
    with pytest.warns(VivantWarning, match="W-OFF-SIZE"):
        made = film(portrait, height=32, num_frames=5, num_inference_steps=1)
    assert made.clips[0].shape == (5, 32, 80, 3)
    assert any("W-OFF-SIZE" in note for note in made.report.notes)
    assert film(portrait, num_inference_steps=1).report.notes == ()


# ------------------------------------------------------------------------------------------------------ on the way


@pytest.mark.filterwarnings("ignore:.*W-OFF-SIZE")
@pytest.mark.parametrize("num_frames", [1, 8, 17])
def test_frames_are_handed_on_as_they_are_decoded(portrait, monkeypatch, num_frames):
    order: list[str] = []
    real = AutoencoderKLCogVideoX.decode_frames

    def decoded(self: Any, z: Any) -> Any:
        for part in real(self, z):
            order.append("decoded")
            yield part

    monkeypatch.setattr(AutoencoderKLCogVideoX, "decode_frames", decoded)
    told: list[tuple[int, np.ndarray]] = []

    def on_frames(clip: int, frames: np.ndarray) -> None:
        order.append("told")
        told.append((clip, frames))

    given = {"num_frames": num_frames, "num_inference_steps": 1, "num_videos_per_prompt": 2}
    made = film(portrait, on_frames=on_frames, **given)
    for clip in range(2):
        parts = [frames for number, frames in told if number == clip]
        assert all(len(part) and part.dtype == np.uint8 for part in parts)
        assert np.array_equal(np.concatenate(parts), made.clips[clip])
    assert [clip for clip, _ in told] == sorted(clip for clip, _ in told)
    assert order[:2] == ["decoded", "told"]


def test_progress_is_told_after_every_step(portrait, result):
    told: list[Progress] = []
    made = film(portrait, progress=told.append)
    assert [(at.step, at.total) for at in told] == [(1, 2), (2, 2)]
    assert told[0].latents.shape == (1, 3, 4, 6, 10)
    assert told[1].remaining == 0
    assert made.recipe == result.recipe


def test_progress_counts_what_the_scheduler_makes_of_the_steps(portrait, monkeypatch):
    heun = HeunDiscreteScheduler.from_config(portrait.pipeline.scheduler.config, rescale_betas_zero_snr=False)
    monkeypatch.setattr(portrait.pipeline, "scheduler", heun)
    told: list[Progress] = []
    film(portrait, progress=told.append)
    assert [(at.step, at.total) for at in told] == [(1, 3), (2, 3), (3, 3)]


def test_a_cancelled_run_ends_within_a_step_and_decodes_nothing(portrait, monkeypatch, result):
    told: list[Progress] = []
    portrait.pipeline.notes.append("Something was left out.")
    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderKLCogVideoX, "decode_frames", None)
        with pytest.raises(Cancelled, match=r"E-CANCELLED.*after step 2 of 4"):
            film(portrait, progress=told.append, cancel=lambda: len(told) == 1, num_inference_steps=4)
    assert portrait.pipeline.notes == ["Something was left out."]
    assert film(portrait).report.notes == ("Something was left out.",)
    portrait.pipeline.notes.clear()
    assert film(portrait).recipe == result.recipe


def test_decoding_is_cancelled_too(portrait):
    told: list[int] = []
    with pytest.warns(VivantWarning, match="W-OFF-SIZE"), pytest.raises(Cancelled, match="decoded"):
        Portrait(small.pipeline(), portrait._loaded).film(
            photo(),
            identity=face(),
            on_frames=lambda clip, frames: told.append(len(frames)),
            cancel=lambda: bool(told),
            **{**SMALL, "num_frames": 17},
        )
    assert len(told) == 1


# ------------------------------------------------------------------------------------------------------ what it says


@pytest.fixture
def broken(portrait, monkeypatch) -> Any:
    """Makes every frame of one colour, given in [-1, 1]."""

    def make(value: float) -> None:
        network = copy.deepcopy(portrait.pipeline.vae)
        with torch.no_grad():
            network.decoder.conv_out.conv.weight.zero_()
            network.decoder.conv_out.conv.bias.fill_(value)
        monkeypatch.setattr(portrait.pipeline, "vae", network)

    return make


@pytest.mark.parametrize(("value", "code"), [(-5.0, "W-OUTPUT-BLACK"), (0.1, "W-OUTPUT-FROZEN")])
def test_black_and_frozen_clips_are_found_and_not_written(portrait, broken, tmp_path, value, code):
    broken(value)
    made = film(portrait)
    assert [finding.code for finding in made.report.findings] == [code]
    with pytest.raises(OutputError, match="E-OUTPUT-BAD"):
        made.save(tmp_path / "clip.gif")
    assert list(tmp_path.iterdir()) == []


def test_broken_numbers_are_no_result(portrait, broken):
    broken(float("nan"))
    with pytest.raises(OutputError, match="E-OUTPUT-NAN"):
        film(portrait)


def test_a_result_is_saved_with_its_recipe(result, tmp_path):
    path = result.save(tmp_path / "clip.mp4")
    seen = probe(path)
    assert (seen.width, seen.height, seen.num_frames, float(seen.fps)) == (80, 48, 9, 8.0)
    recipe = read_recipe(path)
    assert recipe["frames_hash"] == result.recipe["frames_hashes"][0]
    assert ConsisIDRequest.from_json(recipe["request"]) == ConsisIDRequest.from_json(result.recipe["request"])


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"steps": 3}, "E-PARAM-UNKNOWN"),
        ({"num_inference_steps": 0}, "E-STEPS"),
        ({"num_inference_steps": 1001}, "E-STEPS"),
        ({"num_frames": 0}, "E-FRAMES"),
        ({"height": 40}, "E-SIZE"),
        ({"max_sequence_length": 8}, "E-PROMPT-LENGTH"),
        ({"eta": 0.5}, "E-ETA-UNUSED"),
        ({"negative_prompt": "dark", "guidance_scale": 1.0}, "E-NEGATIVE-UNUSED"),
        ({"seed": [1, 2]}, "E-GENERATORS"),
        ({"image": [photo()] * 2, "prompt": ["a", "b", "c"]}, "E-BATCH"),
        ({"identity": face(3), "prompt": ["a", "b"]}, "E-BATCH"),
        ({"image": None}, "E-IMAGE-NONE"),
        ({"image": []}, "E-IMAGE-NONE"),
        ({"image": "nowhere.png"}, "E-IMAGE-MISSING"),
        ({"image": photo(1, (8, 8))}, "E-IMAGE-SMALL"),
        ({"identity": "nowhere.safetensors"}, "E-IDENTITY-MISSING"),
        ({"identity": []}, "E-IDENTITY-NONE"),
        ({"identity": Face(torch.zeros(1, 13), face().id_vit_hidden)}, "E-IDENTITY-SHAPE"),
        ({"identity": Face(face().id_cond, face().id_vit_hidden[:1])}, "E-IDENTITY-SHAPE"),
        ({"identity": Face(face().id_cond / 0, face().id_vit_hidden)}, "E-IDENTITY-VALUES"),
        ({"prompt": "half \ud83d"}, "E-PROMPT-TEXT"),
        ({"prompt": "cat " * 300_000}, "E-RECIPE-SIZE"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(portrait, monkeypatch, changes, code):
    monkeypatch.setattr(portrait.pipeline, "denoise", None)
    with pytest.raises(InputError) as refusal:
        film(portrait, **changes)
    assert refusal.value.code == code


def test_the_scheduler_that_is_there_is_asked(portrait, monkeypatch):
    config = portrait.pipeline.scheduler.config
    monkeypatch.setattr(portrait.pipeline, "scheduler", DDIMScheduler.from_config(config))
    made = film(portrait, eta=0.5)
    assert made.recipe["models"]["scheduler"]["_class_name"] == "DDIMScheduler"
    assert made.recipe["request"]["eta"] == 0.5
    other = CogVideoXDDIMScheduler.from_config(config, num_train_timesteps=50)
    monkeypatch.setattr(portrait.pipeline, "scheduler", other)
    with pytest.raises(InputError, match="E-SOLVER-STEPS"):
        film(portrait, num_inference_steps=60)


def test_a_recipe_s_scheduler_has_the_fields_that_it_reads(portrait, monkeypatch):
    config = {**portrait.pipeline.scheduler.config, "sigma_max": 3.0}
    monkeypatch.setattr(portrait.pipeline, "scheduler", CogVideoXDDIMScheduler.from_config(config))
    scheduler = dict(film(portrait, num_inference_steps=1).recipe["models"]["scheduler"])
    assert "sigma_max" not in scheduler
    assert CogVideoXDDIMScheduler(**{k: v for k, v in scheduler.items() if k != "_class_name"})


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("given", "code"),
    [({"dtype": "float16"}, "E-DTYPE"), ({"dtype": torch.int8}, "E-DTYPE"), ({"device": "gpu"}, "E-DEVICE")],
)
def test_what_cannot_be_loaded_so_is_refused_before_anything_is_looked_for(folder, monkeypatch, given, code):
    monkeypatch.setattr("vivant.api.portrait.Model", None)
    with pytest.raises(InputError) as refusal:
        Portrait.from_pretrained(folder, **given)
    assert refusal.value.code == code


def test_the_hashes_are_those_of_the_data_type_in_use(folder):
    portrait = Portrait.from_pretrained(folder, dtype=torch.float32, device="cpu")
    before = portrait.weights()
    assert portrait.weights() == before
    portrait.pipeline.to(torch.bfloat16)
    assert not set(portrait.weights().values()) & set(before.values())


def test_half_precision_is_filmed_too(folder):
    portrait = Portrait.from_pretrained(folder, dtype=torch.bfloat16, device="cpu")
    made = film(portrait, num_inference_steps=1)
    assert made.recipe["models"]["dtype"] == "bfloat16"
    assert made.report.findings == ()
