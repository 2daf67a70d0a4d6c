"""A small repository whose tokenizer has no gaps, as real ones, and textual inversions in every published form."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import tiny
import tiny_repo

VECTORS = {"<cat-toy>": 1, "EasyNegative": 3, "wolf": 2}
"""Words that the tests learn, and how many vectors each has."""


def write(folder: Path) -> tuple[Path, Path]:
    """A base and an adapter; the base's vocabulary has a token for every number, which diffusers relies on."""
    base, adapter = tiny_repo.write_base(folder / "base"), tiny_repo.write_adapter(folder / "adapter")
    path = base / "tokenizer" / "vocab.json"
    vocab = json.loads(path.read_text(encoding="utf-8"))
    numbers = set(vocab.values())
    vocab |= {f"filler{i}</w>": i for i in range(tiny.TEXT["vocab_size"]) if i not in numbers}
    path.write_text(json.dumps(vocab), encoding="utf-8")
    return base, adapter


def vectors(name: str, width: int = tiny.TEXT_DIM) -> torch.Tensor:
    """The vectors of a word, `k d`."""
    return tiny.rule(name, (VECTORS.get(name, 1), width)) * 2


def content(form: str, name: str) -> dict[str, Any]:
    """What a file holds."""
    rows = vectors(name)
    match form:
        case "a1111":
            stored = torch.nn.Parameter(rows)
            more = {"step": 500, "sd_checkpoint": "abcd", "sd_checkpoint_name": "model"}
            return {"string_to_token": {"*": 265}, "string_to_param": {"*": stored}, "name": name, **more}
        case "emb_params":
            return {"emb_params": rows}
        case "vector":
            return {name: rows[0]}
        case _:
            return {name: rows}


def save(folder: Path, form: str, name: str, file: str) -> Path:
    """A file of a form: ``a1111``, ``emb_params``, ``vector`` (one axis) or ``diffusers`` (two)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    table = content(form, name)
    save_file({key: value.contiguous() for key, value in table.items()}, path) if path.suffix == ".safetensors" else (
        torch.save(table, path)
    )
    return path
