"""`ConsisIDPipeline` with diffusers' names: keyword arguments to a request, the run, and its output."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Generator, Tensor, no_grad
from torch import device as Device
from torch import dtype as Dtype
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from vivant.consisid.conditioning import Face, Guidance
from vivant.consisid.decode import decode
from vivant.consisid.generate import Compat, Given, Parts, generate, num_generated
from vivant.consisid.identity_file import read_people
from vivant.consisid.keypoints import draw_points, read_points
from vivant.consisid.transformer import ConsisIDTransformer3DModel, check_identity
from vivant.denoise import OnStep, State, check_latents, keep
from vivant.errors import InputError, warn
from vivant.faces.encoders import Encoders
from vivant.faces.face import Face as SeenFace
from vivant.faces.found import Choice
from vivant.media.output import OutputType, check_finite, check_output_type, collect
from vivant.media.pictures import listed, num_pictures, picture_sizes, pictures
from vivant.media.still import read_still
from vivant.pipelines import lora
from vivant.pipelines.base import DiffusionPipeline
from vivant.pipelines.consisid.pipeline_output import ConsisIDPipelineOutput
from vivant.pipelines.steering import TENSORS, Callback, callback_names, called_back
from vivant.placement import active
from vivant.prompts import Prompts, broadcast, check_embeds, check_prompts
from vivant.request import ConsisIDRequest, batch_size, texts
from vivant.rng import Rng
from vivant.schedulers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, Scheduler
from vivant.text import t5
from vivant.vae.video import AutoencoderKLCogVideoX

PORTED = (CogVideoXDDIMScheduler, CogVideoXDPMScheduler)
"""Schedulers that can compute as diffusers does."""


class ConsisIDPipeline(DiffusionPipeline):
    """Film a person: from the aligned picture of a face, its identity and a sentence to a video.

    Args:
        tokenizer: T5's tokenizer; None if all prompts come as embeddings.
        text_encoder: its encoder; None likewise.
        vae: video autoencoder.
        transformer: the network.
        scheduler: any scheduler of vivant or diffusers.
        compat: None, or ``"diffusers"`` for its sampler, dynamic guidance, and state in the network's data type; each
            is a row in docs/differences.md.
    """

    _callback_tensor_inputs: ClassVar = TENSORS
    _lora_loadable_modules: ClassVar = ("transformer",)
    _lora_families: ClassVar = ("CogVideoX", "ConsisID")

    tokenizer: PreTrainedTokenizerBase | None
    text_encoder: T5EncoderModel | None
    vae: AutoencoderKLCogVideoX
    transformer: ConsisIDTransformer3DModel
    scheduler: Scheduler

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: T5EncoderModel | None,
        vae: AutoencoderKLCogVideoX,
        transformer: ConsisIDTransformer3DModel,
        scheduler: Scheduler,
        *,
        compat: Compat = None,
    ):
        if compat not in (None, "diffusers"):
            raise InputError("E-COMPAT", f"compat is {compat!r}.", "", 'Give None or "diffusers".')
        self._compat: Compat = compat
        super().__init__(
            tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
        )
        self._guidance_scale, self._num_timesteps = 6.0, 0
        self._attention_kwargs: dict[str, Any] | None = None
        self._empty: t5.Empty | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """With `compat` every scheduler that can compute as diffusers does so, whenever it is set."""
        if name == "scheduler" and self._compat and isinstance(value := self._checked(name, value), PORTED):
            value = type(value).from_config(value.config, compat=self._compat)
        super().__setattr__(name, value)

    # ------------------------------------------------------------------------------------- state of a run

    @property
    def compat(self) -> Compat:
        """See the class."""
        return self._compat

    @property
    def vae_scale_factor_spatial(self) -> int:
        """Pixels per latent, along one side."""
        return self.vae.factor

    @property
    def vae_scale_factor_temporal(self) -> int:
        """Frames per latent frame, the first apart."""
        return self.vae.settings.temporal_compression_ratio

    @property
    def guidance_scale(self) -> float:
        """Guidance of the current or last run."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the network runs for the negative prompt too."""
        return self._guidance_scale > 1

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """As given to the current or last run."""
        return self._attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the current or last run."""
        return self._num_timesteps

    # --------------------------------------------------------------------------------------------- prompts

    @no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        max_sequence_length: int = 226,
        device: Device | str | None = None,
        dtype: Dtype | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embed prompts by T5.

        Args:
            prompt: one or several; or give `prompt_embeds`.
            negative_prompt: one for all or one for each; the empty prompt if not given.
            do_classifier_free_guidance: embed the negative prompt too.
            num_videos_per_prompt: rows for each prompt.
            prompt_embeds: ready embeddings `b m d`, in place of `prompt`.
            negative_prompt_embeds: the same for the negative prompt.
            max_sequence_length: m, in tokens.
            device: where to return the embeddings.
            dtype: in which data type; that of the text encoder if not given.

        Returns:
            Positive and negative embeddings, `(b n) m d`; negative is None without guidance.

        Raises:
            InputError: E-PROMPT-… for prompts that are missing, given twice, or of the wrong type or shape, E-BATCH,
                E-TEXT-ENCODER.
        """
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        channels = self.transformer.settings.text_embed_dim
        check_embeds(prompt_embeds, negative_prompt_embeds, channels)
        wanted = texts(prompt) if prompt_embeds is None else []
        unwanted = texts(negative_prompt) if do_classifier_free_guidance and negative_prompt_embeds is None else []
        encoded = self._encoded([*wanted, *unwanted], max_sequence_length) if wanted or unwanted else None
        positive = prompt_embeds if encoded is None or not wanted else encoded[: len(wanted)]
        negative = negative_prompt_embeds if encoded is None or not unwanted else encoded[len(wanted) :]
        assert positive is not None, "check_prompts refuses a missing prompt"
        place = device or self._execution_device, dtype or (self.text_encoder or self.transformer).dtype
        if not do_classifier_free_guidance or negative is None:
            return broadcast(positive.to(*place), len(positive), num_videos_per_prompt), None
        check_embeds(positive, negative, channels)
        batch = batch_size(prompt=len(positive), negative_prompt=len(negative))
        positive, negative = (broadcast(rows.to(*place), batch, num_videos_per_prompt) for rows in (positive, negative))
        return positive, negative

    # --------------------------------------------------------------------------------------------------- faces

    def encode_faces(self, photos: Any, choice: Choice = "largest") -> list[SeenFace]:
        """What this pipeline reads of the faces in photos, one person each.

        The encoders of the repository that this pipeline was loaded from are read for it and let go of again; keep the
        result for further videos of the same people.

        Args:
            photos: one or several, see `vivant.media.still.read_still`.
            choice: which face of a photo, where there are several.

        Raises:
            InputError: E-IDENTITY-NONE for a pipeline that was not loaded from a repository, E-FACE-…, E-IMAGE-….
            LoadError, MissingPackage: as `vivant.faces.encoders.Encoders.from_pretrained`.
        """
        stills = [read_still(photo) for photo in listed(photos)]
        if self.source is None:
            raise InputError(
                "E-IDENTITY-NONE",
                "This model needs an identity, and this pipeline has no repository to read the face encoders from.",
                "It was put together from components.",
                "Give id_cond and id_vit_hidden, as process_face_embeddings_infer returns them.",
            )
        encoders = Encoders.from_source(self.source, device=self.memory.device)
        faces = [encoders.encode(still.image, choice) for still in stills]
        for note in dict.fromkeys(note for face in faces for note in face.notes):
            self._note(note)
        return faces

    def _encoded(self, prompts: Sequence[str], length: int) -> Tensor:
        """Embeddings of prompts by one call; the empty prompt is embedded once in the life of this pipeline.

        It is always embedded by itself, so that the result does not depend on what was embedded before.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise InputError(
                "E-TEXT-ENCODER",
                "A prompt has to be embedded, and this pipeline has no text encoder or no tokenizer.",
                "",
                "Give prompt_embeds, and with guidance negative_prompt_embeds too; or load the pipeline with both.",
            )
        with active(self.text_encoder, self.memory) as encoder:
            embeds, notes, self._empty = t5.encode_once(self.tokenizer, encoder, prompts, length, self._empty)
        for note in notes:
            self._note(note)
        return embeds

    # ------------------------------------------------------------------------------------------------ run

    @no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = 49,
        num_inference_steps: int = 50,
        guidance_scale: float = 6.0,
        use_dynamic_cfg: bool = False,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | Sequence[Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 226,
        id_vit_hidden: Sequence[Tensor] | None = None,
        id_cond: Tensor | None = None,
        kps_cond: Any = None,
    ) -> ConsisIDPipelineOutput | tuple[Any]:
        """Film people. Pictures, prompts and identities have length 1 or B; video ``b * n + k`` is k-th of the b-th.

        Args:
            image: aligned crops of faces: paths, PIL pictures, arrays or tensors, see `vivant.media.pictures`; they
                are stretched to the size of the video, as in the training. Without `id_cond` and `id_vit_hidden`, for
                a model that reads them, photos: see `encode_faces`.
            prompt: one or several; or give `prompt_embeds`.
            negative_prompt: what to avoid. Without guidance it is not read, which a warning says once.
            height: in pixels, a multiple of 16; 480 for published checkpoints if not given.
            width: likewise, 720.
            num_frames: length of the videos; any number, 49 is that of the training.
            num_inference_steps: denoising steps.
            guidance_scale: strength of the prompt; guidance is on above 1.
            use_dynamic_cfg: let guidance fall over the run, from 1 + guidance_scale to 1.
            num_videos_per_prompt: n videos for each prompt.
            eta: share of fresh noise in DDIM; other solvers do not have it, which a warning says once.
            generator: one for the whole batch, or one for each of the B n videos.
            latents: initial noise `(B n) f 16 h/8 w/8`, standard normal, for the frames that are made
                (see `vivant.consisid.generate.num_generated`).
            prompt_embeds: ready embeddings `B m d`.
            negative_prompt_embeds: likewise.
            output_type: see `ConsisIDPipelineOutput`.
            return_dict: return `ConsisIDPipelineOutput`; otherwise a tuple of its field.
            attention_kwargs: ``{"scale": s}`` multiplies the strength of LoRA in this call, fused one apart.
            callback_on_step_end: called after every step with this pipeline, the step, the timestep and the tensors
                asked for; what it returns replaces them. Raise to cancel.
            callback_on_step_end_tensor_inputs: names out of `_callback_tensor_inputs`.
            max_sequence_length: tokens of a prompt that are read.
            id_vit_hidden: hidden states of the face's vision transformer, five of `p 577 1024`.
            id_cond: identities, `p 1280`.
            kps_cond: five key points of each face, in pixels of `image`; read by checkpoints with `is_kps` only.

        Raises:
            InputError: for every argument that cannot be honoured, before anything is computed.
            OutputError: E-OUTPUT-NAN.
        """
        check_output_type(output_type)
        names = callback_names(callback_on_step_end, callback_on_step_end_tensor_inputs)
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        scale = lora.scale_of("attention_kwargs", attention_kwargs)
        lora.note_scale(self, scale)
        request = ConsisIDRequest(
            prompt=tuple(texts(prompt)),
            negative_prompt=None if negative_prompt is None else tuple(texts(negative_prompt)),
            num_frames=self.transformer.settings.sample_frames if num_frames is None else num_frames,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            use_dynamic_cfg=use_dynamic_cfg,
            eta=self._usable_eta(eta),
            max_sequence_length=max_sequence_length,
            num_videos_per_prompt=num_videos_per_prompt,
        )
        self._guidance_scale, self._attention_kwargs = guidance_scale, attention_kwargs
        self.scheduler.set_timesteps(num_inference_steps)
        steps = self.scheduler.timesteps
        self._num_timesteps = len(steps)
        face = None if id_cond is None and id_vit_hidden is None else self._face(id_cond, id_vit_hidden)
        if face is None and self.transformer.settings.is_train_face:
            if kps_cond is not None:
                raise InputError(
                    "E-KEY-POINTS",
                    "kps_cond is given without an identity.",
                    "The face is cropped out of the photo first, and its key points with it.",
                    "Leave kps_cond out, or give id_cond and id_vit_hidden too.",
                )
            seen = self.encode_faces(image)
            people = read_people(seen)
            image, face = [one.image for one in seen], people.face
            kps_cond = people.points if self.transformer.settings.is_kps else None
        with self.progress_bar(total=len(steps)) as bar, lora.at_scale(self, scale):

            def on_step(state: State) -> State:
                if callback_on_step_end is not None:
                    state = self._called_back(callback_on_step_end, names, state, steps[state.i])
                bar.update()
                return state

            made = self.denoise(
                request, image, face, generator, on_step, latents, prompt_embeds, negative_prompt_embeds, kps_cond
            )
        frames = self._output(made, request.num_frames, output_type)
        self.maybe_free_model_hooks()
        return ConsisIDPipelineOutput(frames) if return_dict else (frames,)

    @no_grad()
    def denoise(
        self,
        request: ConsisIDRequest,
        image: Any,
        face: Face | None,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: OnStep = keep,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        points: Any = None,
    ) -> Tensor:
        """The latents `(B n) f 16 h/8 w/8` of a request, of all frames that are made; what `__call__` decodes.

        Args:
            request: what is asked for.
            image: aligned crops of faces.
            face: their identities; None for a network that reads none.
            generator: source of the noise.
            on_step: called after every step with the state, see `vivant.denoise`; raising cancels.
            latents: initial noise in place of the draw.
            prompt_embeds: embeddings in place of the request's prompts.
            negative_prompt_embeds: the same for its negative prompts.
            points: key points of the faces, in pixels of their pictures.
        """
        config = self.transformer.settings
        prompts, negatives = texts(request.prompt), texts(request.negative_prompt)
        check_embeds(prompt_embeds, negative_prompt_embeds, config.text_embed_dim)
        check_identity(config, None if face is None else face.id_cond, None if face is None else face.id_vit_hidden)
        marks = None if points is None or not config.is_kps else read_points(points)
        num_negatives = len(negatives if negative_prompt_embeds is None else negative_prompt_embeds)
        batch = batch_size(
            image=num_pictures(image),
            prompt=len(prompts if prompt_embeds is None else prompt_embeds),
            **({"negative_prompt": num_negatives} if request.needs_negative else {}),
            **({} if face is None else {"id_cond": len(face.id_cond)}),
            **({} if marks is None else {"kps_cond": len(marks)}),
        )
        num = request.num_videos_per_prompt
        rng = Rng.of(generator, batch * num)
        sides = zip((request.height, request.width), (config.sample_height, config.sample_width), strict=True)
        height, width = (cells * self.vae.factor if side is None else side for side, cells in sides)
        if latents is not None:
            num_latents = (num_generated(request.num_frames) - 1) // self.vae_scale_factor_temporal + 1
            cells = (side // self.vae.factor for side in (height, width))
            check_latents(latents, (batch * num, num_latents, config.out_channels, *cells))
        pixels = pictures(image, height, width, "stretch")
        self._say_what_is_odd(request, height, width, points, negatives, negative_prompt_embeds)
        drawn = None if marks is None else self._drawn(image, marks, height, width)
        memory = self._prepare_run()

        positive, negative = self.encode_prompt(
            prompts if prompt_embeds is None else None,
            negative_prompt=negatives if negative_prompt_embeds is None else None,
            do_classifier_free_guidance=request.needs_negative,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            max_sequence_length=request.max_sequence_length,
        )
        encoded = Prompts(
            broadcast(positive, batch, num), None if negative is None else broadcast(negative, batch, num)
        )
        parts = Parts(self.vae, self.transformer, self.scheduler.solver, memory, self.compat)
        return generate(parts, request, Given(pixels, encoded, face, drawn, latents), rng, on_step)

    def _say_what_is_odd(
        self,
        request: ConsisIDRequest,
        height: int,
        width: int,
        points: Any,
        negatives: Sequence[str],
        negative_embeds: Tensor | None,
    ) -> None:
        config = self.transformer.settings
        if not request.needs_negative and (any(negatives) or negative_embeds is not None):
            self._say("W-NEGATIVE-UNUSED", "The negative prompt is not read: guidance is off at a scale of 1 or less.")
        if points is not None and not config.is_kps:
            self._say("W-KEY-POINTS-UNUSED", "kps_cond is not read: this checkpoint was trained without key points.")
        trained = config.sample_frames, config.sample_height * self.vae.factor, config.sample_width * self.vae.factor
        asked = request.num_frames, height, width
        if asked != trained:
            found = "{} frames of {} x {}".format(*asked)
            known = "{} of {} x {}".format(*trained)
            self._say("W-OFF-SIZE", f"{found} pixels are asked for; the model was trained on {known}.")

    @staticmethod
    def _face(id_cond: Tensor | None, id_vit_hidden: Sequence[Tensor] | None) -> Face:
        if id_cond is None or id_vit_hidden is None:
            raise InputError(
                "E-IDENTITY-NONE",
                "An identity has two parts, and one of id_cond and id_vit_hidden is missing.",
                "",
                "Give both, as process_face_embeddings_infer returns them.",
            )
        return Face(id_cond, tuple(id_vit_hidden))

    @staticmethod
    def _drawn(image: Any, marks: Any, height: int, width: int) -> Tensor:
        """The key points as pictures of the video's size; one picture serves several faces, and the reverse."""
        sizes = picture_sizes(image)
        num = max(len(sizes), len(marks))
        rows = [(marks[i % len(marks)], sizes[i % len(sizes)]) for i in range(num)]
        return pictures([draw_points(points, *size) for points, size in rows], height, width, "stretch")

    def _usable_eta(self, eta: float) -> float:
        """Zero, with a word about it, for solvers that have no such noise: documented as ignored."""
        if eta and not self.scheduler.solver.uses_eta:
            self._say("W-ETA-IGNORED", f"eta={eta} has no meaning for {type(self.scheduler).__name__}; it is ignored.")
            return 0.0
        return eta

    def _called_back(self, callback: Callback, names: Sequence[str], state: State, t: Tensor) -> State:
        """What a callback makes of a state: tensors by what it returns, guidance by what it did to this pipeline."""
        config = self.transformer.settings
        state = called_back(self, callback, names, state, t, 1, config.text_embed_dim, self.transformer.dtype)
        guidance: Guidance = state.guidance
        return replace(state, guidance=replace(guidance, text=self._guidance_scale))

    def _output(self, latents: Tensor, num_frames: int, output_type: OutputType) -> Any:
        """Decode and give the frames the form asked for; say what is wrong with them."""
        if output_type == "latent":
            check_finite(latents, "The denoised latents")
            return latents.to(self.transformer.dtype)
        with active(self.vae, self.memory) as vae:
            frames, findings = collect(decode(vae, latents, num_frames), num_frames, output_type)
        for finding in findings:
            self._note(warn(finding.code, finding.text, stacklevel=5))
        return frames
