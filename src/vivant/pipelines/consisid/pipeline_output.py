"""The result of `ConsisIDPipeline`, at diffusers' import path."""

from dataclasses import dataclass
from typing import Any


@dataclass
class ConsisIDPipelineOutput:
    """Result of a call.

    Attributes:
        frames: by `output_type`: ``"pil"`` a list of videos, each a list of pictures; ``"np"`` an array `b f h w 3` in
            [0, 1]; ``"pt"`` a tensor `b f 3 h w` in [0, 1]; ``"latent"`` the latents `b f 16 h/8 w/8`, of all frames
            that were made.
    """

    frames: Any

    def __getitem__(self, index: int | slice | str) -> Any:
        return {"frames": self.frames}[index] if isinstance(index, str) else (self.frames,)[index]

    def __iter__(self):
        return iter((self.frames,))

    def to_tuple(self) -> tuple[Any]:
        """The output as `return_dict=False` gives it."""
        return (self.frames,)
