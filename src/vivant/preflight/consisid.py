"""What of ConsisID can be refused before any tensor is read: a repository of something else, parameters, identities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from vivant.config import load_json, read
from vivant.consisid.config import ConsisIDTransformer3DConfig
from vivant.consisid.identity_file import People
from vivant.consisid.keypoints import draw_points
from vivant.consisid.transformer import check_identity
from vivant.errors import InputError, LoadError
from vivant.hub.repo import Source, locate
from vivant.media.still import Still
from vivant.pipelines import components as parts
from vivant.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from vivant.pipelines.declared import check_complete
from vivant.preflight.additions import Addition, Weighted, find_additions
from vivant.preflight.inputs import check_recorded, check_seeds, check_used, drawn_seed
from vivant.preflight.repository import CONSISID, check_files, is_consisid, is_local, origin_of
from vivant.request import ConsisIDRequest, batch_size, texts
from vivant.schedulers import scheduler_class
from vivant.solvers.schedule import Solver
from vivant.vae.video import AutoencoderKLCogVideoXConfig

MODEL_ID = "BestWishYsh/ConsisID-preview"
CLASSES = {
    "text_encoder": ("T5EncoderModel",),
    "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
    "transformer": (CONSISID,),
    "vae": ("AutoencoderKLCogVideoX",),
}


@dataclass(frozen=True)
class Traits:
    """What a request has to agree with.

    Attributes:
        transformer: configuration of the network.
        factor: pixels along one side of a latent.
        solver: what will sample.
    """

    transformer: ConsisIDTransformer3DConfig
    factor: int
    solver: Solver

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that the network was trained on, in pixels."""
        return self.transformer.sample_height * self.factor, self.transformer.sample_width * self.factor


@dataclass(frozen=True)
class Model:
    """A repository of ConsisID, as its small files say.

    Attributes:
        source: where it is.
        folder: the repository, or its snapshot in the hub cache.
        traits: see there.
        additions: LoRA that change the transformer.
    """

    source: Source
    folder: Path
    traits: Traits
    additions: tuple[Addition, ...] = ()

    @classmethod
    def find(
        cls,
        repo: str | Path,
        *,
        loras: Sequence[Weighted] = (),
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Locate it and check it by its small files; of a hub repository only those are fetched, and LoRA whole.

        Arguments are those of `vivant.Portrait.from_pretrained`.

        Raises:
            LoadError: what is missing, unreadable or of another family.
            InputError: E-CONFIG-…, E-SCHEDULER-UNKNOWN, and what `find_additions` refuses.
        """
        place = Source(repo, None, variant, revision, cache_dir, local_files_only, token)
        configs = [f"{name}/config.json" for name in ("transformer", "vae", "text_encoder")]
        folder = locate(place, ["model_index.json", "scheduler/scheduler_config.json", *configs])
        index = parts.read_index(ConsisIDPipeline, folder)
        listed = parts.entries(index)
        _check_family(repo, index, listed)
        # Without those that are listed as None: prompts are texts here, so that the text encoder is needed too.
        check_complete(ConsisIDPipeline, {name: entry for name, entry in listed.items() if entry}, {}, repo)
        for name, allowed in CLASSES.items():
            _check_class(name, listed[name], allowed)
        raw = {name: load_json(folder / name / "config.json") for name in ("transformer", "vae", "text_encoder")}
        transformer, _ = read(ConsisIDTransformer3DConfig, raw["transformer"])
        vae, _ = read(AutoencoderKLCogVideoXConfig, raw["vae"])
        _check_together(repo, transformer, vae, raw["text_encoder"].get("d_model"))
        entry = listed["scheduler"]
        assert entry is not None, "check_complete refuses it"
        config = load_json(folder / "scheduler" / "scheduler_config.json")
        scheduler = scheduler_class(entry.class_name).from_config(config)
        if is_local(place):
            check_files(folder, listed, variant, ("text_encoder", "transformer", "vae"))
        additions = find_additions(loras, (), (), place, ("CogVideoX", "ConsisID"))
        traits = Traits(transformer, 2 ** (len(vae.block_out_channels) - 1), scheduler.solver)
        return cls(place, folder, traits, additions)

    def origins(self) -> dict[str, Any]:
        """Where it comes from, for a recipe."""
        return {
            "model": origin_of(self.source, self.folder),
            "variant": self.source.variant,
            "additions": [addition.to_json() for addition in self.additions],
        }


def _check_family(repo: str | Path, index: Mapping[str, Any], listed: Mapping[str, parts.Entry | None]) -> None:
    """Refuse (E-REPO-FAMILY) another model by its name."""
    if is_consisid(listed):
        return
    entry = listed.get("transformer")
    fix = f"Give a repository of ConsisID, such as {MODEL_ID}."
    if "unet" in listed:
        fix = f"{fix} For pictures with a Stable Diffusion 1.5 model use `vivant animate` or vivant.Animator."
    raise LoadError(
        "E-REPO-FAMILY",
        f"{repo} holds {index.get('_class_name')}{f' with {entry.class_name}' if entry else ''}, not ConsisID.",
        "Portraits are filmed by ConsisID.",
        fix,
    )


def _check_class(name: str, entry: parts.Entry | None, allowed: Sequence[str]) -> None:
    if entry is None or entry.class_name not in allowed:
        found = "None" if entry is None else entry.full_name
        raise LoadError("E-COMPONENT-CLASS", f"{name} is {found}.", f"ConsisID needs {' or '.join(allowed)}.")


def _check_together(
    repo: str | Path,
    transformer: ConsisIDTransformer3DConfig,
    vae: AutoencoderKLCogVideoXConfig,
    text_channels: object,
) -> None:
    """Refuse (E-CONFIG-VALUE) parts that were not made for each other."""
    latents = vae.latent_channels
    if (transformer.in_channels, transformer.out_channels) != (2 * latents, latents):
        raise InputError(
            "E-CONFIG-VALUE",
            f"The transformer of {repo} reads {transformer.in_channels} channels and gives {transformer.out_channels}.",
            f"With an autoencoder of {latents} it reads {2 * latents}, noise and picture, and gives {latents}.",
        )
    if text_channels != transformer.text_embed_dim:
        raise InputError(
            "E-CONFIG-VALUE",
            f"The transformer of {repo} reads text of {transformer.text_embed_dim} channels.",
            f"Its text encoder gives {text_channels!r}.",
        )


def check_film(
    parameters: Mapping[str, Any],
    prompt: Any,
    stills: Sequence[Still],
    people: People | None,
    traits: Traits | None = None,
) -> ConsisIDRequest:
    """The request; with `traits` everything in it is decided: size, length, and seeds that can be repeated.

    Args:
        parameters: fields of `ConsisIDRequest`. Size, length and the tokens of a prompt are the model's own where they
            are not given.
        prompt: its prompt.
        stills: the pictures.
        people: who is in them; None where that is read off the pictures, or not at all.
        traits: of the model, where it is known yet.

    Raises:
        InputError: for every parameter that cannot be honoured, or that would be ignored.
    """
    config = None if traits is None else traits.transformer
    own = {} if config is None else {"num_frames": config.sample_frames}
    if config is not None and config.max_text_seq_length < ConsisIDRequest.max_sequence_length:
        own["max_sequence_length"] = config.max_text_seq_length
    request = ConsisIDRequest.build(**{**own, **parameters, "prompt": prompt})
    batch = batch_size(
        image=len(stills),
        prompt=len(texts(request.prompt)),
        negative_prompt=len(texts(request.negative_prompt)),
        identity=len(stills if people is None else people),
    )
    check_seeds(request, batch * request.num_videos_per_prompt)
    check_recorded(request)
    if traits is None or config is None:
        return request
    check_used(request, traits.solver)
    if request.max_sequence_length > config.max_text_seq_length:
        raise InputError(
            "E-PROMPT-LENGTH",
            f"max_sequence_length is {request.max_sequence_length}.",
            f"The model reads {config.max_text_seq_length} tokens.",
            f"Give {config.max_text_seq_length} or less.",
        )
    traits.solver.schedule(request.num_inference_steps)
    if people is not None:
        check_identity(config, people.face.id_cond, people.face.id_vit_hidden)
    if config.is_kps and people is not None and people.points is not None:
        for i in range(max(len(stills), len(people))):
            draw_points(people.points[i % len(people)].numpy(), *stills[i % len(stills)].image.size)
    height, width = traits.size
    return replace(
        request,
        height=request.height or height,
        width=request.width or width,
        seed=drawn_seed(request.seed),
    )
