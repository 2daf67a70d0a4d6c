"""Callbacks in diffusers' protocol: what they see, what they change, and how they end a run."""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

import tiny
from tiny_pia import FRAMES, HEIGHT, WIDTH, arguments, by_hand, picture, pipeline, run, seeded
from tolerances import Tolerance, assert_parity, relative_l2
from vivant.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from vivant.errors import Cancelled, InputError
from vivant.guidance import cfg
from vivant.pipelines.pia import PIAPipeline
from vivant.schedulers import HeunDiscreteScheduler

SAME = Tolerance(peak=1e-5, l2=1e-5)
ALL = ["latents", "prompt_embeds", "negative_prompt_embeds"]
SHAPE = (1, 4, FRAMES, HEIGHT // 8, WIDTH // 8)


@pytest.fixture
def pipe() -> PIAPipeline:
    return pipeline()


@pytest.fixture
def evaluated(monkeypatch, pipe) -> list[int]:
    """The batch of every evaluation of the network."""
    seen: list[int] = []
    predict = pipe.unet.predict
    monkeypatch.setattr(pipe.unet, "predict", lambda x, t, text: seen.append(x.shape[0]) or predict(x, t, text))
    return seen


def called(pipe: PIAPipeline, callback: Any, names: Any = ALL, **changes: Any) -> torch.Tensor:
    given = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    return run(pipe, **given, **changes)


# ------------------------------------------------------------------------------------------------ what it sees


def test_a_function_sees_the_run_and_changes_nothing(pipe):
    seen: list[Any] = []

    def callback(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipeline is pipe
        state = (pipeline.num_timesteps, pipeline.guidance_scale, pipeline.do_classifier_free_guidance)
        seen.append((step, int(timestep), int(pipeline.scheduler.timesteps[step]), state))
        assert list(tensors) == ALL
        assert tensors["latents"].shape == SHAPE
        assert tensors["prompt_embeds"].shape == (2 * FRAMES, 77, tiny.TEXT_DIM)
        assert tensors["negative_prompt_embeds"].shape == (1, 77, tiny.TEXT_DIM)
        assert torch.equal(tensors["prompt_embeds"][0], tensors["negative_prompt_embeds"][0])
        return tensors

    watched = called(pipe, callback, guidance_scale=3.0, num_inference_steps=3)
    state = (3, 3.0, True)
    assert seen == [(0, 667, 667, state), (1, 334, 334, state), (2, 1, 1, state)]
    assert torch.equal(watched, run(pipe, guidance_scale=3.0, num_inference_steps=3))


@pytest.mark.parametrize("names", [None, [], ("latents",)])
def test_only_what_is_asked_for_is_shown(pipe, names):
    def callback(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert list(tensors) == list(names or ())
        return tensors

    called(pipe, callback, names)


def test_the_last_latents_shown_are_the_result(pipe):
    shown: list[torch.Tensor] = []
    result = called(pipe, lambda pipeline, step, timestep, tensors: shown.append(tensors["latents"]) or tensors)
    assert torch.equal(shown[-1], result)
    assert not torch.equal(shown[0], result)


def test_one_counter_over_all_iterations_of_freeinit(pipe, capsys):
    steps: list[tuple[int, int]] = []

    def callback(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipeline.num_timesteps == 7
        steps.append((step, int(timestep)))
        return tensors

    pipe.enable_free_init(num_iters=3, use_fast_sampling=True)
    pipe.set_progress_bar_config(disable=False)
    called(pipe, callback, num_inference_steps=4)
    assert [step for step, _ in steps] == list(range(7))
    assert [t for _, t in steps] == [1, 501, 1, 751, 501, 251, 1]
    assert "7/7" in capsys.readouterr().err


def test_two_evaluations_a_step_count_as_two(pipe):
    pipe.scheduler = HeunDiscreteScheduler.from_config(tiny.SCHEDULER)
    steps: list[int] = []
    called(pipe, lambda pipeline, step, timestep, tensors: steps.append(step) or tensors)
    assert steps == list(range(pipe.num_timesteps)) == [0, 1, 2]


# --------------------------------------------------------------------------------------------- what it changes


def writer(name: str, in_place: bool) -> Callable[..., Any]:
    """Halves one tensor after the first step."""

    def callback(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0 and in_place:
            tensors[name].mul_(0.5)
            return {}
        return {name: tensors[name] * 0.5} if step == 0 else tensors

    return callback


@pytest.mark.parametrize("name", ALL)
def test_what_is_written_is_used_in_place_or_not(pipe, name):
    plain = run(pipe)
    new, in_place = (called(pipe, writer(name, way)) for way in (False, True))
    assert torch.equal(new, in_place)
    assert relative_l2(new, plain) > 1e-3
    assert torch.equal(run(pipe), plain)


def test_latents_are_written_back_in_half_precision_too(pipe):
    half = pipeline(**{name: _half(pipe.components[name]) for name in ("vae", "unet", "text_encoder")})
    plain = run(half)
    new, in_place = (called(half, writer("latents", way)) for way in (False, True))
    assert torch.equal(new, in_place)
    assert relative_l2(new, plain) > 0.05
    # Latents that were only looked at keep the precision of the run.
    assert torch.equal(called(half, lambda pipeline, step, timestep, tensors: tensors), plain)


def _half(module: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(module).to(torch.bfloat16)


def test_under_inference_mode(pipe):
    plain = called(pipe, writer("prompt_embeds", True))
    with torch.inference_mode():
        assert torch.equal(called(pipe, writer("prompt_embeds", True)), plain)


def test_prompts_and_their_negative_half_in_one_callback(pipe):
    """The pair written as one tensor for every frame, and the negative prompt written again beside it."""

    def both(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            tensors["prompt_embeds"] = tensors["prompt_embeds"] * torch.linspace(0.5, 1, 2 * FRAMES).reshape(-1, 1, 1)
            tensors["negative_prompt_embeds"] = tensors["negative_prompt_embeds"] * 0.25
        return tensors

    def one(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            scales = torch.linspace(0.5, 1, 2 * FRAMES)
            scales[:FRAMES] = 0.25
            tensors["prompt_embeds"] = tensors["prompt_embeds"] * scales.reshape(-1, 1, 1)
        return tensors

    assert_parity(called(pipe, both), called(pipe, one), SAME)


def test_prompts_that_differ_from_frame_to_frame(pipe):
    positive, negative = pipe.encode_prompt("a cat", negative_prompt="dark")
    rows = torch.cat([negative.expand(FRAMES, -1, -1), positive * torch.linspace(0, 1, FRAMES).reshape(-1, 1, 1)])

    def callback(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": rows}

    written = called(pipe, callback, prompt="a cat", negative_prompt="dark", num_inference_steps=2)
    last = called(pipe, lambda *given: {"prompt_embeds": torch.cat([negative, rows[-1:]])}, prompt="a cat")
    assert relative_l2(written, last) > 1e-4


# ------------------------------------------------------------------------------------------- guidance switched off


def cut_by_function(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """As the manual of diffusers has it."""
    if step == int(pipeline.num_timesteps * 0.5):
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        pipeline._guidance_scale = 0.0
    return tensors


@pytest.mark.parametrize(
    "callback",
    [
        SDCFGCutoffCallback(cutoff_step_ratio=0.5),
        SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2),
        MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=0.5)]),
        cut_by_function,
    ],
)
def test_guidance_is_off_after_the_cutoff(pipe, callback):
    cut = called(pipe, callback, ["prompt_embeds"], guidance_scale=4.0, num_inference_steps=4)
    assert pipe.guidance_scale == 0.0
    assert not pipe.do_classifier_free_guidance
    manual = by_hand(pipe, lambda i, none, uncond, text: cfg(uncond, text, 4.0) if i <= 2 else text, 4)
    assert_parity(cut, manual, SAME)
    run(pipe, num_inference_steps=4)
    assert pipe.guidance_scale == 7.5


def test_the_cutoff_halves_the_work(pipe, monkeypatch):
    rows: list[int] = []
    read_text = pipe.unet.read_text
    monkeypatch.setattr(pipe.unet, "read_text", lambda text, per: rows.append(text.shape[0]) or read_text(text, per))
    called(pipe, SDCFGCutoffCallback(cutoff_step_index=0), num_inference_steps=3)
    assert rows == [2, 1]


def test_the_cutoff_for_several_clips(pipe):
    given = {"guidance_scale": 4.0, "num_inference_steps": 3, "image": picture(num=2), "prompt": ["a cat", "photo"]}
    cutoff = SDCFGCutoffCallback(cutoff_step_index=0)
    together = called(pipe, cutoff, generator=[seeded(0), seeded(1)], **given)
    for b in range(2):
        own = {**given, "image": picture(num=2)[b], "prompt": given["prompt"][b]}
        assert_parity(together[b][None], called(pipe, cutoff, generator=seeded(b), **own), SAME)


@pytest.mark.parametrize("num_clips", [1, 2])
def test_the_cutoff_without_guidance_does_nothing(pipe, num_clips):
    given = {"guidance_scale": 1.0, "negative_prompt": None, "prompt": ["a cat", "photo"][:num_clips], "num_frames": 4}
    cut = called(pipe, SDCFGCutoffCallback(cutoff_step_index=0), **given)
    assert torch.equal(cut, run(pipe, **given))


def test_the_cutoff_ends_image_guidance_too(pipe, evaluated):
    given = {"image_guidance_scale": 2.0, "guidance_scale": 4.0, "num_inference_steps": 3}
    cut = called(pipe, SDCFGCutoffCallback(cutoff_step_index=0), **given)
    assert evaluated == [3, 1, 1]
    assert pipe.image_guidance_scale is None

    def combine(i: int, none: torch.Tensor, uncond: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return none + 2 * (uncond - none) + 4 * (text - uncond) if i == 0 else text

    assert_parity(cut, by_hand(pipe, combine, 3), SAME)


def test_the_cutoff_lasts_over_the_iterations_of_freeinit(pipe, monkeypatch):
    rows: list[int] = []
    read_text = pipe.unet.read_text
    monkeypatch.setattr(pipe.unet, "read_text", lambda text, per: rows.append(text.shape[0]) or read_text(text, per))
    pipe.enable_free_init(num_iters=2)
    called(pipe, SDCFGCutoffCallback(cutoff_step_ratio=0.5), num_inference_steps=2)
    assert rows == [2, 1]  # once off, nothing switches it on again


def test_guidance_without_a_negative_prompt_is_an_error(pipe):
    with pytest.raises(InputError, match="E-GUIDANCE-NEGATIVE"):
        called(pipe, lambda p, i, t, tensors: {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]})


def test_another_scale_on_the_way(pipe):
    def callback(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipeline._guidance_scale = 2.0
        return tensors

    changed = called(pipe, callback, guidance_scale=5.0)
    manual = by_hand(pipe, lambda i, none, uncond, text: cfg(uncond, text, 2.0 if i else 5.0), 2)
    assert_parity(changed, manual, SAME)


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("returned", "code"),
    [
        (None, "E-CALLBACK-RETURN"),
        (torch.zeros(SHAPE), "E-CALLBACK-RETURN"),
        ({"latents": None}, "E-CALLBACK-RETURN"),
        ({"prompt_embeds": "a cat"}, "E-CALLBACK-RETURN"),
        ({"latent": torch.zeros(SHAPE)}, "E-CALLBACK-INPUTS"),
        ({"latents": torch.zeros(1, 4, 6, 10)}, "E-LATENTS-SHAPE"),
        ({"prompt_embeds": torch.zeros(5, 77, tiny.TEXT_DIM)}, "E-PROMPT-EMBEDS-SHAPE"),
        ({"prompt_embeds": torch.zeros(2, 77, 8)}, "E-PROMPT-EMBEDS-SHAPE"),
        ({"negative_prompt_embeds": torch.zeros(2, 77, tiny.TEXT_DIM)}, "E-PROMPT-EMBEDS-SHAPE"),
        ({"negative_prompt_embeds": torch.zeros(1, 9, tiny.TEXT_DIM)}, "E-PROMPT-EMBEDS-SHAPE"),
    ],
)
def test_what_cannot_be_used_is_refused_at_that_step(pipe, evaluated, returned, code):
    with pytest.raises(InputError) as refusal:
        called(pipe, lambda *given: returned)
    assert refusal.value.code == code
    assert len(evaluated) == 1


@pytest.mark.parametrize(
    "error", [Cancelled("E-CANCELLED", "Enough."), KeyboardInterrupt(), RuntimeError("window closed")]
)
def test_an_exception_ends_the_run_within_a_step_and_without_decoding(pipe, evaluated, monkeypatch, error):
    monkeypatch.setattr(pipe.vae, "decode_tensor", None)

    def callback(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise error
        return tensors

    with pytest.raises(type(error)):
        called(pipe, callback, num_inference_steps=9, output_type="pil")
    assert len(evaluated) == 2


# ---------------------------------------------------------------------------------------------------- classes


class Halve(PipelineCallback):
    """Halves the latents at the cutoff. A class attribute, as diffusers has it."""

    tensor_inputs: ClassVar = ["latents"]  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]) -> Any:
        assert set(callback_kwargs) >= {"latents"}
        if step_index == self.cutoff_step(pipeline):
            callback_kwargs["latents"] = callback_kwargs["latents"] * 0.5
        return callback_kwargs


def test_a_class_is_shown_what_it_names(pipe):
    expected = called(pipe, writer("latents", False))
    assert torch.equal(called(pipe, Halve(cutoff_step_ratio=0.0), ["prompt_embeds"]), expected)
    assert torch.equal(called(pipe, Halve()), run(pipe))  # at the end of all steps, which none is


def test_several_act_in_their_order(pipe):
    order: list[str] = []

    class Note(Halve):
        """Tells that it was here."""

        tensor_inputs: ClassVar = ["negative_prompt_embeds"]

        def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]) -> Any:
            order.append(f"{type(self).__name__} {len(callback_kwargs)}")
            return callback_kwargs

    both = MultiPipelineCallbacks([Note(), Halve(cutoff_step_index=0), Note()])
    assert both.tensor_inputs == ["negative_prompt_embeds", "latents", "negative_prompt_embeds"]
    assert torch.equal(called(pipe, both), called(pipe, writer("latents", False)))
    assert order == ["Note 2"] * 4


@pytest.mark.unchecked
def test_a_member_that_returns_nothing_is_named(pipe, evaluated):
    def forgetful(*given: Any) -> None:
        """Returns nothing."""

    members: Any = [forgetful, Halve()]
    with pytest.raises(InputError, match=r"E-CALLBACK-RETURN.*forgetful returned NoneType"):
        MultiPipelineCallbacks(members)(pipe, 0, 1, {})


def test_an_unknown_name_of_a_class_is_refused(pipe):
    class Odd(Halve):
        """Wants the mask."""

        tensor_inputs: ClassVar = ["mask"]

    with pytest.raises(InputError, match="E-CALLBACK-INPUTS"):
        pipe(**arguments(callback_on_step_end=Odd()))


@pytest.mark.unchecked
@pytest.mark.parametrize("ratio", [None, -0.1, 1.1, float("nan"), "0.5", True])
def test_a_callback_without_a_cutoff_is_refused(ratio):
    with pytest.raises(InputError, match="E-CALLBACK-CUTOFF"):
        Halve(cutoff_step_ratio=ratio)


@pytest.mark.unchecked
@pytest.mark.parametrize("index", [-1, "2", 1.5, True])
def test_a_cutoff_at_no_step_is_refused(index):
    with pytest.raises(InputError, match=r"E-CALLBACK-CUTOFF.*cutoff_step_index"):
        Halve(cutoff_step_index=index)


def test_a_base_class_does_nothing_by_itself(pipe):
    with pytest.raises(NotImplementedError, match="tensor_inputs"):
        pipe(**arguments(callback_on_step_end=PipelineCallback()))
