"""vivant: a still picture, brought to life.

The public names are imported when they are first used, so that `import vivant` costs milliseconds and no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vivant.api.animator import Animator as Animator
    from vivant.api.portrait import Portrait as Portrait
    from vivant.api.result import Result as Result
    from vivant.consisid.transformer import ConsisIDTransformer3DModel as ConsisIDTransformer3DModel
    from vivant.errors import Cancelled as Cancelled
    from vivant.errors import InputError as InputError
    from vivant.errors import LoadError as LoadError
    from vivant.errors import MissingPackage as MissingPackage
    from vivant.errors import OutputError as OutputError
    from vivant.errors import VivantError as VivantError
    from vivant.errors import VivantWarning as VivantWarning
    from vivant.freeinit import FreeInit as FreeInit
    from vivant.pia.motion import MotionAdapter as MotionAdapter
    from vivant.pia.unet import UNet2DConditionModel as UNet2DConditionModel
    from vivant.pia.unet import UNetMotionModel as UNetMotionModel
    from vivant.pipelines.base import DiffusionPipeline as DiffusionPipeline
    from vivant.pipelines.consisid.pipeline_consisid import ConsisIDPipeline as ConsisIDPipeline
    from vivant.pipelines.pia import PIAPipeline as PIAPipeline
    from vivant.pipelines.pia import PIAPipelineOutput as PIAPipelineOutput
    from vivant.placement import MemoryPolicy as MemoryPolicy
    from vivant.request import ConsisIDRequest as ConsisIDRequest
    from vivant.request import PIARequest as PIARequest
    from vivant.schedulers import CogVideoXDDIMScheduler as CogVideoXDDIMScheduler
    from vivant.schedulers import CogVideoXDPMScheduler as CogVideoXDPMScheduler
    from vivant.schedulers import DDIMScheduler as DDIMScheduler
    from vivant.schedulers import DDPMScheduler as DDPMScheduler
    from vivant.schedulers import DPMSolver2SAncestralScheduler as DPMSolver2SAncestralScheduler
    from vivant.schedulers import DPMSolverMultistepScheduler as DPMSolverMultistepScheduler
    from vivant.schedulers import DPMSolverSinglestepScheduler as DPMSolverSinglestepScheduler
    from vivant.schedulers import EulerAncestralDiscreteScheduler as EulerAncestralDiscreteScheduler
    from vivant.schedulers import EulerDiscreteScheduler as EulerDiscreteScheduler
    from vivant.schedulers import HeunDiscreteScheduler as HeunDiscreteScheduler
    from vivant.schedulers import LCMScheduler as LCMScheduler
    from vivant.schedulers import LMSDiscreteScheduler as LMSDiscreteScheduler
    from vivant.schedulers import PNDMScheduler as PNDMScheduler
    from vivant.schedulers import TCDScheduler as TCDScheduler
    from vivant.schedulers import UniPCMultistepScheduler as UniPCMultistepScheduler
    from vivant.vae.image import AutoencoderKL as AutoencoderKL
    from vivant.vae.video import AutoencoderKLCogVideoX as AutoencoderKLCogVideoX

__version__ = "0.1.0"

_HOMES = {
    "Animator": "vivant.api.animator",
    "AutoencoderKL": "vivant.vae.image",
    "AutoencoderKLCogVideoX": "vivant.vae.video",
    "Cancelled": "vivant.errors",
    "CogVideoXDDIMScheduler": "vivant.schedulers",
    "CogVideoXDPMScheduler": "vivant.schedulers",
    "ConsisIDPipeline": "vivant.pipelines.consisid.pipeline_consisid",
    "ConsisIDRequest": "vivant.request",
    "ConsisIDTransformer3DModel": "vivant.consisid.transformer",
    "DDIMScheduler": "vivant.schedulers",
    "DDPMScheduler": "vivant.schedulers",
    "DPMSolver2SAncestralScheduler": "vivant.schedulers",
    "DPMSolverMultistepScheduler": "vivant.schedulers",
    "DPMSolverSinglestepScheduler": "vivant.schedulers",
    "DiffusionPipeline": "vivant.pipelines.base",
    "EulerAncestralDiscreteScheduler": "vivant.schedulers",
    "EulerDiscreteScheduler": "vivant.schedulers",
    "FreeInit": "vivant.freeinit",
    "HeunDiscreteScheduler": "vivant.schedulers",
    "InputError": "vivant.errors",
    "LCMScheduler": "vivant.schedulers",
    "LMSDiscreteScheduler": "vivant.schedulers",
    "LoadError": "vivant.errors",
    "MemoryPolicy": "vivant.placement",
    "MissingPackage": "vivant.errors",
    "MotionAdapter": "vivant.pia.motion",
    "OutputError": "vivant.errors",
    "PIAPipeline": "vivant.pipelines.pia",
    "PIAPipelineOutput": "vivant.pipelines.pia",
    "PIARequest": "vivant.request",
    "PNDMScheduler": "vivant.schedulers",
    "Portrait": "vivant.api.portrait",
    "Result": "vivant.api.result",
    "TCDScheduler": "vivant.schedulers",
    "UNet2DConditionModel": "vivant.pia.unet",
    "UNetMotionModel": "vivant.pia.unet",
    "UniPCMultistepScheduler": "vivant.schedulers",
    "VivantError": "vivant.errors",
    "VivantWarning": "vivant.errors",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name from its module and keep it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vivant' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *_HOMES})
