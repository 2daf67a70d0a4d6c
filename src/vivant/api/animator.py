"""`Animator`: one call from a picture to a clip."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from einops import rearrange

from vivant import placement
from vivant.api.result import Progress, Result
from vivant.api.running import Cancel, Digests, Loaded, finished, generators, noting, place, settle, watching
from vivant.media.output import to_bytes
from vivant.pia.compile import compile_unet
from vivant.pia.config import Numerics, check_numerics
from vivant.pia.decode import decode
from vivant.pia.generate import schedules, timesteps
from vivant.pipelines.pia import PIAPipeline
from vivant.pipelines.picture_prompts import Shown
from vivant.placement import Residency
from vivant.preflight.additions import Embedding, Weighted
from vivant.preflight.inputs import read_keyframes, read_stills
from vivant.preflight.models import Limits, Models
from vivant.preflight.pia import check_request, describe_windows


class Animator:
    """Animates pictures with one base model and PIA. Numerics are the original's, the scheduler is PIA's preset.

    Attributes:
        pipeline: what computes.
        compiled: whether its network is.
        defaults: fields of a request where `animate` is not told and this model wants others than `PIARequest` has.
    """

    def __init__(self, pipeline: PIAPipeline, loaded: Loaded, compiled: bool, defaults: Mapping[str, Any]):
        self.pipeline = pipeline
        self.compiled = compiled
        self.defaults = defaults
        self._loaded = loaded
        self._digests = Digests()

    @classmethod
    def from_pretrained(
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
        numerics: Numerics = "original",
        dtype: torch.dtype | None = None,
        device: str | None = None,
        residency: Residency = "resident",
        compile: bool = False,
        variant: str | None = None,
        revision: str | None = None,
        adapter_revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Load a base model and the motion adapter.

        Args:
            base: folder or hub id of a Stable Diffusion 1.5 repository, or one file of a whole model, on disk or as
                ``"organisation/name/file.safetensors"``.
            motion_adapter: folder, hub id or file (such as ``pia.ckpt``) of PIA's motion adapter;
                openmmlab/PIA-condition-adapter if not given, unless `base` holds motion modules itself (as
                `PIAPipeline.save_pretrained` writes it).
            config: repository whose configurations and tokenizer a base in one file has, if it is not plain Stable
                Diffusion 1.5.
            vae: file, folder or hub id of a VAE in place of the base's.
            loras: LoRA files, each alone or as a pair with its weight: a path, a folder or hub id that holds one, or
                ``"organisation/name/file.safetensors"``.
            embeddings: textual inversions, likewise, each alone or as a pair with the word that prompts call it by.
            ip_adapters: IP-Adapters, likewise, each alone or as a pair with its weight; the folder `image_encoder` lies
                beside the file. `animate` is then given a picture prompt for each.
            sampler: a name such as ``"DPM++ 2M Karras"``, see `vivant.schedulers.names`. If not given, that which a
                LoRA for few steps was distilled for, and its steps and guidance are then the defaults of `animate`;
                otherwise PIA's preset of DDIM.
            numerics: ``"original"``, what the weights were trained with, or ``"diffusers"``.
            dtype: data type of the weights; by default bfloat16 where the processor has it natively.
            device: where to compute; the best accelerator if not given.
            residency: what stays there: ``"resident"`` all, ``"component"`` the network in use, ``"layer"`` one layer
                and the next; on the CPU the rest is given back to its files. The result is the same.
            compile: compile the network; the first step takes minutes, every further one is faster.
            variant: file variant of both, such as ``"fp16"``; what lacks it is read in its plain weights, with a note.
            revision: branch, tag or commit of the base.
            adapter_revision: branch, tag or commit of the adapter.
            cache_dir: hub cache.
            local_files_only: never touch the network.
            token: hub token.

        Raises:
            LoadError: what is missing, unreadable or of another family; most of it before any tensor is read.
            InputError: E-RESIDENCY, E-DEVICE, E-DTYPE, E-NUMERICS, and models that do not go together.
        """
        start = time.perf_counter()
        check_numerics(numerics)
        placement.check_residency(residency, compile)
        device, dtype, reason = place(device, dtype)
        hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        hub["variant"] = variant
        hub["revision"] = revision
        models = Models.find(
            base,
            motion_adapter,
            config=config,
            vae=vae,
            loras=loras,
            embeddings=embeddings,
            ip_adapters=ip_adapters,
            sampler=sampler,
            adapter_revision=adapter_revision,
            **hub,
        )
        pipeline = models.read(dtype, numerics=numerics)
        settle(pipeline, device, residency)
        if compile:
            compile_unet(pipeline.unet)
        loaded = Loaded(models.origins(), reason, time.perf_counter() - start)
        return cls(pipeline, loaded, compile, models.defaults)

    def animate(
        self,
        image: Any,
        prompt: str | Sequence[str] = "",
        *,
        keyframes: Mapping[int, Any] | None = None,
        picture_prompts: Sequence[Any] = (),
        progress: Callable[[Progress], None] | None = None,
        cancel: Cancel | None = None,
        **parameters: Any,
    ) -> Result:
        """Make clips that start from `image`.

        Args:
            image: path, URL, PIL picture, array or tensor, or a list of such.
            prompt: what happens.
            keyframes: pictures at further frames, ``{24: picture}``; `image` is the one at `cond_frame`. Every frame
                sees the nearest of them.
            picture_prompts: a picture for each IP-Adapter, in their order: what the clip takes up of subject or style.
            progress: called after every step.
            cancel: asked after every step; True stops the run with `Cancelled`, and nothing is decoded.
            parameters: the other fields of `vivant.request.PIARequest`. The negative prompt defaults to PIA's own
                where guidance reads one, the size to that of the picture with its longer side at most 512. A clip that
                is longer than the motion modules' positions is made in windows, unless ``windows=None`` is given.

        Raises:
            InputError: for every parameter or picture that cannot be honoured, before anything is computed.
            OutputError: E-OUTPUT-NAN.
            Cancelled: E-CANCELLED.
        """
        stills, further = read_stills(image), read_keyframes(keyframes)
        prompts = read_stills(picture_prompts) if picture_prompts else []
        solver = self.pipeline.scheduler.solver
        request = check_request(
            parameters, prompt, stills, solver, self._limits, defaults=self.defaults, keyframes=further
        )
        total = len(timesteps(schedules(solver, request)))
        pipeline, start = self.pipeline, time.perf_counter()
        on_step = watching(total, start, pipeline.memory.device, progress, cancel)
        pictures = {frame: [still.image for still in group] for frame, group in further.items()}
        with noting(pipeline) as notes:
            pipeline.notes += [note for note in [describe_windows(request)] if note]
            latents = pipeline.denoise(
                request,
                [still.image for still in stills],
                generators(request.seed),
                on_step,
                shown=Shown([still.image for still in prompts] or None),
                keyframes=pictures,
            )
        middle = time.perf_counter()
        with placement.active(pipeline.vae, pipeline.memory) as vae:
            frames = torch.cat([to_bytes(part) for part in decode(vae, latents)])
        clips = tuple(rearrange(frames, "(b f) h w c -> b f h w c", f=request.num_frames).numpy())
        seconds = {"denoise": middle - start, "decode": time.perf_counter() - middle}
        models = {"weights": self.weights(), "numerics": pipeline.numerics, "compiled": self.compiled}
        return finished(
            pipeline,
            self._loaded,
            "pia",
            request,
            stills,
            clips,
            models=models,
            seconds=seconds,
            notes=notes,
            keyframes=list(further.values()),
            picture_prompts=prompts,
        )

    @property
    def _limits(self) -> Limits:
        encoder: Any = self.pipeline.text_encoder
        return Limits(self.pipeline.unet.settings.motion_max_seq_length, encoder.config.num_hidden_layers)

    def weights(self) -> dict[str, str]:
        """Content hashes of the networks; each is hashed once, at the first call that needs it."""
        seen = ("image_encoder",) if self.pipeline.image_encoder is not None else ()
        return self._digests.of(self.pipeline, ("unet", "vae", "text_encoder", *seen))
