"""`Portrait`: one call from a face, its identity and a sentence to a video."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from vivant import placement
from vivant.api.result import Progress, Result
from vivant.api.running import Cancel, Digests, Loaded, finished, generators, noting, place, settle, watching
from vivant.consisid.decode import decode
from vivant.consisid.identity_file import Identities, read_people
from vivant.errors import Cancelled
from vivant.media.output import to_bytes
from vivant.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from vivant.placement import Residency
from vivant.preflight.consisid import Model, Traits, check_film
from vivant.preflight.inputs import read_stills
from vivant.request import ConsisIDRequest

Frames = UInt8[np.ndarray, "k h w 3"]
OnFrames = Callable[[int, Frames], None]


class Portrait:
    """Films people with ConsisID: the corrected behaviour, and the scheduler of the repository."""

    def __init__(self, pipeline: ConsisIDPipeline, loaded: Loaded):
        self.pipeline = pipeline
        self._loaded = loaded
        self._digests = Digests()

    @classmethod
    def from_pretrained(
        cls,
        repo: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | None = None,
        residency: Residency = "resident",
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Load a model.

        Args:
            repo: folder or hub id of a repository of ConsisID, such as BestWishYsh/ConsisID-preview.
            dtype: data type of the weights; by default bfloat16 where the processor has it natively.
            device: where to compute; the best accelerator if not given.
            residency: what stays there: ``"resident"`` all, ``"component"`` the network in use, ``"layer"`` one layer
                and the next; on the CPU the rest is given back to its files. The result is the same.
            variant: file variant, such as ``"fp16"``; what lacks it is read in its plain weights, with a note.
            revision: branch, tag or commit.
            cache_dir: hub cache.
            local_files_only: never touch the network.
            token: hub token.

        Raises:
            LoadError: what is missing, unreadable or of another family; most of it before any tensor is read.
            InputError: E-RESIDENCY, E-DEVICE, E-DTYPE, and configurations that are not implemented.
        """
        start = time.perf_counter()
        placement.check_residency(residency)
        device, dtype, reason = place(device, dtype)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        hub |= {"variant": variant, "revision": revision}
        model = Model.find(repo, **hub)
        pipeline = ConsisIDPipeline.from_pretrained(repo, dtype=dtype, **hub)
        settle(pipeline, device, residency)
        return cls(pipeline, Loaded(model.origins(), reason, time.perf_counter() - start))

    def film(
        self,
        image: Any,
        prompt: str | Sequence[str] = "",
        *,
        identity: Identities,
        progress: Callable[[Progress], None] | None = None,
        cancel: Cancel | None = None,
        on_frames: OnFrames | None = None,
        **parameters: Any,
    ) -> Result:
        """Make videos of people.

        Pictures, prompts and identities have length 1 or B; clip ``b * n + k`` is the k-th of the b-th.

        Args:
            image: aligned crop of a face: path, URL, PIL picture, array or tensor, or a list of such.
            prompt: what happens; the model was trained on long descriptions.
            identity: who it is: the path of a safetensors file (see `vivant.consisid.identity_file`), a
                `vivant.consisid.conditioning.Face`, or a list of such.
            progress: called after every step.
            cancel: asked after every step and every part of the decoding; True stops the run with `Cancelled`.
            on_frames: called with the number of a clip and its next frames, as soon as they are decoded. What is
                wrong with a clip as a whole is known only at its end.
            parameters: the other fields of `vivant.request.ConsisIDRequest`. Size, length and the tokens of a prompt
                default to the model's own.

        Raises:
            InputError: for every parameter, picture or identity that cannot be honoured, before anything is computed.
            OutputError: E-OUTPUT-NAN.
            Cancelled: E-CANCELLED.
        """
        stills, people = read_stills(image), read_people(identity)
        request = check_film(parameters, prompt, stills, people, self._traits)
        pipeline, start = self.pipeline, time.perf_counter()
        total = len(pipeline.scheduler.solver.schedule(request.num_inference_steps))
        on_step = watching(total, start, pipeline.memory.device, progress, cancel)
        with noting(pipeline) as notes:
            latents = pipeline.denoise(
                request,
                [still.image for still in stills],
                people.face,
                generators(request.seed),
                on_step,
                # A file of an identity serves checkpoints that read key points, and others.
                points=people.points if pipeline.transformer.settings.is_kps else None,
            )
        middle = time.perf_counter()
        clips = self._decoded(latents, request.num_frames, cancel, on_frames)
        seconds = {"denoise": middle - start, "decode": time.perf_counter() - middle}
        return finished(
            pipeline,
            self._loaded,
            "consisid",
            request,
            stills,
            clips,
            models={"weights": self.weights()},
            seconds=seconds,
            notes=notes,
            more={"identity": {"digests": list(people.digests)}},
            attention=self._attention(latents, request),
        )

    def weights(self) -> dict[str, str]:
        """Content hashes of the networks; each is hashed once, at the first call that needs it."""
        return self._digests.of(self.pipeline, ("transformer", "vae", "text_encoder"))

    def _attention(self, latents: Tensor, request: ConsisIDRequest) -> str:
        """The kernel that a step of this run computed attention by."""
        batch, num_frames, _, height, width = latents.shape
        config = self.pipeline.transformer.settings
        num_tokens = request.max_sequence_length + num_frames * height * width // config.patch_size**2
        return self.pipeline.transformer.attention_kernel(2 * batch if request.needs_negative else batch, num_tokens)

    @property
    def _traits(self) -> Traits:
        pipeline = self.pipeline
        return Traits(pipeline.transformer.settings, pipeline.vae.factor, pipeline.scheduler.solver)

    @torch.no_grad()
    def _decoded(
        self, latents: Tensor, num_frames: int, cancel: Cancel | None, on_frames: OnFrames | None
    ) -> tuple[UInt8[np.ndarray, "f h w 3"], ...]:
        """All frames; each part is handed on when it is ready."""
        clips: list[np.ndarray] = []
        with placement.active(self.pipeline.vae, self.pipeline.memory) as vae:
            for clip, parts in groupby(_numbered(decode(vae, latents, num_frames), num_frames), lambda part: part[0]):
                held: list[np.ndarray] = []
                for _, frames in parts:
                    if cancel is not None and cancel():
                        raise Cancelled("E-CANCELLED", f"Stopped while clip {clip} was decoded.", "The caller asked.")
                    held.append(frames)
                    if on_frames is not None:
                        on_frames(clip, frames)
                clips.append(np.concatenate(held))
        return tuple(clips)


def _numbered(parts: Iterator[Tensor], num_frames: int) -> Iterator[tuple[int, Frames]]:
    """Parts as bytes, with the number of their clip."""
    done = 0
    for part in parts:
        yield done // num_frames, to_bytes(part).numpy()
        done += len(part)
