"""Which models of PIA go together: located, and checked by their small files and headers before tensors are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from vivant.config import load_json, read
from vivant.errors import InputError, LoadError
from vivant.hub.model import Model
from vivant.hub.repo import MODEL, Source, locate
from vivant.hub.single_file import MOTION, SD15, TEXT, UNET, VAE, look_for, open_file, prediction
from vivant.hub.single_file import find as find_file
from vivant.pia.assemble import check_family, check_together, two_adapters
from vivant.pia.config import MotionAdapterConfig, UNet2DConditionConfig, UNetMotionConfig
from vivant.pia.motion import MotionAdapter
from vivant.pipelines import components as parts
from vivant.pipelines.declared import check_complete
from vivant.pipelines.pia import PIAPipeline
from vivant.preflight.additions import ENCODER, Addition, Embedding, Weighted, find_additions
from vivant.preflight.repository import (
    check_files,
    check_weights,
    file_origin,
    is_consisid,
    is_file,
    is_local,
    origin_of,
)
from vivant.schedulers import DDIMScheduler, Scheduler
from vivant.schedulers.few_steps import FewSteps
from vivant.schedulers.names import named
from vivant.vae.image import AutoencoderKL, AutoencoderKLConfig

M = TypeVar("M", bound=Model)

PIA_ADAPTER = "openmmlab/PIA-condition-adapter"
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""PIA's preset: the noise schedule that its motion modules were trained with."""
PREDICTION = ("prediction_type", "rescale_betas_zero_snr")
"""Fields of a base's own scheduler that say what it was trained to predict, and so hold for any sampler."""


@dataclass(frozen=True)
class Limits:
    """What the networks set bounds to.

    Attributes:
        num_frames: positions of the motion modules.
        num_text_layers: layers of the text encoder.
    """

    num_frames: int
    num_text_layers: int


@dataclass(frozen=True)
class Located:
    """One model, and where it lies.

    Attributes:
        source: what was asked for.
        path: the file, or the folder or snapshot with its small files.
        is_file: whether it is a file of weights rather than a folder with a configuration.
    """

    source: Source
    path: Path
    is_file: bool

    def origin(self) -> dict[str, Any]:
        """For a recipe: of files and folders the name, hub ids with commits."""
        return file_origin(self.path) if self.is_file else origin_of(self.source, self.path)

    def read(self, kind: type[M], name: str, dtype: torch.dtype) -> tuple[M, tuple[str, ...]]:
        """The model and notes about it; in its plain weights where a folder lacks the variant, as of a base's parts.

        Raises:
            LoadError: as `from_single_file` or `from_pretrained` of its class.
        """
        if self.is_file:
            return kind.from_single_file(self.path, dtype=dtype), ()
        given: dict[str, Any] = {**vars(self.source), "dtype": dtype}
        source = given.pop("source")
        try:
            return kind.from_pretrained(source, **given), ()
        except LoadError as error:
            if error.code != "E-WEIGHTS-VARIANT" or self.source.variant is None:
                raise
        note = f'{name} has no variant "{self.source.variant}"; its plain weights were read.'
        given["variant"] = None
        return kind.from_pretrained(source, **given), (note,)


@dataclass(frozen=True)
class Models:
    """A base and an adapter that go together, as their configurations say.

    Attributes:
        base: the base.
        config: where its configurations come from, if it is a file and they are not those of Stable Diffusion 1.5.
        adapter: the motion adapter; None when the base holds its modules already.
        vae: a VAE in place of the base's.
        limits: see there.
        scheduler: what samples: what was asked for, else what an addition was distilled for, else PIA's preset.
        additions: files that change the base, in the order in which they are read.
        few: how an addition that was distilled for few steps wants to be sampled.
    """

    base: Located
    config: Located | None
    adapter: Located | None
    vae: Located | None
    limits: Limits
    scheduler: Scheduler
    additions: tuple[Addition, ...]
    few: FewSteps | None

    @classmethod
    def find(
        cls,
        base: str | Path,
        motion_adapter: str | Path | None = None,
        *,
        config: str | Path | None = None,
        vae: str | Path | None = None,
        loras: Sequence[Weighted] = (),
        embeddings: Sequence[Embedding] = (),
        ip_adapters: Sequence[Weighted] = (),
        sampler: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        adapter_revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Locate them and check them by their small files and headers.

        Of a hub repository only small files are fetched, while a model in one file and additions are fetched whole.

        Arguments are those of `vivant.Animator.from_pretrained`.

        Raises:
            LoadError: what is missing, unreadable or of another family.
            InputError: E-SAMPLER, E-ADAPTER-FIT, E-ADAPTER-NOT-PIA, E-ADAPTER-TWICE, E-BASE-INPAINTING, E-CONFIG-…, and
                what `find_additions` refuses.
        """
        scheduler_of(sampler)
        hub = Source("", None, variant, None, cache_dir, local_files_only, token)
        place = replace(hub, source=base, revision=revision)
        other = None if vae is None else _vae(replace(hub, source=vae))
        if is_file(base):
            found, folder, own = _base_in_file(place, config, has_vae=other is not None)
        elif config is not None:
            raise InputError(
                "E-BASE-CONFIG", f"config={str(config)!r} is given, and {base} has its own.", "", "Leave it out."
            )
        else:
            found, own = _base_in_folder(place)
            folder = found.path
        scheduler = scheduler_of(sampler, own)
        additions = find_additions(loras, embeddings, ip_adapters, hub)
        few = next(filter(None, (addition.few_steps() for addition in additions)), None)
        if few is not None and sampler is None:
            scheduler = few.scheduler_for(scheduler.config)
        adapter, num_frames = _adapter(folder, found, motion_adapter, replace(hub, revision=adapter_revision))
        return cls(
            base=found,
            config=None if config is None else Located(replace(hub, source=config), folder, is_file=False),
            adapter=adapter,
            vae=other,
            limits=Limits(num_frames, _text_layers(load_json(folder / "text_encoder" / "config.json"))),
            scheduler=scheduler,
            additions=additions,
            few=few,
        )

    def check_picture_prompts(self, count: int) -> None:
        """Refuse (E-IP-ADAPTER-IMAGES) another number of pictures than one for each IP-Adapter."""
        wanted = sum(addition.kind == "ip_adapter" for addition in self.additions)
        if count != wanted:
            raise InputError(
                "E-IP-ADAPTER-IMAGES",
                f"There are {count} picture prompts for {wanted} IP-Adapters.",
                "",
                "Give one for each, in their order.",
            )

    @property
    def defaults(self) -> dict[str, Any]:
        """What a request is where it does not say: what a distilled addition wants, if anything."""
        if self.few is None:
            return {}
        wanted: dict[str, Any] = {"num_inference_steps": self.few.steps, "guidance_scale": self.few.guidance}
        return {**wanted, "eta": self.few.eta} if self.few.eta and self.scheduler.solver.uses_eta else wanted

    def read(self, dtype: torch.dtype, **options: Any) -> PIAPipeline:
        """The pipeline, with its additions.

        Args:
            dtype: data type of the weights.
            options: of `PIAPipeline`.

        Raises:
            LoadError, InputError: what its readers raise.
        """
        given: dict[str, Any] = dict(options)
        notes: list[str] = []
        for place, kind, name in ((self.adapter, MotionAdapter, "motion_adapter"), (self.vae, AutoencoderKL, "vae")):
            if place is not None:
                given[name], more = place.read(kind, name, dtype)
                notes += more
        source = self.base.source
        hub = {name: getattr(source, name) for name in ("revision", "cache_dir", "local_files_only", "token")}
        if self.base.is_file:
            config = None if self.config is None else self.config.path
            pipeline = PIAPipeline.from_single_file(self.base.path, config=config, dtype=dtype, **hub, **given)
        else:
            pipeline = PIAPipeline.from_pretrained(source.source, variant=source.variant, dtype=dtype, **hub, **given)
        pipeline.notes += notes
        pipeline.scheduler = self.scheduler
        if self.few is not None:
            pipeline.notes.append(str(self.few))
        _add(pipeline, self.additions)
        return pipeline

    def origins(self) -> dict[str, Any]:
        """Where all come from, for a recipe."""
        named_places = {"config": self.config, "vae": self.vae}
        return {
            "base": self.base.origin(),
            "motion_adapter": None if self.adapter is None else self.adapter.origin(),
            **{name: place.origin() for name, place in named_places.items() if place is not None},
            "variant": self.base.source.variant,
            "additions": [addition.to_json() for addition in self.additions],
        }


def _base_in_folder(place: Source) -> tuple[Located, dict[str, Any]]:
    """A repository that is one of PIA's, and the fields of its scheduler that hold for any sampler."""
    configs = [f"{name}/config.json" for name in ("unet", "vae", "text_encoder")]
    folder = locate(place, ["model_index.json", "scheduler/scheduler_config.json", *configs])
    listed = _check_index(folder, place.source)
    if is_local(place):
        check_files(folder, listed, place.variant, ("text_encoder", "unet", "vae"))
    path = folder / "scheduler" / "scheduler_config.json"
    own = load_json(path) if path.is_file() else {}
    return Located(place, folder, is_file=False), {name: own[name] for name in PREDICTION if own.get(name)}


def _base_in_file(place: Source, config: str | Path | None, *, has_vae: bool) -> tuple[Located, Path, dict[str, Any]]:
    """A file of a whole model, the folder with its configurations, and fields as of `_base_in_folder`."""
    path = find_file(place.source, place)
    file = open_file(path, place)
    file.refuse("model", "unet")
    folder = SD15
    if config is not None:
        configs = [f"{name}/config.json" for name in ("unet", "vae", "text_encoder")]
        folder = locate(replace(place, source=config, revision=None), ["model_index.json", *configs])
    _check_index(folder, place.source)
    for part in (UNET, TEXT) if has_vae else (UNET, TEXT, VAE):
        look_for(file, part)
    return Located(place, path, is_file=True), folder, prediction(file.header)


def _check_index(folder: Path, source: str | Path) -> dict[str, parts.Entry | None]:
    """The components that a repository lists, once they are those of a base of PIA."""
    index = parts.read_index(PIAPipeline, folder)
    listed = parts.entries(index)
    if is_consisid(listed):
        raise LoadError(
            "E-REPO-FAMILY",
            f"{source} holds ConsisID, which films a person.",
            "PIA animates pictures with Stable Diffusion 1.5.",
            "Use `vivant portrait` or vivant.Portrait for it.",
        )
    # Without those that are listed as None: prompts are texts here, so that the text encoder is needed too.
    check_complete(PIAPipeline, {name: entry for name, entry in listed.items() if entry}, {}, source)
    check_family(folder, index)
    read(AutoencoderKLConfig, load_json(folder / "vae" / "config.json"))
    return listed


def _vae(place: Source) -> Located:
    """A VAE in a file, or in a repository of its own or with other parts."""
    if is_file(place.source):
        path = find_file(place.source, place)
        look_for(open_file(path, place), VAE)
        return Located(place, path, is_file=True)
    folder = locate(place, ["config.json", "vae/config.json"])
    inner = None if (folder / "config.json").is_file() else "vae"
    read(AutoencoderKLConfig, load_json((folder / inner if inner else folder) / "config.json"))
    return Located(replace(place, subfolder=inner), folder, is_file=False)


def _adapter(folder: Path, base: Located, motion_adapter: str | Path | None, hub: Source) -> tuple[Located | None, int]:
    """The motion adapter of a base, None for one that holds its own, and the positions of its modules."""
    unet, listed = load_json(folder / "unet" / "config.json"), parts.entries(load_json(folder / "model_index.json"))
    entry = listed["unet"]
    if entry is not None and entry.class_name == "UNetMotionModel":
        if motion_adapter is not None:
            raise two_adapters(base.source.source)
        settings, _ = read(UNetMotionConfig, unet)
        check_together(settings, None)
        return None, settings.motion_max_seq_length
    source = replace(hub, source=motion_adapter or PIA_ADAPTER)
    if is_file(source.source):
        path = find_file(source.source, source)
        adapter, _ = read(MotionAdapterConfig, look_for(open_file(path, source), MOTION).config())
        place = Located(source, path, is_file=True)
    else:
        place = Located(source, locate(source, ["config.json"]), is_file=False)
        adapter, _ = read(MotionAdapterConfig, load_json(place.path / "config.json"))
    check_together(read(UNet2DConditionConfig, unet)[0], adapter)
    if not place.is_file and is_local(source):
        check_weights(place.path, source.variant, MODEL)
    return place, adapter.motion_max_seq_length


def _text_layers(config: Mapping[str, Any]) -> int:
    """Layers of a text encoder, whose configuration may lie inside that of a whole CLIP; 12 is the class's default."""
    inner = config.get("text_config")
    return int({**config, **(inner if isinstance(inner, dict) else {})}.get("num_hidden_layers", 12))


def scheduler_of(sampler: str | None, own: Mapping[str, Any] = {}) -> Scheduler:
    """The scheduler of a name of A1111's world over PIA's noise schedule; PIA's preset without one.

    Args:
        sampler: the name.
        own: what the base was trained to predict, see `PREDICTION`.

    Raises:
        InputError: E-SAMPLER.
    """
    preset = DDIMScheduler(**{**SCHEDULER, **own})
    return preset if sampler is None else named(sampler, preset.config)


def _add(pipeline: PIAPipeline, additions: Sequence[Addition]) -> None:
    """Let files change a pipeline."""
    weights: dict[str, float] = {}
    shown = [addition for addition in additions if addition.kind == "ip_adapter"]
    for addition in additions:
        if addition.kind == "lora":
            name = f"lora_{len(weights)}"
            pipeline.load_lora_weights(addition.path, adapter_name=name)
            weights[name] = addition.weight
        elif addition.kind == "embedding":
            pipeline.load_textual_inversion(addition.path, token=addition.token)
    if weights:
        pipeline.set_adapters(list(weights), list(weights.values()))
    if shown:
        pipeline.load_ip_adapter([str(addition.path) for addition in shown], image_encoder_folder=ENCODER)
        pipeline.set_ip_adapter_scale([addition.weight for addition in shown])
