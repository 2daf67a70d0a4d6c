"""`Portrait`: one call from a photo of a person and a sentence to a video."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from os import PathLike
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
from vivant.consisid.identity_file import Identities, People, read_people
from vivant.errors import Cancelled, InputError
from vivant.faces.face import Face, average
from vivant.faces.found import Choice
from vivant.media.output import to_bytes
from vivant.media.still import Still
from vivant.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from vivant.placement import Residency
from vivant.preflight.additions import Weighted, load_loras
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
        loras: Sequence[Weighted] = (),
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
            loras: LoRA of CogVideoX or ConsisID, each alone or as a pair with its weight: a path, a folder or hub id
                that holds one, or ``"organisation/name/file.safetensors"``.
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
        model = Model.find(repo, loras=loras, **hub)
        pipeline = ConsisIDPipeline.from_pretrained(repo, dtype=dtype, **hub)
        load_loras(pipeline, model.additions)
        settle(pipeline, device, residency)
        return cls(pipeline, Loaded(model.origins(), reason, time.perf_counter() - start))

    def film(
        self,
        image: Any,
        prompt: str | Sequence[str] = "",
        *,
        identity: Identities | None = None,
        choice: Choice | None = None,
        progress: Callable[[Progress], None] | None = None,
        cancel: Cancel | None = None,
        on_frames: OnFrames | None = None,
        **parameters: Any,
    ) -> Result:
        """Make videos of people.

        Pictures, prompts and identities have length 1 or B; clip ``b * n + k`` is the k-th of the b-th.

        Args:
            image: a photo of the person: path, URL, PIL picture, array or tensor; or a `vivant.faces.face.Face` (see
                `face`), or the path of the file of one; or a list of such. With `identity` the aligned crop of a face.
            prompt: what happens; the model was trained on long descriptions.
            identity: who it is, if that is known: the path of a safetensors file (see `vivant.faces.file`), a
                `vivant.consisid.conditioning.Face`, or a list of such.
            choice: which face of a photo, where there are several; the largest if not given.
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
        pipeline, start = self.pipeline, time.perf_counter()
        with noting(pipeline) as notes:
            stills, people, parameters = self._seen(image, identity, choice, prompt, parameters)
            request = check_film(parameters, prompt, stills, people, self._traits)
            total = len(pipeline.scheduler.solver.schedule(request.num_inference_steps))
            latents = pipeline.denoise(
                request,
                [still.image for still in stills],
                None if people is None else people.face,
                generators(request.seed),
                watching(total, start, pipeline.memory.device, progress, cancel),
                # A file of an identity serves checkpoints that read key points, and others.
                points=people.points if people is not None and pipeline.transformer.settings.is_kps else None,
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
            more={"identity": {"digests": [] if people is None else list(people.digests)}},
            attention=self._attention(latents, request),
        )

    def face(self, photos: Any, choice: Choice = "largest") -> Face:
        """One person, from one photo or several; for any number of videos, and to save.

        Args:
            photos: path, URL, PIL picture, array or tensor, or a list of such; of several photos the identities are
                averaged (see `vivant.faces.face.average`).
            choice: which face of each photo, where there are several.

        Raises:
            InputError, LoadError, MissingPackage: as `ConsisIDPipeline.encode_faces`.
        """
        return average(self.pipeline.encode_faces(photos, choice))

    def _seen(
        self,
        image: Any,
        identity: Identities | None,
        choice: Choice | None,
        prompt: str | Sequence[str],
        parameters: dict[str, Any],
    ) -> tuple[list[Still], People | None, dict[str, Any]]:
        """Pictures and people; faces are looked for in photos only when everything else is known to be right."""
        faces = given_faces(image)
        reads = self.pipeline.transformer.settings.is_train_face
        if choice is not None and (faces or identity is not None or not reads):
            raise InputError("E-FACE-CHOICE", "choice is given, and no face has to be found.", "", "Leave it out.")
        if faces and identity is not None:
            raise InputError("E-ARG-VALUE", "A face holds its identity, and another one is given.", "", "Give one.")
        if identity is not None or not (faces or reads):
            return read_stills(image), None if identity is None else read_people(identity), parameters
        if not faces:
            stills = read_stills(image)
            request = check_film(parameters, prompt, stills, None, self._traits)
            parameters = {name: value for name, value in request.fields().items() if name != "prompt"}
            photos = [still.image for still in stills]
            faces = self.pipeline.encode_faces(photos, "largest" if choice is None else choice)
        return [Still(face.image, face.notes) for face in faces], read_people(faces), parameters

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


def given_faces(image: Any) -> list[Face]:
    """The faces that are given as such, or by the paths of their files; none for pictures.

    Raises:
        InputError: E-IDENTITY-TYPE for faces and pictures in one list, and what `Face.load` raises.
    """
    items: list[Any] = list(image) if isinstance(image, list | tuple) and not isinstance(image, Still) else [image]
    are_faces = [isinstance(item, Face) or is_face_file(item) for item in items]
    if any(are_faces) and not all(are_faces):
        raise InputError("E-IDENTITY-TYPE", "Faces and pictures are in one list.", "", "Give one or the other.")
    return [item if isinstance(item, Face) else Face.load(item) for item in items] if all(are_faces) else []


def is_face_file(item: object) -> bool:
    """Whether it is the path of a saved face."""
    return isinstance(item, str | PathLike) and str(item).lower().endswith(".safetensors")


def _numbered(parts: Iterator[Tensor], num_frames: int) -> Iterator[tuple[int, Frames]]:
    """Parts as bytes, with the number of their clip."""
    done = 0
    for part in parts:
        yield done // num_frames, to_bytes(part).numpy()
        done += len(part)
