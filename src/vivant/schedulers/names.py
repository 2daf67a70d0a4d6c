"""Samplers by the names that A1111's web interface gave them, which the field's recipes and model cards use.

The names and the functions behind them are those of `modules/sd_samplers_kdiffusion.py`, `sd_samplers_timesteps.py` and
`sd_schedulers.py` of AUTOMATIC1111/stable-diffusion-webui; which scheduler of diffusers computes the same is from the
table on the page "Schedulers" of diffusers' documentation, and from the formulas where that table is silent.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from vivant.errors import InputError
from vivant.schedulers import scheduler_class
from vivant.schedulers.base import SCHEDULERS, Scheduler

Fields = Mapping[str, Any]

MODEL_FIELDS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("prediction_type", "rescale_betas_zero_snr"),
)
"""What a configuration says of the model. The rest says how to sample, which is what the name is for."""

KARRAS: Fields = {"use_karras_sigmas": True}
EXPONENTIAL: Fields = {"use_exponential_sigmas": True}
TRAILING: Fields = {"timestep_spacing": "trailing"}
LEVELS: Mapping[str, Fields] = {
    "Karras": KARRAS,
    "Exponential": EXPONENTIAL,
    "SGM Uniform": TRAILING,
    "Simple": TRAILING,
}
TIMES: Mapping[str, Fields] = {"SGM Uniform": TRAILING, "Simple": TRAILING}
# Groups of evaluations are spaced like this and not otherwise.
GROUPS: Mapping[str, Fields] = {"Karras": KARRAS, "Exponential": EXPONENTIAL, "SGM Uniform": {}}


class Sampler(NamedTuple):
    """A scheduler, its fields where they are not the defaults, and what the schedules that it can have change."""

    scheduler: str
    fields: Fields
    schedules: Mapping[str, Fields]


def _dpm(order: int, solver: str = "midpoint", *, sde: bool) -> Sampler:
    values = {"algorithm_type": "sde-dpmsolver++" if sde else "dpmsolver++", "solver_order": order}
    return Sampler("DPMSolverMultistepScheduler", {**values, "solver_type": solver}, LEVELS)


# Latents are not pixels, so they are not clipped; one timestep up and no step beyond the first of the training, as the
# models were published with.
_LATENT: Fields = {"steps_offset": 1, "set_alpha_to_one": False}

SAMPLERS: Mapping[str, Sampler] = {
    "Euler": Sampler("EulerDiscreteScheduler", {}, LEVELS),
    "Euler a": Sampler("EulerAncestralDiscreteScheduler", {}, TIMES),
    "Heun": Sampler("HeunDiscreteScheduler", {}, LEVELS),
    "LMS": Sampler("LMSDiscreteScheduler", {}, LEVELS),
    "DPM++ 2M": _dpm(2, sde=False),
    "DPM++ 2M SDE": _dpm(2, sde=True),
    "DPM++ 2M SDE Heun": _dpm(2, "heun", sde=True),
    "DPM++ 3M SDE": _dpm(3, sde=True),
    "DPM++ SDE": Sampler(
        "DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}, GROUPS
    ),
    "DPM++ 2S": Sampler("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}, GROUPS),
    "DPM++ 2S a": Sampler("DPMSolver2SAncestralScheduler", {}, LEVELS),
    "DDIM": Sampler("DDIMScheduler", {"clip_sample": False, **_LATENT}, TIMES),
    "DDPM": Sampler("DDPMScheduler", {"clip_sample": False}, TIMES),
    "PLMS": Sampler("PNDMScheduler", {"skip_prk_steps": True, **_LATENT}, {}),
    "UniPC": Sampler("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1"}, LEVELS),
    "LCM": Sampler("LCMScheduler", {}, {}),
    "TCD": Sampler("TCDScheduler", {}, {}),
}
"""By name without a schedule, which then is the uniform one."""

NEAREST: Mapping[str, str] = {
    "DPM2": "Heun",
    "DPM2 a": "Euler a",
    "DPM fast": "DPM++ 2S",
    "DPM adaptive": "DPM++ 2S",
    "DEIS": "DPM++ 2M",
    "Restart": "Euler a",
    "DDIM CFG++": "DDIM",
    "SA Solver": "DPM++ 2M SDE",
    "iPNDM": "PLMS",
}
"""Samplers that we lack, and which of ours is nearest: of the same order, and with fresh noise or without like them."""

UNIFORM = ("Uniform", "Normal")
LACKING = ("Polyexponential", "Beta", "KL Optimal", "Align Your Steps", "DDIM Uniform", "Turbo")
"""Schedules: other words for none, and those that we lack."""


def names() -> tuple[str, ...]:
    """Every name, with each schedule that it can have."""
    return tuple(
        name if schedule is None else f"{name} {schedule}"
        for name, sampler in SAMPLERS.items()
        for schedule in (None, *sampler.schedules)
    )


def named(name: str, config: Mapping[str, Any]) -> Scheduler:
    """The scheduler of this name for the model of `config`.

    Args:
        name: such as ``"DPM++ 2M Karras"``; upper and lower case are the same, and so are the spellings ``k_euler_a``
            and ``dpmpp_2m``.
        config: of the model's scheduler, ours or diffusers'. Its noise schedule and prediction type are kept. How it
            sampled is not: a name means the same whatever sampler a model came with.

    Raises:
        InputError: E-SAMPLER for a sampler or a schedule that there is not, with the nearest.
    """
    spoken = {_plain(known): known for known in (*SAMPLERS, *NEAREST)}
    text = _plain(name)
    wanted = spoken.get(text)
    schedule = None
    if wanted is None:
        every = (*LEVELS, *UNIFORM, *LACKING)
        schedule = next((s for s in sorted(every, key=len, reverse=True) if text.endswith(f" {_plain(s)}")), None)
        wanted = spoken.get(text.removesuffix(f" {_plain(schedule)}")) if schedule else None
    if wanted is None:
        near = difflib.get_close_matches(text, [_plain(known) for known in names()], n=3, cutoff=0.5)
        proper = {_plain(known): known for known in names()}
        raise _unknown(name, [proper[found] for found in near])
    if wanted not in SAMPLERS:
        nearest = NEAREST[wanted]
        raise _unknown(name, [f"{nearest} {schedule}" if schedule in SAMPLERS[nearest].schedules else nearest])
    sampler = SAMPLERS[wanted]
    if schedule is not None and schedule not in (*sampler.schedules, *UNIFORM):
        raise _unknown(name, [wanted, *(f"{wanted} {one}" for one in sampler.schedules)])
    changes = sampler.schedules.get(schedule or "", {})
    return SCHEDULERS[sampler.scheduler].from_config({**_of_model(config), **sampler.fields, **changes})


def _plain(name: str) -> str:
    """A name as it is compared: ``k_dpmpp_2s_ancestral`` is ``dpm++ 2s a``."""
    text = " ".join(str(name).casefold().replace("_", " ").split()).removeprefix("k ")
    text = (
        re.sub(r"\bdpmpp\b", "dpm++", text).replace("dpm 2", "dpm2").replace("uni pc", "unipc").replace("pndm", "plms")
    )
    return re.sub(r"\bancestral\b", "a", text).replace("sgmuniform", "sgm uniform").replace("iplms", "ipndm")


def _of_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of the model, by itself or by the defaults of the scheduler that it is of."""
    kind = scheduler_class(str(config.get("_class_name")))
    own = fields(kind.solver_class) if hasattr(kind, "solver_class") else ()
    defaults = {f.name: f.default for f in own if f.default is not MISSING}
    return {key: value for key, value in {**defaults, **config}.items() if key in MODEL_FIELDS}


def _unknown(name: str, near: list[str]) -> InputError:
    return InputError(
        "E-SAMPLER",
        f"There is no sampler {str(name)[:80]!r}.",
        f"Nearest: {', '.join(near)}." if near else "No name is near to it.",
        f"There are {', '.join(SAMPLERS)}; most of them also with Karras, Exponential or SGM Uniform at the end.",
    )
