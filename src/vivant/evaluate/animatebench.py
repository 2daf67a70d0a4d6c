"""AnimateBench, the benchmark of PIA's authors: 7 personalised models x 5 pictures x 3 prompts.

Its layout, as published at huggingface.co/datasets/ymzhang319/AnimateBench: `configs/MODEL.yaml` and
`img/MODEL/1.png … 5.jpg`. The YAML files are read as the original program's example configs are (open-mmlab/PIA,
example/config): `prompts` holds a list of prompts for each picture, `n_prompt` negative prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivant.errors import LoadError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Case:
    """One clip of the benchmark.

    Attributes:
        model: name of the personalised model.
        picture: path of the picture.
        prompt: what is to happen.
        negative: the negative prompt, or None.
        name: of the clip's file, without a suffix: model/picture-number, from 1.
    """

    model: str
    picture: Path
    prompt: str
    negative: str | None
    name: str


def read(folder: Path) -> list[Case]:
    """All cases of a folder in the layout of AnimateBench, in the order of models, pictures and prompts.

    Raises:
        LoadError: E-BENCH.
    """
    configs = sorted((folder / "configs").glob("*.yaml"))
    if not configs:
        raise LoadError("E-BENCH", f"{folder} holds no configs/*.yaml.", "", "Give the folder of AnimateBench.")
    return [case for path in configs for case in _cases(folder, path)]


def _cases(folder: Path, path: Path) -> list[Case]:
    import yaml

    model = path.stem
    try:
        config: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        prompts, negatives = config["prompts"], config.get("n_prompt") or []
    except (AttributeError, KeyError, OSError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LoadError("E-BENCH", f"{path} cannot be read: {type(error).__name__}: {str(error)[:200]}.") from error
    if not isinstance(negatives, list) or not all(isinstance(text, str) for text in negatives):
        raise LoadError(
            "E-BENCH", f"n_prompt of {path} is no list of texts.", "", "Give one for all pictures, or each."
        )
    pictures = _pictures(folder / "img" / model)
    groups = _groups(prompts, len(pictures))
    if groups is None:
        raise LoadError(
            "E-BENCH",
            f"{path} has no list of prompts for each of the {len(pictures)} pictures in {folder / 'img' / model}.",
            "",
            "prompts is a list with one list of texts for each picture, or one for all.",
        )
    return [
        Case(
            model,
            picture,
            prompt,
            negatives[min(i, len(negatives) - 1)] if negatives else None,
            f"{model}/{picture.stem}-{number}",
        )
        for i, (picture, texts) in enumerate(zip(pictures, groups, strict=True))
        for number, prompt in enumerate(texts, 1)
    ]


def _pictures(folder: Path) -> list[Path]:
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if path.suffix.lower() in PICTURES]


def _groups(prompts: Any, num: int) -> Sequence[Sequence[str]] | None:
    """The prompts of each picture; None where they do not fit."""
    if not isinstance(prompts, list) or not prompts or not num:
        return None
    groups: list[Any] = prompts if all(isinstance(group, list) for group in prompts) else [prompts]
    groups = groups * num if len(groups) == 1 else groups
    texts = all(isinstance(group, list) and group and all(isinstance(t, str) for t in group) for group in groups)
    return groups if len(groups) == num and texts else None
