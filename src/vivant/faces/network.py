"""What the frozen face networks share: they are built for the tensors of a file, whose sizes name them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from vivant.errors import LoadError
from vivant.hub.load import check_keys, read_file


class Network(nn.Module):
    """A frozen network in one flat file without a configuration."""

    PREFIX = ""
    """What stands before the names in published files; names without it there belong to something else."""

    @classmethod
    def sizes(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments of the constructor, read off the shapes of the tensors."""
        raise NotImplementedError

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Load a published file, safetensors or a pickle of tensors, in the data type that it has.

        Raises:
            LoadError: E-WEIGHTS-BROKEN, E-WEIGHTS-PICKLE, or E-KEYS-MISMATCH for another network.
        """
        return cls.from_state(read_file(Path(path)), origin=str(path))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], origin: str = "") -> Self:
        """Build around `state`; its tensors are not copied.

        Raises:
            LoadError: E-KEYS-MISMATCH.
        """
        state = cls.published_names(state)
        try:
            with torch.device("meta"):
                network = cls(**cls.sizes(state))
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise LoadError(
                "E-KEYS-MISMATCH",
                f"The tensors of {origin or 'the file'} do not fit {cls.__name__}.",
                f"Its sizes cannot be read off: {error}.",
                "Check that this is the right file.",
            ) from None
        check_keys(state, network.state_dict(), owner=cls.__name__, origin=origin)
        network.load_state_dict(state, strict=True, assign=True)
        return network.eval().requires_grad_(False)

    @classmethod
    def published_names(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of this network out of those of a file."""
        if any(name.startswith(cls.PREFIX) for name in state):
            return {name.removeprefix(cls.PREFIX): t for name, t in state.items() if name.startswith(cls.PREFIX)}
        return dict(state)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device


def num_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered parts follow `prefix` in the names, as in ``blocks.0.``, ``blocks.1.``."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    return len(numbers)
