"""Models that were distilled to need few steps: which these are, and how each wants to be sampled.

A file's tensors do not tell a distilled LoRA from any other, so its name has to, or what its header says it is called.
What to set is from the authors' model cards, which are named at the rules; 0 for guidance there is 1 here: no guidance.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from vivant.hub.family import SD15, identify
from vivant.hub.header import Header, Stored
from vivant.schedulers.base import SCHEDULERS, Scheduler

_TITLES = ("modelspec.title", "ss_output_name")
"""Where headers say what a file is called."""
_NAMELESS = ("pytorch_lora_weights", "diffusion_pytorch_model", "pytorch_model", "model", "adapter_model")
"""Names that programs give to files of every content."""
_OTHERS = re.compile(r"\b(sd ?xl|xl|ssd|svd|flux|sd ?3|sd ?21?|turbo)\b")
"""Families of distilled models that are not of Stable Diffusion 1.5, where tensors do not say so."""


@dataclass(frozen=True)
class FewSteps:
    """How a distilled model wants to be sampled.

    Attributes:
        model: what was recognised.
        scheduler: name of the scheduler's class.
        steps: number of steps.
        guidance: classifier-free guidance scale; 1 is none.
        eta: share of fresh noise, for TCD.
        changes: fields of the scheduler to set.
        sure: whether the name says the number of steps; a usual number otherwise.
    """

    model: str
    scheduler: str
    steps: int
    guidance: float = 1.0
    eta: float = 0.0
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sure: bool = True

    def __str__(self) -> str:
        """The sentence for the report of a load."""
        count = "1 step" if self.steps == 1 else f"{self.steps} steps"
        eta = f", eta {self.eta:g}" if self.eta else ""
        doubt = "" if self.sure else " Its name does not say for how many steps it is."
        return f"{self.model} wants {self.scheduler}, {count}, guidance {self.guidance:g}{eta}.{doubt}"

    def scheduler_for(self, config: Mapping[str, Any]) -> Scheduler:
        """The scheduler, over the configuration of the one that the model came with."""
        return SCHEDULERS[self.scheduler].from_config(config, **self.changes)


def few_steps(name: str, metadata: Mapping[str, str], tensors: Mapping[str, Stored]) -> FewSteps | None:
    """How to sample with a distilled LoRA or motion module of Stable Diffusion 1.5; None for any other file.

    Args:
        name: of the file, with its folders or its hub id before it as far as they are known. These count only where
            the file has a name that programs give.
        metadata: remarks in its header.
        tensors: what it holds, by which other families and other kinds of files are told apart.
    """
    kind = identify(Header(tensors, metadata))
    texts = [_plain(text) for text in (_telling(name), *(metadata.get(key, "") for key in _TITLES))]
    if kind.what not in ("LoRA", "motion module", "unknown file") or kind.family not in (SD15, "unknown"):
        return None
    if kind.family != SD15 and any(_OTHERS.search(text) for text in texts):
        return None
    is_motion = kind.what == "motion module"
    return next((found for text in texts if (found := _recognised(text, is_motion)) is not None), None)


def _telling(name: str) -> str:
    """The part of a name that somebody chose for this file: that of a folder or repository if the file's says nothing.

    In the hub's cache, the repository's name stands two folders above the file.
    """
    path = PurePath(name)
    return "/".join(path.parts[-4:]) if path.stem.split(".")[0] in _NAMELESS else path.name


def _plain(text: object) -> str:
    """Words and numbers in lower case; the end of a text that is longer than any name."""
    return re.sub(r"[\W_]+", " ", str(text)[-300:].casefold())


def _recognised(text: str, is_motion: bool) -> FewSteps | None:
    # Cards of wangfuyun/AnimateLCM and of AnimateLCM in diffusers' page on AnimateDiff: LCM, linear betas, 6 steps,
    # guidance 2. Module and LoRA belong together and want the same.
    if re.search(r"animate ?lcm", text):
        return FewSteps("AnimateLCM", "LCMScheduler", 6, guidance=2.0, changes={"beta_schedule": "linear"})
    # Card of ByteDance/AnimateDiff-Lightning: Euler, trailing, linear betas, no guidance; 1, 2, 4 or 8 steps.
    if re.search(r"animate ?diff ?lightning", text) or (is_motion and re.search(r"\blightning\b", text)):
        changes = {"timestep_spacing": "trailing", "beta_schedule": "linear"}
        return _stepped("AnimateDiff-Lightning", "EulerDiscreteScheduler", text, 4, changes=changes)
    if is_motion:
        return None
    if re.search(r"\bhyper ?sd", text):
        return _hyper_sd(text)
    # Card of h1t/TCD-SD15-LoRA: TCD, 4 steps, no guidance, eta 0.3, more with more steps.
    if re.search(r"\btcd\b", text):
        return _stepped("TCD-LoRA", "TCDScheduler", text, 4, eta=0.3, known=True)
    # Card of latent-consistency/lcm-lora-sdv1-5: LCM, 2 to 8 steps, 4 in its example, guidance none or 1 to 2.
    if re.search(r"\blcm\b", text):
        return _stepped("LCM-LoRA", "LCMScheduler", text, 4, known=True)
    return None


def _hyper_sd(text: str) -> FewSteps:
    """Card of ByteDance/Hyper-SD.

    DDIM with trailing timesteps, no guidance; the file for 1 step wants TCD with eta 1. The files whose names say CFG,
    for 8 or 12 steps, keep guidance from 5 to 8.
    """
    if re.search(r"\bcfg\b", text):
        changes = {"timestep_spacing": "trailing", "clip_sample": False}
        return _stepped("Hyper-SD, guidance preserved", "DDIMScheduler", text, 8, guidance=5.0, changes=changes)
    if _steps(text) == 1:
        return FewSteps("Hyper-SD", "TCDScheduler", 1, eta=1.0)
    changes = {"timestep_spacing": "trailing", "clip_sample": False}
    return _stepped("Hyper-SD", "DDIMScheduler", text, 8, changes=changes)


def _steps(text: str) -> int | None:
    """The number of steps that a name gives."""
    found = re.search(r"(?<!\d)(\d{1,2}) ?steps?\b", text)
    return int(found[1]) if found and 1 <= int(found[1]) <= 50 else None


def _stepped(model: str, scheduler: str, text: str, usual: int, *, known: bool = False, **more: Any) -> FewSteps:
    """With the steps that the name gives, or the usual ones; `known` if any number of steps will do."""
    steps = _steps(text)
    return FewSteps(model, scheduler, steps or usual, sure=known or steps is not None, **more)
