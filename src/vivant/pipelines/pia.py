"""`PIAPipeline` with diffusers' names: keyword arguments to a request, the run, and its output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Generator, Tensor, no_grad
from torch import device as Device
from transformers import CLIPTextModel, CLIPVisionModelWithProjection, PreTrainedTokenizerBase

from vivant.denoise import OnStep, State, check_latents, keep
from vivant.errors import InputError, warn
from vivant.freeinit import FreeInit, Method
from vivant.hub.family import SD15
from vivant.lora.adapters import number
from vivant.media.output import OutputType, check_finite, check_output_type, collect
from vivant.media.pictures import num_pictures, pictures
from vivant.pia.affinity import Motion
from vivant.pia.assemble import assemble, check_repository, two_adapters
from vivant.pia.conditioning import Guidance
from vivant.pia.config import Numerics, check_frames, default_size
from vivant.pia.decode import decode
from vivant.pia.generate import Given, Parts, generate, schedules, timesteps
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNet2DConditionModel, UNetMotionModel
from vivant.pia.windows import Windows
from vivant.pipelines import inversion, lora, picture_prompts
from vivant.pipelines.base import DiffusionPipeline
from vivant.pipelines.prompting import check_keyframes, check_travel, encoded, frames_of
from vivant.pipelines.single_file import from_single_file
from vivant.pipelines.steering import TENSORS, Callback, callback_names, called_back
from vivant.placement import active
from vivant.prompts import broadcast, check_embeds, check_prompts
from vivant.request import Fit, PIARequest, Travel, batch_size, texts
from vivant.rng import Rng
from vivant.schedulers import Scheduler, pia_warnings
from vivant.text.encode import encode
from vivant.text.prompt import PromptSyntax
from vivant.vae.image import AutoencoderKL


@dataclass
class PIAPipelineOutput:
    """Result of a call.

    Attributes:
        frames: by `output_type`: ``"pil"`` a list of clips, each a list of pictures; ``"np"`` an array `b f h w 3` in
            [0, 1]; ``"pt"`` a tensor `b f 3 h w` in [0, 1]; ``"latent"`` the latents `b 4 f h/8 w/8`.
    """

    frames: Any

    def __getitem__(self, index: int | slice | str) -> Any:
        return {"frames": self.frames}[index] if isinstance(index, str) else (self.frames,)[index]

    def __iter__(self):
        return iter((self.frames,))

    def to_tuple(self) -> tuple[Any]:
        """The output as `return_dict=False` gives it."""
        return (self.frames,)


class PIAPipeline(DiffusionPipeline):
    """Animate pictures with a Stable Diffusion 1.5 model and a PIA motion adapter.

    Args:
        vae: image autoencoder.
        text_encoder: CLIP's text encoder; None if all prompts come as embeddings.
        tokenizer: its tokenizer; None likewise.
        unet: a base UNet, which the adapter then extends, or an assembled `UNetMotionModel`.
        scheduler: any scheduler of vivant or diffusers.
        motion_adapter: PIA's motion modules; part of `unet` afterwards and not kept a second time.
        feature_extractor: prepares pictures for the image encoder, as `vivant.vision.CLIPImageProcessor` does.
        image_encoder: CLIP's image encoder, for picture prompts (`load_ip_adapter`).
        numerics: ``"diffusers"`` (the default of this class: the same picture as diffusers) or ``"original"`` (what
            the published weights were trained with); see `vivant.pia.unet`.
    """

    _callback_tensor_inputs: ClassVar = TENSORS
    _loading_options: ClassVar[Mapping[str, tuple[str, ...]]] = {"UNetMotionModel": ("numerics",)}
    _lora_loadable_modules: ClassVar = ("unet", "text_encoder")
    _lora_families: ClassVar = (SD15,)

    vae: AutoencoderKL
    text_encoder: CLIPTextModel | None
    tokenizer: PreTrainedTokenizerBase | None
    unet: UNetMotionModel
    scheduler: Scheduler
    image_encoder: CLIPVisionModelWithProjection | None
    _ip_adapters: picture_prompts.Loaded = picture_prompts.Loaded()

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel | None,
        tokenizer: PreTrainedTokenizerBase | None,
        unet: UNet2DConditionModel | UNetMotionModel,
        scheduler: Scheduler,
        motion_adapter: MotionAdapter | None = None,
        feature_extractor: Any = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        *,
        numerics: Numerics | None = None,
    ):
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=assemble(self._checked("unet", unet), self._checked("motion_adapter", motion_adapter), numerics),
            scheduler=scheduler,
            motion_adapter=None,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )
        self._free_init: FreeInit | None = None
        self._guidance_scale, self._num_timesteps, self._clip_skip = 7.5, 0, None
        self._image_guidance_scale: float | None = None
        self._cross_attention_kwargs: dict[str, Any] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """The network is always an assembled one: the parts that the constructor takes cannot be exchanged later."""
        if name == "unet":
            value = assemble(self._checked(name, value), None, None)
        elif name == "motion_adapter" and value is not None:
            raise two_adapters("The unet of this pipeline")
        super().__setattr__(name, value)

    @classmethod
    def _check_repository(cls, folder: Any, index: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
        return set() if check_repository(folder, index, given) else {"motion_adapter"}

    from_single_file = classmethod(from_single_file)

    # ------------------------------------------------------------------------------------- state of a run

    @property
    def numerics(self) -> Numerics:
        """Scope of group normalisation, see the class."""
        return self.unet.numerics

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, along one side."""
        return self.vae.factor

    @property
    def guidance_scale(self) -> float:
        """Guidance of the current or last run."""
        return self._guidance_scale

    @property
    def image_guidance_scale(self) -> float | None:
        """Separate guidance by the picture of the current or last run."""
        return self._image_guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the network runs for the negative prompt too."""
        return self._guidance_scale > 1 or self._image_guidance_scale is not None

    @property
    def clip_skip(self) -> int | None:
        """As given to the current or last run."""
        return self._clip_skip

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """As given to the current or last run."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the current or last run, over all FreeInit iterations."""
        return self._num_timesteps

    # --------------------------------------------------------------------------------------------- options

    def enable_free_init(
        self,
        num_iters: int = 3,
        use_fast_sampling: bool = False,
        method: Method = "butterworth",
        order: int = 4,
        spatial_stop_frequency: float = 0.25,
        temporal_stop_frequency: float = 0.25,
    ) -> None:
        """Refine the initial noise by denoising several times, see `vivant.freeinit.FreeInit`."""
        self._free_init = FreeInit(
            num_iters, use_fast_sampling, method, order, spatial_stop_frequency, temporal_stop_frequency
        )

    def disable_free_init(self) -> None:
        """Denoise once."""
        self._free_init = None

    @property
    def free_init_enabled(self) -> bool:
        """Whether `enable_free_init` is in force."""
        return self._free_init is not None

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Re-weigh skip (s) and backbone (b) features of the first two up stages, see `vivant.pia.freeu`."""
        self.unet.enable_freeu(s1, s2, b1, b2)

    def disable_freeu(self) -> None:
        """Use the plain network."""
        self.unet.disable_freeu()

    def enable_vae_slicing(self) -> None:
        """Decode one frame at a time."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode a few frames at a time."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode large frames in overlapping tiles."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode frames whole."""
        self.vae.disable_tiling()

    load_ip_adapter = picture_prompts.load_ip_adapter
    set_ip_adapter_scale = picture_prompts.set_ip_adapter_scale
    unload_ip_adapter = picture_prompts.unload_ip_adapter

    def _networks(self) -> list[Any]:
        return [*super()._networks(), *self._ip_adapters.adapters]

    # --------------------------------------------------------------------------------------------- prompts

    load_textual_inversion = inversion.load_textual_inversion
    unload_textual_inversion = inversion.unload_textual_inversion
    maybe_convert_prompt = inversion.maybe_convert_prompt
    encode_image = picture_prompts.encode_image
    prepare_ip_adapter_image_embeds = picture_prompts.prepare_ip_adapter_image_embeds

    @no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        device: Device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
        *,
        prompt_syntax: PromptSyntax = "plain",
    ) -> tuple[Tensor, Tensor | None]:
        """Embed prompts by CLIP.

        Args:
            prompt: one or several; or give `prompt_embeds`.
            device: where to return the embeddings.
            num_images_per_prompt: rows for each prompt.
            do_classifier_free_guidance: embed the negative prompt too.
            negative_prompt: one for all or one for each; the empty prompt if not given.
            prompt_embeds: ready embeddings `b m d`, in place of `prompt`.
            negative_prompt_embeds: the same for the negative prompt.
            lora_scale: multiplies the strength of LoRA in the text encoder, fused one apart.
            clip_skip: how many last layers to leave out, for both prompts.
            prompt_syntax: ``"plain"``, or ``"weighted"`` for weights in brackets and any length; see
                `vivant.text.encode`.

        Returns:
            Positive and negative embeddings, `(b n) m d`; negative is None without guidance.

        Raises:
            InputError: E-PROMPT-… for prompts that are missing, given twice, or of the wrong type or shape, E-BATCH,
                E-TEXT-ENCODER.
        """
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        check_embeds(prompt_embeds, negative_prompt_embeds, self.unet.settings.cross_attention_dim)
        scale = number(lora_scale)
        lora.note_scale(self, scale)
        if clip_skip is not None and prompt_embeds is not None:
            self._say("W-CLIP-SKIP-UNUSED", "clip_skip is not read for prompts that are embedded already.")
        missing = [texts(prompt)] if prompt_embeds is None else []
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            missing.append(texts(negative_prompt))
        if prompt_syntax != "plain" and not missing:
            self._say("W-PROMPT-SYNTAX-UNUSED", "prompt_syntax is not read for prompts that are embedded already.")
        with lora.at_scale(self, scale, ("text_encoder",)):
            encoded = self._encoded(missing, clip_skip, prompt_syntax) if missing else []
        positive = encoded.pop(0) if prompt_embeds is None else prompt_embeds
        negative = encoded.pop() if encoded else negative_prompt_embeds
        place = device or self._execution_device, (self.text_encoder or self.unet).dtype
        if not do_classifier_free_guidance or negative is None:
            return broadcast(positive.to(*place), len(positive), num_images_per_prompt), None
        check_embeds(positive, negative, self.unet.settings.cross_attention_dim)
        batch = batch_size(prompt=len(positive), negative_prompt=len(negative))
        positive, negative = (broadcast(rows.to(*place), batch, num_images_per_prompt) for rows in (positive, negative))
        return positive, negative

    def _encoded(
        self, batches: Sequence[Sequence[str]], clip_skip: int | None, syntax: PromptSyntax = "plain"
    ) -> list[Tensor]:
        """Embeddings of every batch of prompts, all of one length; what was done to them goes into the notes."""
        if self.text_encoder is None or self.tokenizer is None:
            raise InputError(
                "E-TEXT-ENCODER",
                "A prompt has to be embedded, and this pipeline has no text encoder or no tokenizer.",
                "",
                "Give prompt_embeds, and with guidance negative_prompt_embeds too; or load the pipeline with both.",
            )
        with active(self.text_encoder, self.memory) as encoder:
            encoded = encode(self.tokenizer, encoder, batches, clip_skip, syntax)
        for note in encoded.notes:
            self._note(note)
        return list(encoded.embeds)

    # ------------------------------------------------------------------------------------------------ run

    @no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | Sequence[str] | None = None,
        strength: float = 1.0,
        num_frames: int | None = 16,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_videos_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: Generator | Sequence[Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        motion_scale: int = 0,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        *,
        motion: Motion | None = None,
        cond_frame: int = 0,
        fit: Fit = "crop",
        image_guidance_scale: float | None = None,
        prompt_syntax: PromptSyntax = "plain",
        windows: Windows | None = None,
        prompt_travel: Travel | None = None,
        keyframes: Mapping[int, Any] | None = None,
    ) -> PIAPipelineOutput | tuple[Any]:
        """Animate pictures. Pictures and prompts have length 1 or B; clip ``b * n + k`` is the k-th of prompt b.

        Args:
            image: path, PIL picture, array or tensor, or a list of such; see `vivant.media.pictures`.
            prompt: one or several; or give `prompt_embeds`.
            strength: how far to move from the picture, more than 0 and at most 1.
            num_frames: length of the clips; with `windows` more than the motion modules have positions for.
            height: in pixels, a multiple of 8; the UNet's `sample_size` times 8 if not given.
            width: likewise.
            num_inference_steps: denoising steps.
            guidance_scale: strength of the prompt; guidance is on above 1.
            negative_prompt: what to avoid. Without guidance it is not read, which a warning says once.
            num_videos_per_prompt: n clips for each prompt.
            eta: share of fresh noise in DDIM; other solvers do not have it, which a warning says once.
            generator: one for the whole batch, or one for each of the B n clips.
            latents: initial noise `(B n) 4 f h/8 w/8`, standard normal.
            prompt_embeds: ready embeddings `B m d`.
            negative_prompt_embeds: likewise.
            ip_adapter_image: pictures for the loaded IP-Adapters, see `vivant.pipelines.picture_prompts.rows`.
            ip_adapter_image_embeds: a list of what `prepare_ip_adapter_image_embeds` returns, in their place.
            motion_scale: 0 to 8, see `vivant.pia.affinity`; `motion` is the readable form.
            output_type: see `PIAPipelineOutput`.
            return_dict: return `PIAPipelineOutput`; otherwise a tuple of its field.
            cross_attention_kwargs: ``{"scale": s}`` multiplies the strength of LoRA in this call, in the text encoder
                too, fused one apart. ``{"ip_adapter_masks": [mask, …]}``: for each IP-Adapter a tensor `1 n h w` in
                [0, 1], or None.
            clip_skip: how many last layers of the text encoder to leave out.
            callback_on_step_end: called after every step with this pipeline, the step over all FreeInit iterations,
                the timestep and the tensors asked for; what it returns replaces them. Raise to cancel.
            callback_on_step_end_tensor_inputs: names out of `_callback_tensor_inputs`.
            motion: a name such as ``"loop:large"``, a number, or a free curve, in place of `motion_scale`.
            cond_frame: the frame that is the picture.
            fit: ``"crop"``, ``"pad"`` or ``"stretch"`` for pictures of another shape.
            image_guidance_scale: separate strength of the picture; off by default.
            prompt_syntax: ``"plain"``, as in diffusers, or ``"weighted"``: `(word:1.3)`, `[word]`, `BREAK`, and prompts
                of any length, as in A1111; see `vivant.text.encode`.
            windows: make long clips in overlapping windows, see `vivant.pia.windows.Windows`.
            prompt_travel: prompts at further frames, ``{32: "…"}``; `prompt` is the one at frame 0.
            keyframes: further pictures at other frames than `cond_frame`, ``{24: picture}``; each frame sees the
                nearest. One picture for all clips, or a list with one for each prompt.

        Raises:
            InputError: for every argument that cannot be honoured, before anything is computed.
            OutputError: E-OUTPUT-NAN.
        """
        check_output_type(output_type)
        if motion is not None and motion_scale != 0:
            raise InputError("E-MOTION-TWICE", "Both motion and motion_scale are given.", "", "Give one of them.")
        names = callback_names(callback_on_step_end, callback_on_step_end_tensor_inputs)
        if prompt_travel and prompt_embeds is None and prompt is None:
            prompt = ""
        check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        masks, others = picture_prompts.take_masks(cross_attention_kwargs)
        scale = lora.scale_of("cross_attention_kwargs", others)
        lora.note_scale(self, scale)
        shown = picture_prompts.Shown(ip_adapter_image, ip_adapter_image_embeds, masks)
        request = PIARequest(
            prompt=tuple(texts(prompt)),
            prompt_travel=prompt_travel,
            negative_prompt=None if negative_prompt is None else tuple(texts(negative_prompt)),
            motion=motion_scale if motion is None else motion,
            cond_frame=cond_frame,
            keyframes=frames_of(keyframes),
            num_frames=16 if num_frames is None else num_frames,
            windows=windows,
            height=height,
            width=width,
            fit=fit,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            image_guidance_scale=image_guidance_scale,
            strength=strength,
            eta=self._usable_eta(eta),
            clip_skip=clip_skip,
            prompt_syntax=prompt_syntax,
            num_videos_per_prompt=1 if num_videos_per_prompt is None else num_videos_per_prompt,
            free_init=self._free_init,
            freeu=self.unet.freeu,
        )
        self._guidance_scale, self._image_guidance_scale = guidance_scale, image_guidance_scale
        self._clip_skip, self._cross_attention_kwargs = clip_skip, cross_attention_kwargs
        steps = timesteps(schedules(self.scheduler.solver, request))
        self._num_timesteps = len(steps)
        self.scheduler.set_timesteps(num_inference_steps)
        with self.progress_bar(total=len(steps)) as bar, lora.at_scale(self, scale):

            def on_step(state: State) -> State:
                if callback_on_step_end is not None:
                    state = self._called_back(callback_on_step_end, names, state, steps[state.i])
                bar.update()
                return state

            embeds = prompt_embeds, negative_prompt_embeds
            latents = self.denoise(request, image, generator, on_step, latents, *embeds, shown, keyframes)
        frames = self._output(latents, output_type)
        self.maybe_free_model_hooks()
        return PIAPipelineOutput(frames) if return_dict else (frames,)

    @no_grad()
    def denoise(
        self,
        request: PIARequest,
        image: Any,
        generator: Generator | Sequence[Generator] | None = None,
        on_step: OnStep = keep,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        shown: picture_prompts.Shown = picture_prompts.NOTHING,
        keyframes: Mapping[int, Any] | None = None,
    ) -> Tensor:
        """The latents `(B n) 4 f h/8 w/8` of a request, in float32; what `__call__` decodes.

        Args:
            request: what is asked for.
            image: the pictures, see `vivant.media.pictures`.
            generator: source of the noise.
            on_step: called after every step with the state, see `vivant.denoise`; raising cancels.
            latents: initial noise in place of the first draw.
            prompt_embeds: embeddings in place of the request's prompts.
            negative_prompt_embeds: the same for its negative prompts.
            shown: what IP-Adapters are shown.
            keyframes: pictures by the frames that are the request's keyframes.
        """
        solver = self.scheduler.solver
        check_frames(request.num_frames, self.unet.settings.motion_max_seq_length, request.windows)
        given = check_keyframes(request, keyframes)
        check_travel(request, prompt_embeds)
        negatives = texts(request.negative_prompt)
        check_embeds(prompt_embeds, negative_prompt_embeds, self.unet.settings.cross_attention_dim)
        num_negatives = len(negatives if negative_prompt_embeds is None else negative_prompt_embeds)
        batch = batch_size(
            image=num_pictures(image),
            prompt=request.num_prompts if prompt_embeds is None else len(prompt_embeds),
            **{f"picture at frame {frame}": num_pictures(picture) for frame, picture in given},
            **({"negative_prompt": num_negatives} if request.needs_negative else {}),
        )
        asked = picture_prompts.check(self, shown, batch, request.needs_negative)
        num = request.num_videos_per_prompt
        rng = Rng.of(generator, batch * num)
        sides = zip((request.height, request.width), default_size(self.unet.settings.sample_size), strict=True)
        height, width = (cells * self.vae_scale_factor if side is None else side for side, cells in sides)
        picture_prompts.note_masks(self, asked, height, width)
        if latents is not None:
            cells = (side // self.vae_scale_factor for side in (height, width))
            check_latents(latents, (batch * num, self.unet.settings.out_channels, request.num_frames, *cells))
        pixels = pictures(image, height, width, request.fit)
        further = tuple(pictures(picture, height, width, request.fit) for _, picture in given)
        if not request.needs_negative and (any(negatives) or negative_prompt_embeds is not None):
            self._say("W-NEGATIVE-UNUSED", "The negative prompt is not read: guidance is off at a scale of 1 or less.")
        for message in pia_warnings(solver):
            code, _, text = message.removeprefix("[").partition("] ")
            self._say(code, text)
        memory = self._prepare_run()

        prompts = encoded(self, request, batch, prompt_embeds, negative_prompt_embeds)
        seen = picture_prompts.embedded(self, asked, request.needs_negative)
        parts = Parts(self.vae, self.unet, solver, memory)
        return generate(parts, request, Given(pixels, prompts, latents, seen, further), rng, on_step)

    def _usable_eta(self, eta: float) -> float:
        """Zero, with a word about it, for solvers that have no such noise: documented as ignored."""
        if eta and not self.scheduler.solver.uses_eta:
            self._say("W-ETA-IGNORED", f"eta={eta} has no meaning for {type(self.scheduler).__name__}; it is ignored.")
            return 0.0
        return eta

    def _called_back(self, callback: Callback, names: Sequence[str], state: State, t: Tensor) -> State:
        """What a callback makes of a state: tensors by what it returns, guidance by what it did to this pipeline."""
        channels = self.unet.settings.cross_attention_dim
        state = called_back(self, callback, names, state, t, state.x.shape[2], channels, self.unet.dtype)
        if state.conditioning.prompts.negative is None:  # a callback switched guidance off on the way
            self._image_guidance_scale = None
        return replace(state, guidance=Guidance(self._guidance_scale, self._image_guidance_scale))

    def _output(self, latents: Tensor, output_type: OutputType) -> Any:
        """Decode and give the frames the form asked for; say what is wrong with them."""
        if output_type == "latent":
            check_finite(latents, "The denoised latents")
            return latents.to(self.unet.dtype)
        with active(self.vae, self.memory) as vae:
            frames, findings = collect(decode(vae, latents), latents.shape[2], output_type)
        for finding in findings:
            self._note(warn(finding.code, finding.text, stacklevel=5))
        return frames
