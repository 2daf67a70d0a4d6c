"""What every pipeline shares: reading and writing repositories, components, placement, the progress bar.

A pipeline declares itself by its constructor: positional parameters are its components (those with the default None
are optional), keyword-only parameters are its options. There is no arithmetic here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import device as Device
from torch import dtype as Dtype

from vivant import __version__, placement
from vivant.config import Config, dump_json
from vivant.errors import InputError, warn
from vivant.hub.family import Family
from vivant.hub.load import check_no_pickle
from vivant.hub.model import pick_dtype
from vivant.hub.repo import Source, locate
from vivant.hub.report import LoadReport
from vivant.lora.merge import scaled, taken_off
from vivant.pipelines import components as parts
from vivant.pipelines import lora
from vivant.pipelines.declared import check_complete, check_keywords, declared_by, is_of
from vivant.pipelines.refused import NotYet
from vivant.placement import MemoryPolicy

if TYPE_CHECKING:
    from huggingface_hub.utils import tqdm


class DiffusionPipeline:
    """Base of all pipelines.

    Attributes:
        notes: what was left out, replaced or fallen back to, one sentence each.
        source: the repository that it was loaded from; None for one that was put together.
        report: what came of the tensors of the single file that it was loaded from; None if it was not.
    """

    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ()
    _loading_options: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Options that components are read with: class name to names of options."""
    _lora_loadable_modules: ClassVar[tuple[str, ...]] = ()
    """Components that LoRA can change."""
    _lora_families: ClassVar[tuple[Family, ...]] = ()
    """Models whose LoRA fits."""

    notes: list[str]

    def __init__(self, **components: Any):
        self.notes = []
        self.source: Source | None = None
        self.report: LoadReport | None = None
        self._said: set[str] = set()
        self._memory = MemoryPolicy()
        self._progress_bar_config: dict[str, Any] = {}
        for name, component in components.items():
            setattr(self, name, component)

    load_lora_weights = lora.load_lora_weights
    set_adapters = lora.set_adapters
    get_active_adapters = lora.get_active_adapters
    get_list_adapters = lora.get_list_adapters
    delete_adapters = lora.delete_adapters
    disable_lora = lora.disable_lora
    enable_lora = lora.enable_lora
    fuse_lora = lora.fuse_lora
    unfuse_lora = lora.unfuse_lora
    unload_lora_weights = lora.unload_lora_weights
    fused_loras = property(lora.fused_loras)
    num_fused_loras = property(lora.num_fused_loras)
    load_ip_adapter = NotYet("picture prompts (IP-Adapter)", "Describe the picture in the prompt.")
    load_textual_inversion = NotYet("textual inversions", "Describe the thing in the prompt.")
    from_single_file = NotYet("single-file checkpoints", "Give from_pretrained a repository folder or a hub id.")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in declared_by(type(self)).components:
            value = self._checked(name, value)
        super().__setattr__(name, value)

    @classmethod
    def _checked(cls, name: str, value: Any) -> Any:
        """A component of the type that the constructor declares; schedulers of diffusers are translated."""
        if value is None and name in declared_by(cls).nullable:
            return None
        if name == "scheduler":
            from vivant.schedulers import as_scheduler

            value = as_scheduler(value)
        declared = declared_by(cls).components[name]
        if not is_of(value, declared):
            kind = type(value)
            found = "None" if value is None else f"a {kind.__module__.partition('.')[0]}.{kind.__name__}"
            wanted = getattr(declared, "__name__", str(declared).replace("vivant.", ""))
            raise InputError(
                "E-COMPONENT-TYPE",
                f"{name} is {found}; {cls.__name__} needs {wanted}.",
                "",
                "Load it with from_pretrained of that class in vivant.",
            )
        return value

    # Reading and writing

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: Dtype | None = None,
        dtype: Dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        use_safetensors: bool | None = None,
        **given: Any,
    ) -> Self:
        """Load a pipeline from a repository folder or a hub id.

        Args:
            pretrained_model_name_or_path: a folder with `model_index.json`, or a hub id such as
                ``"organisation/name"``.
            torch_dtype: data type of all weights; float32 if not given. `dtype` is the newer name.
            dtype: the same.
            variant: file variant such as ``"fp16"``; a component without it is read in its plain weights, with a note.
            revision: branch, tag or commit on the hub.
            cache_dir: hub cache; HF_HOME and HF_HUB_CACHE are honoured.
            local_files_only: never touch the network; HF_HUB_OFFLINE does the same.
            token: hub token; HF_TOKEN is honoured.
            use_safetensors: True refuses weights that exist as pickles only; safetensors are preferred in any case.
            given: components by name, in place of those of the repository (None leaves one out that is not needed), and
                options of this pipeline. Of diffusers' other keywords those are accepted that change nothing here:
                ``low_cpu_mem_usage=True``, ``device_map=None``, ``force_download=False``, ``trust_remote_code=False``,
                ``safety_checker=None``, ``requires_safety_checker=False``.

        Raises:
            LoadError: what is missing, unreadable or of another kind.
            InputError: E-ARG-UNKNOWN or E-ARG-VALUE for keywords that would be ignored, E-PIPELINE-BASE when this base
                class itself is asked, E-COMPONENT-TYPE; and whatever the constructor refuses, before weights are read.
        """
        declared = declared_by(cls)
        dtype = pick_dtype(torch_dtype, dtype)
        extra = {"use_safetensors": None if use_safetensors is True else use_safetensors, **given}
        check_keywords(cls, extra)
        overrides = {name: cls._checked(name, value) for name, value in given.items() if name in declared.components}
        options = {name: value for name, value in given.items() if name in declared.options}

        source = pretrained_model_name_or_path
        place = Source(source, None, variant, revision, cache_dir, local_files_only, token)
        folder = locate(place, ["model_index.json", *(f"{name}/config.json" for name in declared.components)])
        listed, wanted, notes = cls._wanted(folder, source, overrides, options)

        folder = locate(place, ["model_index.json", *(f"{name}/{file}" for name in wanted for file in parts.FILES)])
        variants, more = parts.component_variants(folder, list(wanted), variant)
        if use_safetensors:
            for name in wanted:
                check_no_pickle(folder / name, variants[name])
        loaded = dict.fromkeys(listed)
        for name, entry in wanted.items():
            passed = {key: options[key] for key in cls._loading_options.get(entry.class_name, ()) if key in options}
            subfolder = locate(Source(folder, name), parts.FILES)
            loaded[name] = parts.load_component(subfolder, entry, variants[name], dtype, passed)
        pipeline = cls(**{**loaded, **overrides, **options})
        pipeline.source = place
        pipeline.notes += [*notes, *more]
        return pipeline

    @classmethod
    def _wanted(
        cls, folder: Path, source: Any, overrides: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[list[str], dict[str, parts.Entry], list[str]]:
        """What to read of a repository, by its small files.

        Returns:
            Its components that this class has, those to be read, and a note for each that is not.
        """
        declared = declared_by(cls)
        index = parts.read_index(cls, folder)
        listed = parts.entries(index)
        check_complete(cls, listed, overrides, source)
        wanted = {name: e for name, e in listed.items() if e and name in declared.components and name not in overrides}
        notes = [
            f"{name} is not part of {cls.__name__}; it was skipped."
            for name in listed
            if name not in declared.components
        ]
        unreadable = [name for name in declared.optional if name in wanted and not parts.is_readable(wanted[name])]
        notes += [f"{name} ({wanted.pop(name).class_name}) cannot be used yet; it was skipped." for name in unreadable]
        for name, entry in wanted.items():
            parts.check_readable(name, entry)
        unneeded = wanted.keys() & cls._check_repository(folder, index, {**overrides, **options})
        notes += [f"{name} is part of another component already; it was skipped." for name in unneeded]
        ours = [name for name in listed if name in declared.components]
        return ours, {name: entry for name, entry in wanted.items() if name not in unneeded}, notes

    @classmethod
    def _check_repository(cls, folder: Path, index: Mapping[str, Any], given: Mapping[str, Any]) -> set[str]:
        """Refuse, by its small files, what the constructor would refuse once all is read. Default: nothing.

        Args:
            folder: the repository; weights may not be there yet.
            index: its `model_index.json`.
            given: components and options that were passed beside it.

        Returns:
            Components of the repository that need not be read.
        """
        return set()

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Write all components and `model_index.json`, readable by diffusers too.

        LoRA is part of what is written where it is fused, and otherwise is not.

        Args:
            save_directory: created if need be.
            safe_serialization: must be True; pickles are not written.
            variant: part of the names of weight files, such as ``"fp16"``; the data type is that of the weights.
            max_shard_size: larger components are written in several files.
        """
        if not safe_serialization:
            raise InputError("E-SAVE-PICKLE", "vivant writes safetensors only.", "Pickles can run code when read.")
        folder = Path(save_directory)
        with scaled(placement.networks(self.components.values()), 0):
            for name, component in self.components.items():
                if component is not None:
                    (folder / name).mkdir(parents=True, exist_ok=True)
                    parts.save_component(component, folder / name, variant, max_shard_size)
        dump_json({**self.config, "_vivant_version": __version__}, folder / "model_index.json")

    @classmethod
    def from_pipe(cls, pipeline: Any, **given: Any) -> Self:
        """Build this pipeline around the components of another one, which are shared, not copied, with their LoRA.

        Args:
            pipeline: any pipeline with `components`; what it has under other names is left aside.
            given: components in place of its own, and options of this pipeline; options that both have carry over.
        """
        declared = declared_by(cls)
        check_keywords(cls, given)
        shared = {name: value for name, value in pipeline.components.items() if name in declared.components}
        options = {name: getattr(pipeline, name) for name in declared.options if hasattr(pipeline, name)}
        check_complete(cls, shared, given, type(pipeline).__name__)
        ours = {name: value for name, value in given.items() if name in (*declared.components, *declared.options)}
        return cls(**{**shared, **options, **ours})

    # Components

    @property
    def components(self) -> dict[str, Any]:
        """All components by name; accepted by the constructor of another pipeline."""
        return {name: getattr(self, name, None) for name in declared_by(type(self)).components}

    @property
    def config(self) -> Config:
        """The content of `model_index.json`: this class, and library and class of every component."""
        listed = {k: (None, None) if v is None else parts.entry_of(v) for k, v in self.components.items()}
        return Config({"_class_name": type(self).__name__, **{k: tuple(v) for k, v in listed.items()}})

    def __repr__(self) -> str:
        lines = [f"  {k}: {type(v).__name__ if v is not None else None}," for k, v in self.components.items()]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])

    # Placement

    def _networks(self) -> list[Any]:
        """All networks that are placed together, those of the components first."""
        return placement.networks(self.components.values())

    @property
    def device(self) -> Device:
        """Where the components are."""
        found = self._networks()
        return next((network.device for network in found), Device("cpu"))  # pyright: ignore[reportReturnType]

    @property
    def dtype(self) -> Dtype:
        """Data type of the weights."""
        found = self._networks()
        return next((network.dtype for network in found), self._memory.dtype)  # pyright: ignore[reportReturnType]

    @property
    def memory(self) -> MemoryPolicy:
        """Where a call runs and what of the pipeline stays there."""
        device = str(self.device) if self._memory.residency == "resident" else self._memory.device
        return replace(self._memory, device=device, dtype=self.dtype)

    @property
    def _execution_device(self) -> Device:
        """Where a call computes; with offloading this is not where the components lie."""
        return Device(self.memory.device)

    def to(self, *args: Any, device: str | Device | None = None, dtype: Dtype | None = None) -> Self:
        """Move all components, or change their data type, in place; a given device ends offloading.

        ``to("cuda")``, ``to(torch.bfloat16)``, ``to("cuda", torch.bfloat16)`` and keywords are understood.

        Raises:
            InputError: E-TO-ARGS for arguments that make no sense, E-DEVICE when torch refuses.
        """
        for value in args:
            if isinstance(value, Dtype) and dtype is None:
                dtype = value
            elif isinstance(value, str | Device) and device is None:
                device = value
            elif value is not None:
                raise InputError("E-TO-ARGS", f"to() cannot use {value!r}.", "", "Give a device, a dtype, or both.")
        self._move(device, dtype)
        if device is not None:
            self._memory = replace(self._memory, residency="resident")
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: str | Device | None = None) -> None:
        """Keep components on the CPU and each on the accelerator only while it is used.

        Without an accelerator everything runs on the CPU, and a component's memory is given back after its use to the
        files that it was read from. What lies in no file, as after a change of the data type, stays, with a warning
        W-OFFLOAD-CPU.

        Args:
            gpu_id: index of the accelerator.
            device: the accelerator; the best one present if not given.
        """
        self._offload("component", gpu_id, device)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: str | Device | None = None) -> None:
        """As `enable_model_cpu_offload`, for every layer of a component by itself: the least memory, and slower."""
        self._offload("layer", gpu_id, device)

    def _offload(self, residency: Any, gpu_id: int | None, device: str | Device | None) -> None:
        target = placement.offload_device(gpu_id, device)
        placement.check_place(target, self.dtype)
        placement.check_residency(residency, any("predict" in vars(part) for part in self.components.values() if part))
        self._memory = replace(self._memory, device=target, residency=residency)
        self._move("cpu")
        if Device(target).type == "cpu":
            held, total = placement.stays(self._networks())
            if held > total // 100:
                self._say(
                    "W-OFFLOAD-CPU",
                    f"Everything runs on the CPU, and {held / 1e9:.1f} of {total / 1e9:.1f} GB of weights lie in no "
                    "file, so they stay in memory. Load them in the data type of their files.",
                )

    def _move(self, device: str | Device | None, dtype: Dtype | None = None) -> None:
        """Move all components for good; LoRA is merged anew into what they are then, as if it were loaded now."""
        networks = self._networks()
        with taken_off(networks):
            placement.move(networks, device, dtype)

    def maybe_free_model_hooks(self) -> None:
        """Bring every component back to the CPU if offloading is on."""
        if placement.moves(self._memory):
            placement.move(self._networks(), "cpu")

    def _prepare_run(self) -> MemoryPolicy:
        """Where this call runs; says once what is odd about it."""
        if placement.is_slow_half(self.memory):
            self._say("W-CPU-FLOAT16", "float16 on a CPU is slow and less exact; bfloat16 or float32 serve better.")
        return self.memory

    # Attention is exact and never builds the full matrix, which is what these four ask for.

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Accepted, changes nothing: attention already takes no more memory than slices would (W-ATTENTION)."""
        self._say("W-ATTENTION", "Attention already runs in memory linear in its length; slicing changes nothing.", 3)

    def disable_attention_slicing(self) -> None:
        """Accepted, changes nothing: attention is never sliced."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Accepted, changes nothing, with a warning W-ATTENTION; a particular operator is refused.

        Raises:
            InputError: E-ATTENTION-OP.
        """
        if attention_op is not None:
            raise InputError("E-ATTENTION-OP", "Operators of xformers cannot be chosen.", "", "Leave attention_op out.")
        self._say("W-ATTENTION", "Attention already runs in memory linear in its length; xformers is not used.", 3)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Accepted, changes nothing: xformers is never used."""

    # Telling the user

    def set_progress_bar_config(self, **config: Any) -> None:
        """Keywords for the progress bar, those of tqdm: `disable`, `desc`, `leave`, …; they replace earlier ones."""
        self._progress_bar_config = config

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> "tqdm":
        """A progress bar over `iterable`, or one of `total` steps to be updated by hand.

        Raises:
            InputError: E-PROGRESS when neither is given.
        """
        from huggingface_hub.utils import tqdm

        if iterable is None and total is None:
            raise InputError("E-PROGRESS", "progress_bar needs an iterable or a total.")
        return tqdm(iterable, total=total, **self._progress_bar_config)

    def _say(self, code: str, text: str, depth: int = 4) -> None:
        """Warn once in the life of this pipeline, and note it; the caller `depth` calls up is named as the place."""
        if code not in self._said:
            self._said.add(code)
            warn(code, text, stacklevel=depth)
        self._note(f"[{code}] {text}")

    def _note(self, text: str) -> None:
        """Note it, if the notes do not say so already: whoever reports on one run empties them before it."""
        if text not in self.notes:
            self.notes.append(text)
