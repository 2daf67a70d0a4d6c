"""Configurations: what `read` takes and refuses, and that nothing in one can be changed."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import pytest

import tiny
from vivant.config import Config, read
from vivant.errors import InputError
from vivant.pia.config import MotionAdapterConfig, UNet2DConditionConfig, UNetMotionConfig
from vivant.schedulers import SCHEDULERS
from vivant.vae.image import AutoencoderKLConfig
from vivant.vae.video import AutoencoderKLCogVideoXConfig

SOLVERS = [kind.solver_class for kind in SCHEDULERS.values()]
NETWORKS = [
    *(UNet2DConditionConfig, UNetMotionConfig, MotionAdapterConfig, AutoencoderKLConfig),
    AutoencoderKLCogVideoXConfig,
]


@dataclass(frozen=True)
class Everything:
    whole: int = 1
    real: float = 1.0
    truth: bool = False
    word: str = ""
    choice: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()
    pair: tuple[int, int] | None = None
    per_block: int | tuple[int, ...] = 1
    nothing: None = None
    folder: Path | None = None
    anything: Any = None


@pytest.mark.parametrize(
    "raw",
    [
        {"whole": "1"},
        {"whole": 1.5},
        {"whole": True},
        {"whole": None},
        {"whole": float("inf")},
        {"whole": [1]},
        {"real": "0.1"},
        {"real": False},
        {"real": None},
        {"truth": 0},
        {"truth": "false"},
        {"truth": None},
        {"word": 3},
        {"word": ["silu"]},
        {"choice": "c"},
        {"sizes": 8},
        {"sizes": "8"},
        {"sizes": [8, "8"]},
        {"sizes": [[8]]},
        {"pair": [1]},
        {"pair": 1},
        {"per_block": "2"},
        {"per_block": [2, None]},
        {"per_block": None},
        {"nothing": 0},
        {"folder": "here"},
    ],
    ids=str,
)
def test_values_of_another_type_are_refused_by_name(raw):
    (name,) = raw
    with pytest.raises(InputError, match=rf"^\[E-CONFIG-VALUE\] Everything has {name} = .* It must be ") as error:
        read(Everything, raw)
    assert "tuple" not in error.value.why, "JSON has lists"


@pytest.mark.parametrize(
    ("raw", "due"),
    [
        ({"whole": 1000.0}, 1000),
        ({"whole": np.int64(3)}, 3),
        ({"real": 1}, 1),
        ({"real": np.float32(0.5)}, 0.5),
        ({"real": float("-inf")}, float("-inf")),
        ({"sizes": [8.0, np.int32(9)]}, (8, 9)),
        ({"pair": [1, 2]}, (1, 2)),
        ({"per_block": 2.0}, 2),
        ({"per_block": [2, 3]}, (2, 3)),
        ({"folder": Path("here")}, Path("here")),
        ({"anything": {"x": [1]}}, {"x": [1]}),
    ],
    ids=str,
)
def test_whole_floats_and_numbers_of_numpy_are_numbers(raw, due):
    """The value and the configuration that users see hold the same, which JSON can hold."""
    ((name, _),) = raw.items()
    typed, config = read(Everything, raw)
    assert getattr(typed, name) == config[name] == due
    assert type(getattr(typed, name)) is type(config[name]) is type(due)
    json.dumps(dict(config), default=str)


@pytest.mark.parametrize("cls", [*NETWORKS, *SOLVERS], ids=lambda cls: cls.__name__)
def test_every_field_has_a_type_that_its_default_is_of(cls):
    defaults = {field.name: field.default for field in fields(cls)}
    defaults = (
        {**defaults, "block_out_channels": (64,) * len(cls().block_out_channels)} if cls in NETWORKS else defaults
    )
    typed, config = read(cls, defaults)
    assert typed == cls(**defaults)
    assert dict(config) == defaults
    for name in defaults:
        if get_type_hints(cls)[name] is not Any:
            with pytest.raises(InputError, match="E-CONFIG-VALUE"):
                read(cls, {name: object()})


@pytest.mark.parametrize(
    ("cls", "base", "change"),
    [
        (UNet2DConditionConfig, tiny.UNET2D, {"cross_attention_dim": [20, 20]}),
        (UNet2DConditionConfig, tiny.UNET2D, {"layers_per_block": None}),
        (UNet2DConditionConfig, tiny.UNET2D, {"block_out_channels": 8}),
        (UNet2DConditionConfig, tiny.UNET2D, {"norm_num_groups": 5}),
        (UNetMotionConfig, {}, {"norm_num_groups": 0}),
        (MotionAdapterConfig, tiny.ADAPTER, {"motion_norm_num_groups": 5}),
        (AutoencoderKLConfig, tiny.VAE, {"norm_num_groups": 8}),
        (AutoencoderKLCogVideoXConfig, tiny.VIDEO_VAE, {"norm_num_groups": 8}),
        (AutoencoderKLCogVideoXConfig, tiny.VIDEO_VAE, {"temporal_compression_ratio": 3}),
        *((solver, {}, {"num_train_timesteps": "1000"}) for solver in SOLVERS),
        *((solver, {}, {"beta_start": "0.1"}) for solver in SOLVERS),
        *((solver, {}, {"trained_betas": [0.1, None]}) for solver in SOLVERS),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value)[-40:],
)
def test_components_name_the_field_that_is_wrong(cls, base, change):
    (name,) = change
    with pytest.raises(InputError, match=rf"^\[E-CONFIG-VALUE\].*\b{name} = "):
        read(cls, {**base, **change})


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("sd15_unet", UNet2DConditionConfig),
        ("sd15_vae", None),
        ("pia_motion_adapter", MotionAdapterConfig),
        ("sd15_scheduler_usual", SCHEDULERS["PNDMScheduler"].solver_class),
        ("consisid_scheduler", SCHEDULERS["CogVideoXDPMScheduler"].solver_class),
    ],
)
def test_published_configurations_are_read(name, cls):
    published = json.loads((Path(__file__).parents[1] / "golden" / "configs.json").read_text())[name]
    if cls is None:  # the manifest leaves the kinds of blocks out
        cls, num = AutoencoderKLConfig, len(published["block_out_channels"])
        published |= {"down_block_types": ["DownEncoderBlock2D"] * num, "up_block_types": ["UpDecoderBlock2D"] * num}
    _, config = read(cls, published, keep_unknown="scheduler" in name)
    assert {key: config[key] for key in published} == dict(Config(published))


def test_nothing_in_a_configuration_can_be_changed():
    raw = {"a": [[1, [2]], {"b": 3}], "c": [4]}
    config = Config(raw)
    assert config.a == ((1, (2,)), {"b": 3})
    raw["c"].append(5)
    assert config.c == (4,)
    with pytest.raises(AttributeError, match="immutable"):
        config.c = 5
