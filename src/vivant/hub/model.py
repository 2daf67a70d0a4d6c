"""The one base class of all networks: configuration, strict loading, saving. It does no arithmetic."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from vivant import __version__
from vivant.config import Config as ConfigView
from vivant.config import dump_json, load_json, read
from vivant.errors import InputError
from vivant.hub.finite import check_finite
from vivant.hub.keywords import without_loading
from vivant.hub.load import WEIGHTS, cast, check_keys, check_no_pickle, read_weights, write_weights
from vivant.hub.repo import Source, locate
from vivant.hub.report import LoadReport
from vivant.hub.single_file import KEYWORDS, Found, Names, Part, config_of, look_for, open_file, report_on

M = TypeVar("M", bound="Model")  # Self in a tuple is more than the run-time checker of the tests reads


class Model(nn.Module):
    """A network with a `config.json`: subclasses set `Config` and build their modules from `self.settings`.

    Construction takes the fields of `config.json` as keywords and initialises weights randomly, as torch does.
    The loaders build on the meta device instead, so that loading costs no initialisation.

    Attributes:
        report: what came of the tensors of the single file that it was loaded from; None if it was not.
    """

    Config: ClassVar[type]
    part: ClassVar[Part | None] = None
    """How single files hold it; None for a network that has no single files."""
    report: LoadReport | None = None
    settings: Any

    def __init__(self, **fields: Any):
        super().__init__()
        self.settings, config = read(type(self).Config, fields)
        self.__dict__["config"] = ConfigView({**config, "_class_name": type(self).__name__})

    config: ConfigView

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the first floating parameter."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Device of the first parameter."""
        return next(self.parameters()).device

    @classmethod
    def from_config(cls, config: "Mapping[str, Any] | str | Path", **changes: Any) -> Self:
        """Build with random weights from a mapping, a JSON file, or a folder that holds `config.json`.

        Raises:
            InputError: E-CONFIG-UNKNOWN or E-CONFIG-VALUE for what this class does not implement.
        """
        if isinstance(config, str | Path):
            path = Path(config)
            config = load_json(path / "config.json" if path.is_dir() else path)
        return cls(**{**config, **changes})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        use_safetensors: bool | None = None,
        **changes: Any,
    ) -> Self:
        """Load a published checkpoint.

        Args:
            pretrained_model_name_or_path: a folder, or a hub id such as ``"openmmlab/PIA-condition-adapter"``.
            subfolder: component folder inside the repository (``"unet"``).
            variant: file variant such as ``"fp16"``.
            revision: branch, tag or commit on the hub.
            cache_dir: hub cache; the hub's own environment variables are honoured.
            local_files_only: never touch the network.
            token: hub token.
            dtype: data type of the weights; that of `torch.get_default_dtype()` if not given. `torch_dtype` is
                diffusers' older name for the same argument.
            use_safetensors: True refuses weights that exist as a pickle only; safetensors are preferred in any case.
            changes: fields of `config.json` to override. Of diffusers' other keywords those are accepted that change
                nothing here: ``low_cpu_mem_usage=True``, ``device_map=None``, ``force_download=False``.

        Raises:
            LoadError: nothing found, or tensors that do not fit this class (the nearest names are printed).
            InputError: E-ARG-VALUE for a keyword that would be ignored, E-CONFIG-UNKNOWN and E-CONFIG-VALUE for fields
                that this class does not implement.
        """
        dtype = pick_dtype(dtype, torch_dtype) or usual_dtype()
        changes = without_loading({"use_safetensors": None if use_safetensors is True else use_safetensors, **changes})
        source = pretrained_model_name_or_path
        place = Source(source, subfolder, variant, revision, cache_dir, local_files_only, token)
        folder = locate(place, [*WEIGHTS, "config.json"])
        if use_safetensors:
            check_no_pickle(folder, variant)
        config = {**load_json(folder / "config.json"), **changes}
        return cls.from_state(config, read_weights(folder, variant), dtype, origin=str(source))

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | Path | Mapping[str, Tensor],
        *,
        config: str | Path | Mapping[str, Any] | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        verify: bool = False,
        **changes: Any,
    ) -> Self:
        """Load from one file: of this network alone, or of a whole model that holds it.

        Layouts of other programs are read as well as our own. The file's header decides; nothing is fetched for
        configurations.

        Args:
            pretrained_model_link_or_path_or_dict: a ``.safetensors`` file or a pickle of tensors (``.ckpt``, ``.pt``,
                ``.bin``) on disk; one of the hub, ``"organisation/name/blob/main/file.safetensors"`` or its address;
                or a table of tensors.
            config: fields of `config.json`, or a repository or folder that has it; those of Stable Diffusion 1.5 if
                not given, and for motion modules those that the tensors tell.
            subfolder: where in that repository; ``"unet"`` and so on if not given.
            revision: branch, tag or commit on the hub.
            cache_dir: hub cache; the hub's own environment variables are honoured.
            local_files_only: never touch the network.
            token: hub token.
            dtype: data type of the weights; that of `torch.get_default_dtype()` if not given. `torch_dtype` is
                diffusers' older name for the same argument.
            torch_dtype: the same.
            verify: look for NaN in all values, not only where they are found quickly; see `vivant.hub.finite`.
            changes: fields of the configuration to override. Of diffusers' other keywords those are accepted that
                change nothing here, as in `from_pretrained`; `original_config` is refused.

        Raises:
            LoadError: E-FILE-MISSING and E-REPO-… for what is not there, E-WEIGHTS-… for damaged files and NaN,
                E-FILE-FAMILY, E-FILE-KIND and E-FILE-PART for a file of something else, E-KEYS-MISMATCH for tensors
                that do not fit.
            InputError: E-NOT-YET for a network that has no single files, E-ARG-VALUE, E-CONFIG-….
        """
        if cls.part is None:
            raise InputError(
                "E-NOT-YET", f"{cls.__name__} is not published in single files.", "", "Load it with from_pretrained."
            )
        dtype = pick_dtype(dtype, torch_dtype) or usual_dtype()
        changes = without_loading(changes, KEYWORDS)
        place = Source("", subfolder, None, revision, cache_dir, local_files_only, token)
        file = open_file(pretrained_model_link_or_path_or_dict, place)
        found = look_for(file, cls.part)
        model, names = cls.from_found(found, {**config_of(config, found, place), **changes}, dtype, verify=verify)
        model.report = report_on(file, names)
        return model

    @classmethod
    def from_found(
        cls: type[M], found: Found, config: Mapping[str, Any], dtype: torch.dtype | None, *, verify: bool = False
    ) -> tuple[M, Names]:
        """Build from a network that was found in a single file, without copying tensors that already have `dtype`.

        Returns:
            The network, and the names of the file that it used.
        """
        with torch.device("meta"):
            model = cls(**config)
        state, names = found.state(model, config=model.config, owner=cls.__name__)
        check_finite(state, found.file.origin, whole=verify, dtype=dtype)
        return model.adopt(state, dtype), names

    @classmethod
    def from_state(
        cls, config: Mapping[str, Any], state: dict[str, Tensor], dtype: torch.dtype | None = None, origin: str = ""
    ) -> Self:
        """Build on the meta device and adopt `state` without copying tensors that already have `dtype`."""
        with torch.device("meta"):
            model = cls(**config)
        state = model.published_names(state)
        check_keys(state, model.state_dict(), owner=cls.__name__, origin=origin)
        return model.adopt(state, dtype)

    def adopt(self, state: Mapping[str, Tensor], dtype: torch.dtype | None) -> Self:
        """Take tensors that fit for one's own, converted to `dtype` if that is given."""
        self.load_state_dict(cast(state, dtype), strict=True, assign=True)
        return self.eval().requires_grad_(False)

    def published_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translate the tensor names of older layouts of this network. Default: nothing to translate."""
        return state

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
    ) -> None:
        """Write `config.json` and safetensors in the published layout; each file is replaced in one step."""
        if not safe_serialization:
            raise InputError("E-SAVE-PICKLE", "vivant writes safetensors only.", "Pickles can run code when read.")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder, self.state_dict(), variant, max_shard_size)
        dump_json({**self.config, "_vivant_version": __version__}, folder / "config.json")


def usual_dtype() -> torch.dtype:
    """The data type that weights are read in where none is asked for."""
    return torch.get_default_dtype()


def pick_dtype(dtype: torch.dtype | None, torch_dtype: torch.dtype | None) -> torch.dtype | None:
    """One data type from diffusers' two names for it.

    Raises:
        InputError: E-DTYPE for anything but a floating data type of torch, E-DTYPE-TWICE when the two disagree.
    """
    for value in (dtype, torch_dtype):
        if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
            raise InputError(
                "E-DTYPE", f"{value!r} is no data type for weights.", "", "Give torch.float32, bfloat16 or float16."
            )
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise InputError("E-DTYPE-TWICE", f"dtype={dtype} and torch_dtype={torch_dtype} disagree.", "", "Give one.")
    return dtype if dtype is not None else torch_dtype
