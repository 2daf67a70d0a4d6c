"""Recipes: a TOML file says what a run is made of, and `run` makes it.

```toml
[training]           # settings.Settings
steps = 20000
batch = 64
[[data]]             # data.Data; several tables are mixed
kind = "drawn"
[model]              # what is trained, see the class of the kind below
[loss]               # VaeLoss, BaseLoss or PiaLoss
```
Paths are relative to the recipe. A key that nothing reads is refused by name.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vivant.config import dump_json, load_json, read
from vivant.consisid.transformer import Block, ConsisIDTransformer3DModel
from vivant.errors import InputError
from vivant.faces.antelope import RECOGNISER
from vivant.faces.encoders import ANTELOPE, FOLDER, Encoders
from vivant.hub.digest import weights_digest
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNet2DConditionModel
from vivant.text import t5
from vivant.text.clip import load_text_encoder, load_tokenizer
from vivant.train import loop
from vivant.train.affinity import differences, statistics
from vivant.train.base import BaseLoss, BaseTask, Repository
from vivant.train.consisid import ConsisidLoss, ConsisidTask, check_fits, new_transformer, shown_of
from vivant.train.consisid import Repository as PeopleRepository
from vivant.train.data import Data, open_all
from vivant.train.diffusion import Noise
from vivant.train.latents import encode, repeated
from vivant.train.lora import Rank
from vivant.train.people import Seen, encode_people
from vivant.train.pia import PiaLoss, PiaTask, new_adapter
from vivant.train.processes import Processes, joined
from vivant.train.samples import Source, numpy_rng
from vivant.train.settings import Settings
from vivant.train.text import new_t5, new_text_encoder, train_t5_tokenizer, train_tokenizer
from vivant.train.vae import VaeLoss, VaeTask, to_unit
from vivant.train.video_vae import VideoVaeLoss, VideoVaeTask
from vivant.vae.image import AutoencoderKL
from vivant.vae.video import AutoencoderKLCogVideoX

T = TypeVar("T")
KINDS = ("vae", "video-vae", "base", "style", "pia", "consisid")


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is trained, and from what it starts.

    Attributes:
        start: folder to begin with: an autoencoder for `vae`, a repository for `style`, `pia` and `consisid`.
        adapter: for `pia`, motion modules to begin with; new ones if not given.
        vae: for `base` and `consisid`, the folder of its autoencoder.
        config: fields of `config.json` of what is new: the autoencoder, the UNet, the motion adapter, the transformer.
        text: fields of `config.json` of a new text encoder, for `base` and `consisid`.
        rank: for `style`, train a low-rank change of this rank instead of the whole.
        alpha: its scale times its rank.
        faces: for `consisid`, the folder that holds `face_encoder`.
        latents: folder that gets the data set encoded once; without it all but the autoencoders encode at every step.
        often: with `latents`, phrases of captions and how often clips with them count; others count once.
        compiled: for `consisid`, `torch.compile` its blocks; the first step takes a minute longer.
    """

    start: Path | None = None
    adapter: Path | None = None
    vae: Path | None = None
    faces: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    rank: int | None = None
    alpha: float | None = None
    latents: Path | None = None
    often: Mapping[str, int] = field(default_factory=dict)
    compiled: bool = False


@dataclass(frozen=True)
class Shown:
    """What the sheets of samples show.

    Attributes:
        prompts: for `base` and `style`; captions of the data if not given.
        num: how many pictures, clips or captions of the data are shown.
    """

    prompts: tuple[str, ...] = ()
    num: int = 8


@dataclass(frozen=True)
class Recipe:
    """A recipe, read and checked.

    Attributes:
        kind: what is trained.
        settings: numbers of the run.
        data: tables of sources.
        model: see `Model`.
        loss: of the kind.
        shown: see `Shown`.
        text: the file itself, as an object: what a resumed run must agree with.
    """

    kind: str
    settings: Settings
    data: tuple[Data, ...]
    model: Model
    loss: Any
    shown: Shown
    text: dict[str, Any]


def read_recipe(kind: str, path: Path, *, steps: int | None = None) -> Recipe:
    """Read a recipe; `steps` in place of its own number.

    Raises:
        InputError: E-TRAIN-RECIPE, E-CONFIG-UNKNOWN, E-TRAIN-SETTING, naming what is wrong, before anything is loaded.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError("E-TRAIN-RECIPE", f"{path} cannot be read as a recipe: {error}.") from None
    known = {"training", "data", "model", "loss", "samples"}
    if strange := sorted(set(raw) - known):
        raise InputError(
            "E-TRAIN-RECIPE", f"{path} has the table [{strange[0]}].", f"Known are {', '.join(sorted(known))}."
        )
    loss_class = {
        "vae": VaeLoss,
        "video-vae": VideoVaeLoss,
        "base": BaseLoss,
        "style": BaseLoss,
        "pia": PiaLoss,
        "consisid": ConsisidLoss,
    }[kind]
    loss = dict(raw.get("loss", {}))
    if kind == "style":
        loss.setdefault("train_text", False)
    if kind in ("base", "style", "pia"):
        loss["noise"] = _table(Noise, loss.get("noise", {}), path)
    training = {**raw.get("training", {}), **({} if steps is None else {"steps": steps})}
    tables = raw.get("data", [])
    if not isinstance(tables, list) or not tables:
        raise InputError("E-TRAIN-RECIPE", f"{path} names no data.", "", "Add a table [[data]].")
    recipe = Recipe(
        kind,
        _table(Settings, training, path),
        tuple(_table(Data, table, path) for table in tables),
        _table(Model, raw.get("model", {}), path),
        _table(loss_class, loss, path),
        _table(Shown, raw.get("samples", {}), path),
        {"kind": kind, **{name: raw[name] for name in ("data", "model", "loss") if name in raw}},
    )
    return _checked(recipe, path)


def _table(cls: type[T], raw: Any, path: Path) -> T:
    """A table as a value; paths in it become absolute."""
    if not isinstance(raw, dict):
        raise InputError("E-TRAIN-RECIPE", f"{path} has {raw!r} where a table is expected.")
    folders = {f.name for f in fields(cls) if "Path" in str(f.type)}  # pyright: ignore[reportArgumentType]
    values = {k: (path.parent / v).resolve() if k in folders and isinstance(v, str) else v for k, v in raw.items()}
    try:
        return read(cls, values)[0]
    except TypeError as error:
        raise InputError("E-TRAIN-RECIPE", f"{path}, {cls.__name__}: {error}.", "", "See docs/training.md.") from None


_NEEDS = {
    "vae": (),
    "video-vae": (),
    "base": ("vae", "config", "text"),
    "style": ("start",),
    "pia": ("start",),
    "consisid": (),
}
_READS = {
    "vae": {"start", "config"},
    "video-vae": {"start", "config"},
    "base": {"vae", "config", "text", "latents", "often"},
    "style": {"start", "rank", "alpha", "latents", "often"},
    "pia": {"start", "adapter", "config", "latents", "often"},
    "consisid": {"start", "vae", "faces", "config", "text", "latents", "compiled"},
}


def _checked(recipe: Recipe, path: Path) -> Recipe:
    given = {f.name for f in fields(Model) if getattr(recipe.model, f.name)}
    missing = [name for name in _NEEDS[recipe.kind] if name not in given]
    unread = sorted(given - _READS[recipe.kind])
    if missing or unread:
        what = f"lacks {missing[0]}" if missing else f"has {unread[0]}, which {recipe.kind} does not read"
        raise InputError(
            "E-TRAIN-RECIPE", f"[model] of {path} {what}.", "", f"It reads {', '.join(sorted(_READS[recipe.kind]))}."
        )
    if recipe.kind in ("vae", "video-vae") and bool(recipe.model.start) == bool(recipe.model.config):
        raise InputError("E-TRAIN-RECIPE", f"[model] of {path} needs either start or config.")
    if recipe.model.alpha is not None and recipe.model.rank is None:
        raise InputError("E-TRAIN-RECIPE", f"[model] of {path} has alpha and no rank.")
    if recipe.model.often and recipe.model.latents is None:
        raise InputError("E-TRAIN-RECIPE", f"[model] of {path} has often and no latents.")
    if any(not isinstance(num, int) or num < 0 for num in recipe.model.often.values()):
        raise InputError("E-TRAIN-RECIPE", f"[model.often] of {path} has a number that is not 0, 1, 2, ….")
    if recipe.shown.prompts and recipe.kind not in ("base", "style"):
        raise InputError("E-TRAIN-RECIPE", f"[samples] of {path} has prompts, which {recipe.kind} does not read.")
    films = ("video-vae", "pia", "consisid")
    for name in ("size", "num_frames") if recipe.kind in films else ("size",):
        if len({getattr(data, name) for data in recipe.data}) > 1:
            raise InputError("E-TRAIN-RECIPE", f"The tables [[data]] of {path} differ in {name}.")
    if recipe.kind == "consisid":
        _check_people(recipe, path)
    if recipe.kind == "pia":
        recipe.loss.check_window(recipe.data[0].num_frames)
    return recipe


def _check_people(recipe: Recipe, path: Path) -> None:
    """What ConsisID is learnt from, and of what it is made."""
    if other := [data.kind for data in recipe.data if data.kind != "avatars"]:
        raise InputError(
            "E-TRAIN-RECIPE",
            f"{path} names data of the kind {other[0]}, and consisid learns from avatars.",
            "A clip needs its person's face in another picture, and where the face is in every frame.",
            'Set kind = "avatars".',
        )
    new = ("vae", "faces", "config", "text")
    given = [name for name in new if getattr(recipe.model, name)]
    if len(given) != (0 if recipe.model.start else len(new)):
        raise InputError("E-TRAIN-RECIPE", f"[model] of {path} needs either start or {', '.join(new)}.")


def run(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    on_step: Callable[[loop.Progress], None] = lambda at: None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Make the run of a recipe.

    Args:
        recipe: what to do.
        folder: see `loop.train`.
        resume: go on from the newest checkpoint.
        on_step: told after every update.
        say: told in a sentence what is being prepared.

    Returns:
        The folder of what was trained, in its published layout.
    """
    with joined(recipe.settings.device) as processes:
        torch.manual_seed(recipe.settings.seed)  # of new weights; nothing else draws from it
        task, source = _BUILD[recipe.kind](recipe, folder, processes, say)
        return loop.train(
            task,
            source,
            recipe.settings,
            folder,
            recipe=recipe.text,
            resume=resume,
            processes=processes,
            on_step=on_step,
        )


def _vae(recipe: Recipe, folder: Path, processes: Processes, say: Callable[[str], None]) -> tuple[VaeTask, Source]:
    model = recipe.model
    vae = AutoencoderKL.from_pretrained(model.start) if model.start else AutoencoderKL(**model.config)
    source = open_all(recipe.data)
    settings = recipe.settings
    shown = _pictures(source, recipe.shown.num)
    return VaeTask(vae, recipe.loss, shown, gradient_checkpointing=settings.gradient_checkpointing), source


def _video_vae(
    recipe: Recipe, folder: Path, processes: Processes, say: Callable[[str], None]
) -> tuple[VideoVaeTask, Source]:
    model, source = recipe.model, open_all(recipe.data)
    cls = AutoencoderKLCogVideoX
    vae = cls.from_pretrained(model.start) if model.start else cls(**model.config)
    clips = [source.read(i, numpy_rng(1, i)).pixels for i in range(min(recipe.shown.num, len(source)))]
    shown = torch.from_numpy(np.stack(clips))
    checkpointing = recipe.settings.gradient_checkpointing
    return VideoVaeTask(vae, recipe.loss, shown, gradient_checkpointing=checkpointing), source


def _base(recipe: Recipe, folder: Path, processes: Processes, say: Callable[[str], None]) -> tuple[BaseTask, Source]:
    model, source = recipe.model, open_all(recipe.data)
    assert model.vae is not None
    tokens = folder / "tokenizer"
    if not (tokens / "vocab.json").is_file() and processes.leads:
        say("Learning a vocabulary from the captions.")
        captions = (source.read(i, numpy_rng(0, i)).caption for i in range(min(len(source), 5000)))
        train_tokenizer(captions, tokens, model.text.get("vocab_size", 1000))
    processes.wait()
    tokenizer = load_tokenizer(tokens)
    encoder = new_text_encoder(tokenizer, **model.text)
    unet = UNet2DConditionModel(**{"cross_attention_dim": encoder.config.hidden_size, **model.config})
    parts = Repository(AutoencoderKL.from_pretrained(model.vae), encoder, tokenizer, unet)
    return _still_task(recipe, parts, source, processes, say)


def _style(recipe: Recipe, folder: Path, processes: Processes, say: Callable[[str], None]) -> tuple[BaseTask, Source]:
    assert recipe.model.start is not None
    return _still_task(recipe, open_repository(recipe.model.start), open_all(recipe.data), processes, say)


def _still_task(
    recipe: Recipe, parts: Repository, source: Source, processes: Processes, say: Callable[[str], None]
) -> tuple[BaseTask, Source]:
    rank = None if recipe.model.rank is None else Rank(recipe.model.rank, recipe.model.alpha)
    height, width = (side // parts.vae.factor for side in recipe.data[0].size)
    source = _stored(recipe, parts.vae, source, processes, say)
    prompts = recipe.shown.prompts or tuple(source.read(i, numpy_rng(1, i)).caption for i in range(recipe.shown.num))
    checkpointing = recipe.settings.gradient_checkpointing
    task = BaseTask(parts, recipe.loss, prompts, (height, width), rank=rank, gradient_checkpointing=checkpointing)
    return task, source


def _pia(recipe: Recipe, folder: Path, processes: Processes, say: Callable[[str], None]) -> tuple[PiaTask, Source]:
    model, source = recipe.model, open_all(recipe.data)
    assert model.start is not None
    parts = open_repository(model.start)
    if model.adapter:
        adapter = MotionAdapter.from_pretrained(model.adapter)
    else:
        adapter = new_adapter(parts.unet.settings, recipe.settings.seed, **model.config)
    clips = [source.read(i, numpy_rng(1, i)) for i in range(recipe.shown.num)]
    shown = [(to_unit(torch.from_numpy(clip.pixels[:1])), clip.caption) for clip in clips]
    table = _statistics(source, recipe.loss.largest, folder, processes, say)
    source = _stored(recipe, parts.vae, source, processes, say)
    checkpointing, num_frames = recipe.settings.gradient_checkpointing, recipe.loss.window or recipe.data[0].num_frames
    task = PiaTask(
        parts,
        adapter,
        recipe.loss,
        table,
        shown,
        num_frames,
        gradient_checkpointing=checkpointing,
    )
    return task, source


def _consisid(
    recipe: Recipe, folder: Path, processes: Processes, say: Callable[[str], None]
) -> tuple[ConsisidTask, Source]:
    model, source = recipe.model, open_all(recipe.data)
    if model.start:
        parts = open_consisid(model.start)
    else:
        assert model.vae is not None
        assert model.faces is not None
        transformer = new_transformer(**model.config)
        length = transformer.settings.max_text_seq_length
        if not (folder / "tokenizer" / "spiece.model").is_file() and processes.leads:
            say("Learning a vocabulary from the captions.")
            captions = [source.read(i, numpy_rng(3, i)).caption for i in range(min(len(source), CAPTIONS))]
            train_t5_tokenizer(captions, folder / "tokenizer", length)
        processes.wait()
        tokenizer = t5.load_tokenizer(folder / "tokenizer")
        encoders = Encoders.from_pretrained(model.faces, local_files_only=True)
        vae = AutoencoderKLCogVideoX.from_pretrained(model.vae)
        encoder = new_t5(tokenizer, transformer.settings.text_embed_dim, **model.text)
        parts = PeopleRepository(Seen(vae, encoders), encoder, tokenizer, transformer, model.faces)
    shown = [shown_of(parts.seen, source.read(i, numpy_rng(1, i))) for i in range(recipe.shown.num)]
    num_frames, checkpointing = recipe.data[0].num_frames, recipe.settings.gradient_checkpointing
    check_fits(parts, shown_of(parts.seen, source.read(0, numpy_rng(1, 0))).face, recipe.data[0].size, num_frames)
    if model.latents is not None:
        what = {
            "data": recipe.text["data"],
            "vae": weights_digest(parts.seen.vae),
            "faces": weights_digest(parts.seen.encoders.vision),
            "recogniser": sha256((parts.faces / FOLDER / ANTELOPE / RECOGNISER).read_bytes()).hexdigest(),
        }
        if processes.leads:
            say(f"Encoding {len(source)} clips once.")
            encode_people(source, parts.seen, model.latents, what)
        processes.wait()
        source = encode_people(source, parts.seen, model.latents, what)  # finds all files there
    if model.compiled:
        loop.compile_blocks(parts.transformer, (Block,))
    return ConsisidTask(parts, recipe.loss, shown, num_frames, gradient_checkpointing=checkpointing), source


CAPTIONS = 300
"""Captions that a vocabulary is learnt from."""

_BUILD: Mapping[str, Callable[..., tuple[Any, Source]]] = {
    "vae": _vae,
    "video-vae": _video_vae,
    "base": _base,
    "style": _style,
    "pia": _pia,
    "consisid": _consisid,
}

STATISTICS_CLIPS = 2000
"""Clips from which the largest differences of a data set are taken."""


def _statistics(
    source: Source, largest: float, folder: Path, processes: Processes, say: Callable[[str], None]
) -> Float[np.ndarray, "f 2"]:
    """The differences of frames in the data set, computed once for a run and stored beside it."""
    path = folder / "affinity.json"
    if not path.is_file() and processes.leads:
        say("Measuring how much the frames of the data set differ.")
        folder.mkdir(parents=True, exist_ok=True)
        clips = range(min(len(source), STATISTICS_CLIPS))
        table = statistics((differences(source.read(i, numpy_rng(2, i)).pixels) for i in clips), largest)
        dump_json({"low": table[:, 0].tolist(), "high": table[:, 1].tolist(), "clips": len(clips)}, path)
    processes.wait()
    stored = load_json(path)
    return np.array([stored["low"], stored["high"]]).T


def _stored(
    recipe: Recipe, vae: AutoencoderKL, source: Source, processes: Processes, say: Callable[[str], None]
) -> Source:
    """The source encoded once, where the recipe asks for it."""
    if recipe.model.latents is None:
        return source
    what = {"data": recipe.text["data"], "vae": weights_digest(vae)}
    if processes.leads:
        say(f"Encoding {len(source)} clips once.")
        dtype = loop.autocast_dtype(recipe.settings, processes.device)
        encode(source, vae.to(processes.device), recipe.model.latents, what, dtype=dtype)
    processes.wait()
    stored = encode(source, vae, recipe.model.latents, what)  # finds all files there
    return repeated(stored, recipe.model.often) if recipe.model.often else stored


def open_repository(folder: Path) -> Repository:
    """The components of a base in float32."""
    return Repository(
        AutoencoderKL.from_pretrained(folder, subfolder="vae"),
        load_text_encoder(folder / "text_encoder"),
        load_tokenizer(folder / "tokenizer"),
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
    )


def open_consisid(folder: Path) -> PeopleRepository:
    """The components of a ConsisID in float32."""
    transformer = ConsisIDTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    vae = AutoencoderKLCogVideoX.from_pretrained(folder, subfolder="vae")
    seen = Seen(vae.float(), Encoders.from_pretrained(folder, local_files_only=True))
    encoder, tokenizer = t5.load_text_encoder(folder / "text_encoder"), t5.load_tokenizer(folder / "tokenizer")
    return PeopleRepository(seen, encoder.float(), tokenizer, transformer.float(), folder)


def _pictures(source: Source, num: int) -> Float[Tensor, "k 3 h w"]:
    frames = [source.read(i, numpy_rng(1, i)).pixels[0] for i in range(min(num, len(source)))]
    return to_unit(torch.from_numpy(np.stack(frames)))
