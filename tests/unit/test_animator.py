"""Animator: one call from a picture to a clip, with recipe and report."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_repo
import vivant
from tiny_pia import pipeline
from vivant import placement
from vivant.api.animator import Animator
from vivant.api.result import Progress, Result
from vivant.errors import Cancelled, InputError, LoadError, OutputError, VivantWarning
from vivant.media.frames import frames_hash
from vivant.media.recipe import read_recipe
from vivant.media.video import probe
from vivant.request import NEGATIVE_PROMPT, PIARequest

W, H = 80, 64
SMALL: dict[str, Any] = {"num_frames": 3, "num_inference_steps": 2, "seed": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A repository that holds its motion modules."""
    path = tmp_path_factory.mktemp("models") / "base"
    pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def animator(folder) -> Animator:
    made = Animator.from_pretrained(folder, dtype=torch.float32, device="cpu")
    made.pipeline.set_progress_bar_config(disable=True)
    return made


def photo(seed: int = 1, size: tuple[int, int] = (H, W)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def result(animator) -> Result:
    return animator.animate(photo(), "a cat", **SMALL)


# ------------------------------------------------------------------------------------------------- what it makes


def test_a_result_holds_clip_recipe_and_report(result, folder):
    assert len(result.clips) == 1
    assert result.clips[0].shape == (3, H, W, 3)
    assert result.clips[0].dtype == np.uint8
    assert [frame.size for frame in result.frames] == [(W, H)] * 3
    assert np.array_equal(np.stack(result.frames), result.clips[0])
    assert result.fps == 8
    assert set(result.report.seconds) == {"load", "denoise", "decode"}
    assert min(result.report.seconds.values()) > 0
    assert result.report.device == "cpu"
    assert result.report.dtype == "float32: as asked"
    assert result.report.findings == ()
    assert json.loads(json.dumps(result.report.to_json()))["device"] == "cpu"
    recipe = result.recipe
    assert recipe["frames_hashes"] == [frames_hash(result.clips[0])]
    assert PIARequest.from_json(recipe["request"]).seed == 7
    assert recipe["request"]["negative_prompt"] == NEGATIVE_PROMPT
    assert (recipe["request"]["width"], recipe["request"]["height"]) == (W, H)
    assert (recipe["models"]["numerics"], recipe["models"]["dtype"]) == ("original", "float32")
    assert recipe["image"]["sizes"] == [[W, H]]
    assert recipe["versions"]["vivant"] == vivant.__version__
    assert str(folder.parent) not in json.dumps(recipe)


def test_it_is_the_pipeline_with_pia_s_preset(animator, result):
    """The original's numerics, DDIM with linear betas, PIA's negative prompt, and the seed's generator."""
    pipe = animator.pipeline
    config = pipe.scheduler.config
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert (config.beta_schedule, config.beta_start, config.beta_end) == ("linear", 0.00085, 0.012)
    assert (config.steps_offset, config.clip_sample) == (1, False)
    assert pipe.numerics == "original"
    given = {"num_frames": 3, "num_inference_steps": 2, "height": H, "width": W, "negative_prompt": NEGATIVE_PROMPT}
    (clip,) = pipe(photo(), "a cat", generator=torch.Generator().manual_seed(7), **given).frames
    assert np.array_equal(np.stack(clip), result.clips[0])


def test_a_recipe_repeats_its_frames(animator, result):
    fields = {k: v for k, v in result.recipe["request"].items() if k not in ("prompt", "keyframes")}
    again = animator.animate(photo(), result.recipe["request"]["prompt"], **fields)
    assert again.recipe["frames_hashes"] == result.recipe["frames_hashes"]
    other = animator.animate(photo(), "a cat", **{**SMALL, "seed": 8})
    assert other.recipe["frames_hashes"] != result.recipe["frames_hashes"]
    assert other.recipe["models"]["weights"] == result.recipe["models"]["weights"]


def test_a_random_seed_is_recorded(animator):
    one, two = (animator.animate(photo(), **{**SMALL, "seed": -1, "num_inference_steps": 1}) for _ in range(2))
    seeds = [made.recipe["request"]["seed"] for made in (one, two)]
    assert min(seeds) >= 0
    assert seeds[0] != seeds[1]
    again = animator.animate(photo(), **{**SMALL, "seed": seeds[0], "num_inference_steps": 1})
    assert again.recipe["frames_hashes"] == one.recipe["frames_hashes"]


def test_several_clips_and_seeds(animator):
    given = {**SMALL, "num_inference_steps": 1, "height": H, "width": W}
    pictures, prompts = [photo(1), photo(2, (100, 90))], ["a cat", "running"]
    made = animator.animate(pictures, prompts, **{**given, "num_videos_per_prompt": 2, "seed": [3, -1, 5, 6]})
    assert len(made.clips) == len(set(made.recipe["frames_hashes"])) == 4
    seeds = made.recipe["request"]["seed"]
    assert (seeds[0], seeds[2], seeds[3]) == (3, 5, 6)
    assert seeds[1] >= 0
    assert made.recipe["image"]["sizes"] == [[W, H], [90, 100]]
    for i in range(4):
        alone = animator.animate(pictures[i // 2], prompts[i // 2], **{**given, "seed": [seeds[i]]})
        assert np.abs(alone.clips[0].astype(int) - made.clips[i].astype(int)).max() <= 1


@pytest.mark.parametrize(("size", "made"), [((70, 90), (64, 88)), ((1030, 600), (512, 296)), ((30, 200), (64, 200))])
def test_the_size_is_the_picture_s_by_default(animator, size, made):
    request = animator_request(animator, photo(1, size))
    assert (request.height, request.width) == made
    assert animator_request(animator, photo(1, size), width=128).width == 128


def animator_request(animator: Animator, image: Any, **parameters: Any) -> PIARequest:
    """The request that a call settles on, without the work."""
    seen: list[PIARequest] = []

    class Stop(Exception):
        """Nothing more is needed."""

    def denoise(request: PIARequest, *rest: Any, **more: Any) -> None:
        seen.append(request)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(animator.pipeline, "denoise", denoise)
        with pytest.raises(Stop):
            animator.animate(image, **{**SMALL, **parameters})
    return seen[0]


def test_every_kind_of_picture(animator, result, tmp_path):
    photo().save(tmp_path / "photo.png")
    array = np.asarray(photo())
    for kind in (tmp_path / "photo.png", str(tmp_path / "photo.png"), [photo()], array, array / 255):
        made = animator.animate(kind, "a cat", **SMALL)
        assert made.recipe["frames_hashes"] == result.recipe["frames_hashes"]
        assert made.recipe["image"] == result.recipe["image"]


def test_a_negative_prompt_only_where_guidance_reads_one(animator):
    assert animator_request(animator, photo()).negative_prompt == NEGATIVE_PROMPT
    assert animator_request(animator, photo(), negative_prompt=None).negative_prompt is None
    assert animator_request(animator, photo(), negative_prompt="dark").negative_prompt == "dark"
    assert animator_request(animator, photo(), guidance_scale=1).negative_prompt is None
    quiet = animator.animate(photo(), **{**SMALL, "guidance_scale": 1.0, "num_inference_steps": 1})  # and no warning
    assert quiet.report.notes == tuple(animator.pipeline.notes)


# ------------------------------------------------------------------------------------------------------ on the way


def test_progress_is_told_after_every_step(animator, result):
    told: list[Progress] = []
    made = animator.animate(photo(), "a cat", progress=told.append, **SMALL)
    assert [(p.step, p.total) for p in told] == [(1, 2), (2, 2)]
    assert 0 < told[0].seconds < told[1].seconds
    assert told[0].remaining == pytest.approx(told[0].seconds)
    assert told[1].remaining == 0
    assert told[0].latents.shape == (1, 4, 3, H // 8, W // 8)
    assert made.recipe["frames_hashes"] == result.recipe["frames_hashes"]


def test_progress_counts_over_freeinit(animator):
    told: list[Progress] = []
    free_init = vivant.FreeInit(num_iters=2, use_fast_sampling=True)
    animator.animate(photo(), progress=told.append, free_init=free_init, **{**SMALL, "num_inference_steps": 3})
    assert [(p.step, p.total) for p in told] == [(i + 1, 4) for i in range(4)]


@pytest.mark.parametrize("at", [1, 2])
def test_a_cancelled_run_ends_within_a_step_and_decodes_nothing(animator, monkeypatch, at):
    monkeypatch.setattr(animator.pipeline.vae, "decode_tensor", None)
    told: list[Progress] = []
    animator.pipeline.notes.append("Something was left out.")
    notes = animator.pipeline.notes
    with pytest.raises(Cancelled, match=rf"E-CANCELLED.*after step {at} of 4"):
        animator.animate(
            photo(), progress=told.append, cancel=lambda: len(told) == at - 1, **{**SMALL, "num_inference_steps": 4}
        )
    assert len(told) == at - 1
    assert animator.pipeline.notes is notes
    notes.clear()


def test_a_run_after_a_cancelled_one_is_unchanged(animator, result):
    with pytest.raises(Cancelled):
        animator.animate(photo(), cancel=lambda: True, freeu=vivant.request.FreeU(1, 1, 2, 2), **SMALL)
    assert animator.pipeline.unet.freeu is None
    again = animator.animate(photo(), "a cat", **SMALL)
    assert again.recipe["frames_hashes"] == result.recipe["frames_hashes"]


# ------------------------------------------------------------------------------------------------------ what it says


def test_every_report_lists_what_holds_for_its_run(folder):
    animator = Animator.from_pretrained(folder, dtype=torch.float16, device="cpu")
    given = {**SMALL, "num_inference_steps": 1}
    with pytest.warns(VivantWarning, match="W-CPU-FLOAT16"):
        first = animator.animate(photo(), **given)
    with pytest.warns(VivantWarning, match="W-PROMPT-TRUNCATED"):
        long = animator.animate(photo(), "cat " * 99, prompt_syntax="plain", **given)
    whole = animator.animate(photo(), "cat " * 99, **given)
    last = animator.animate(photo().rotate(90), **given)  # warned once, reported every time
    runs = (first, long, whole, last)
    for made in runs:
        assert sum("W-CPU-FLOAT16" in note for note in made.report.notes) == 1
    for text, said in (
        ("W-PROMPT-TRUNCATED", (False, True, False, False)),
        ("in 2 chunks", (False, False, True, False)),
    ):
        assert tuple(any(text in note for note in made.report.notes) for made in runs) == said
    assert animator.pipeline.notes == []


def test_notes_of_loading_and_of_the_picture_are_in_the_report(folder, tmp_path):
    animator = Animator.from_pretrained(folder, dtype=torch.float32, device="cpu")
    animator.pipeline.notes.append("Something was left out.")
    image = Image.new("RGBA", (W, H), (200, 100, 50, 128))
    made = animator.animate(image, **{**SMALL, "num_inference_steps": 1})
    assert made.report.notes[0] == "Something was left out."
    assert any("white" in note for note in made.report.notes)


def test_the_data_type_is_chosen_and_explained(folder, monkeypatch):
    for facts, dtype in ((placement.Machine(cpu_bf16=True), torch.bfloat16), (placement.Machine(), torch.float32)):
        monkeypatch.setattr(placement, "machine", lambda facts=facts: facts)
        animator = Animator.from_pretrained(folder)
        assert animator.pipeline.dtype == dtype
        made = animator.animate(photo(), **{**SMALL, "num_inference_steps": 1})
        assert made.report.dtype.startswith(f"{str(dtype).removeprefix('torch.')}: the processor")
        assert made.recipe["models"]["dtype"] == str(dtype).removeprefix("torch.")


@pytest.fixture
def broken(animator, monkeypatch) -> Any:
    """Makes every frame of one colour, given in [-1, 1]."""

    def make(value: float) -> None:
        network = copy.deepcopy(animator.pipeline.vae)
        with torch.no_grad():
            network.decoder.conv_out.weight.zero_()
            network.decoder.conv_out.bias.fill_(value)
        monkeypatch.setattr(animator.pipeline, "vae", network)

    return make


@pytest.mark.parametrize(("value", "code"), [(-5.0, "W-OUTPUT-BLACK"), (0.1, "W-OUTPUT-FROZEN")])
def test_black_and_frozen_clips_are_found_and_not_written(animator, broken, tmp_path, value, code):
    broken(value)
    made = animator.animate(photo(), **SMALL)
    assert [finding.code for finding in made.report.findings] == [code]
    assert made.report.to_json()["findings"][0]["code"] == code
    with pytest.raises(OutputError, match="E-OUTPUT-BAD"):
        made.save(tmp_path / "clip.gif")
    assert list(tmp_path.iterdir()) == []


def test_a_black_picture_may_stay_black(animator, broken, tmp_path):
    broken(-5.0)
    made = animator.animate(Image.new("RGB", (W, H)), **SMALL)
    assert made.report.findings == ()
    assert made.save(tmp_path / "clip.gif").is_file()


def test_every_picture_is_black_for_its_own_clips_alone(animator, broken, tmp_path):
    broken(-5.0)
    pictures = [Image.new("RGB", (W, H)), photo()]
    made = animator.animate(pictures, num_videos_per_prompt=2, **{**SMALL, "num_inference_steps": 1})
    assert [finding.code for finding in made.report.findings] == ["W-OUTPUT-BLACK"] * 2
    for clip in (0, 1):
        assert made.save(tmp_path / f"{clip}.gif", clip=clip).is_file()
    for clip in (2, 3):
        with pytest.raises(OutputError, match="E-OUTPUT-BAD"):
            made.save(tmp_path / f"{clip}.gif", clip=clip)


def test_broken_numbers_are_no_result(animator, broken):
    broken(float("nan"))
    with pytest.raises(OutputError, match="E-OUTPUT-NAN"):
        animator.animate(photo(), **SMALL)


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("image", "parameters", "code"),
    [
        (photo(), {"steps": 3}, "E-PARAM-UNKNOWN"),
        (photo(), {"strength": 0}, "E-STRENGTH"),
        (photo(), {"num_frames": 33, "windows": None}, "E-FRAMES-MAX"),
        (photo(), {"clip_skip": 3}, "E-CLIP-SKIP"),
        (photo(), {"num_inference_steps": 1000}, "E-SOLVER-STEPS"),
        (photo(), {"strength": 0.1}, "E-STRENGTH-STEPS"),
        (photo(), {"motion": "spin"}, "E-MOTION-NAME"),
        (photo(), {"seed": [1, 2]}, "E-GENERATORS"),
        (photo(), {"prompt": ["a", "b"], "seed": [1]}, "E-GENERATORS"),
        (photo(), {"negative_prompt": "dark", "guidance_scale": 1.0}, "E-NEGATIVE-UNUSED"),
        ([photo()] * 2, {"prompt": ["a", "b", "c"]}, "E-BATCH"),
        (photo(), {"width": 100}, "E-SIZE"),
        ([], {}, "E-IMAGE-NONE"),
        (None, {}, "E-IMAGE-NONE"),
        ("nowhere.png", {}, "E-IMAGE-MISSING"),
        (b"", {}, "E-IMAGE-EMPTY"),
        (photo(1, (8, 8)), {}, "E-IMAGE-SMALL"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(animator, monkeypatch, image, parameters, code):
    monkeypatch.setattr(animator.pipeline, "denoise", None)
    given = {**SMALL, **parameters}
    with pytest.raises(InputError) as refusal:
        animator.animate(image, given.pop("prompt", ""), **given)
    assert refusal.value.code == code


def test_eta_is_refused_where_the_solver_has_none(folder, monkeypatch):
    animator = Animator.from_pretrained(folder, dtype=torch.float32, device="cpu")
    assert animator_request(animator, photo(), eta=0.5).eta == 0.5
    animator.pipeline.scheduler = vivant.EulerDiscreteScheduler.from_config(animator.pipeline.scheduler.config)
    with pytest.raises(InputError, match="E-ETA-UNUSED"):
        animator.animate(photo(), eta=0.5, **SMALL)


# --------------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_a_result_is_saved_with_its_recipe(result, tmp_path, suffix):
    path = result.save(tmp_path / f"clip{suffix}")
    seen = probe(path)
    assert (seen.width, seen.height, seen.num_frames, float(seen.fps)) == (W, H, 3, 8.0)
    recipe = read_recipe(path)
    assert recipe["frames_hash"] == result.recipe["frames_hashes"][0]
    assert PIARequest.from_json(recipe["request"]) == PIARequest.from_json(result.recipe["request"])
    with pytest.raises(OutputError, match="E-OUTPUT-EXISTS"):
        result.save(path)
    assert result.save(path, overwrite=True) == path


@pytest.mark.parametrize("clip", [1, 5, -1])
def test_only_clips_that_there_are_can_be_saved(result, tmp_path, clip):
    with pytest.raises(InputError, match="E-CLIP-INDEX"):
        result.save(tmp_path / "clip.gif", clip=clip)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------- loading


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"numerics": "exact"}, "E-NUMERICS"),
        ({"dtype": "float16"}, "E-DTYPE"),
        ({"dtype": torch.int8}, "E-DTYPE"),
        ({"device": "gpu"}, "E-DEVICE"),
        ({"residency": "gpu"}, "E-RESIDENCY"),
        ({"residency": "layer", "compile": True}, "E-OFFLOAD-COMPILED"),
    ],
)
def test_what_cannot_be_loaded_so_is_refused_before_anything_is_looked_for(folder, monkeypatch, given, code):
    monkeypatch.setattr("vivant.api.animator.Models", None)
    with pytest.raises(InputError) as refusal:
        Animator.from_pretrained(folder, **given)
    assert refusal.value.code == code


@pytest.mark.parametrize("name", ["text_encoder", "tokenizer", "vae", "unet"])
def test_a_base_without_one_of_its_parts_is_refused(folder, tmp_path, name):
    base = Path(shutil.copytree(folder, tmp_path / "base"))
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps({**index, name: [None, None]}))
    with pytest.raises(LoadError, match=f"E-REPO-COMPONENT.*lacks {name}"):
        Animator.from_pretrained(base)


def test_an_adapter_without_the_variant_is_read_plain(tmp_path):
    base = tiny_repo.write_base(tmp_path / "base", "fp16")
    plain, half = (tiny_repo.write_adapter(tmp_path / str(variant), variant) for variant in (None, "fp16"))
    given = {"variant": "fp16", "dtype": torch.float32, "device": "cpu"}
    fallen_back, found = (Animator.from_pretrained(base, adapter, **given) for adapter in (plain, half))
    note = 'motion_adapter has no variant "fp16"; its plain weights were read.'
    assert note in fallen_back.pipeline.notes
    assert note not in found.pipeline.notes
    with pytest.raises(LoadError, match="E-WEIGHTS-VARIANT"):
        Animator.from_pretrained(base, half, dtype=torch.float32, device="cpu")


def test_the_hashes_are_those_of_the_data_type_in_use(folder):
    animator = Animator.from_pretrained(folder, dtype=torch.float32, device="cpu")
    before = animator.weights()
    assert animator.weights() == before
    animator.pipeline.to(torch.bfloat16)
    assert not set(animator.weights().values()) & set(before.values())
