"""What can be said of any clip that was made of a picture, whoever made it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from vivant.evaluate.flow import consistency, measure, psnr

Picture = UInt8[np.ndarray, "h w 3"]
Frames = UInt8[np.ndarray, "f h w 3"]


@dataclass(frozen=True)
class Measures:
    """Exact definitions; all PSNR are of bytes, over all pixels and colours, and at most 58.9 dB.

    Attributes:
        fidelity: dB of the frame that is the picture against the picture.
        similarity: dB of every frame against the picture, mean over the frames.
        motion: how far the mean pixel goes, in the picture's shorter sides (`flow.Motion.way`).
        consistency: dB of every frame against the one before carried along by the flow (`flow.consistency`).
        closure: dB of the last frame against the first: how well it closes as a loop.
    """

    fidelity: float
    similarity: float
    motion: float
    consistency: float
    closure: float

    @classmethod
    def of(cls, frames: Frames, picture: Picture, cond_frame: int = 0) -> "Measures":
        """Measure a clip.

        Args:
            frames: the clip.
            picture: what it was made of, brought to its size.
            cond_frame: the frame that is the picture.

        Raises:
            MissingPackage: E-EXTRA-EVAL without OpenCV.
        """
        return cls(
            fidelity=psnr(frames[cond_frame], picture),
            similarity=float(np.mean([psnr(frame, picture) for frame in frames])),
            motion=measure(frames, "all").way,
            consistency=consistency(frames),
            closure=psnr(frames[-1], frames[0]),
        )


UNITS = {"fidelity": "dB", "similarity": "dB", "motion": "sides", "consistency": "dB", "closure": "dB"}
