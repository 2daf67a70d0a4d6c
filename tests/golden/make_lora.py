"""What diffusers 0.42.1 with peft 0.21.2 makes of LoRA files: `lora.safetensors`.

peft is not among the packages that the tests need, so its part is recorded. Run it where diffusers and peft are
installed: ``python tests/golden/make_lora.py``. Networks and files come from the rules in `tiny.py` and `tiny_lora.py`.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders import CogVideoXLoraLoaderMixin, StableDiffusionLoraLoaderMixin
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.consisid.pipeline_consisid import get_resize_crop_region_for_grid
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import tiny  # noqa: E402 (the folder above is not a package)
import tiny_consisid  # noqa: E402
import tiny_lora  # noqa: E402
import tiny_repo  # noqa: E402


class Pictures(StableDiffusionLoraLoaderMixin):
    """As much of a pipeline as loading LoRA needs."""

    hf_device_map, device = None, "cpu"

    def __init__(self):
        base = tiny.fill(diffusers.UNet2DConditionModel(**tiny_repo.public(tiny.UNET2D)))
        adapter = tiny.fill(diffusers.MotionAdapter(**tiny_repo.public(tiny.ADAPTER)))
        self.unet = diffusers.UNetMotionModel.from_unet2d(base, adapter).eval()
        self.text_encoder = tiny_repo.text_encoder()
        self.components = {"unet": self.unet, "text_encoder": self.text_encoder}

    def answers(self, name: str) -> dict[str, Tensor]:
        """What the networks make of the same inputs as in `test_lora.py`."""
        x, ids = tiny_lora.inputs()
        text = tiny.noise(1, tiny.TOKENS, tiny.TEXT_DIM, seed=1).repeat(x.shape[2], 1, 1)
        return {
            f"{name}/unet": self.unet(x, 500, text).sample,
            f"{name}/text": self.text_encoder(ids).last_hidden_state,
        }


class Videos(CogVideoXLoraLoaderMixin):
    """The same of ConsisID."""

    hf_device_map, device = None, "cpu"

    def __init__(self):
        config = {k: v for k, v in tiny_consisid.TRANSFORMER.items() if not k.startswith("_")}
        self.transformer: Any = tiny.fill(diffusers.ConsisIDTransformer3DModel(**config))
        self.components = {"transformer": self.transformer}


def loaded(pipe: Any, written: tiny_lora.Written, name: str) -> None:
    """Have diffusers read a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        save_file({k: v.contiguous() for k, v in written.tensors.items()}, path, metadata=written.metadata)
        pipe.load_lora_weights(str(path), adapter_name=name)


@torch.no_grad()
def main() -> None:
    answers: dict[str, Tensor] = {}
    for name in tiny_lora.READ_BY_DIFFUSERS:
        pipe = Pictures()
        loaded(pipe, getattr(tiny_lora, name)(pipe.components), "one")
        answers |= pipe.answers(name)

    pipe = Pictures()
    loaded(pipe, tiny_lora.kohya(pipe.components), "one")
    loaded(pipe, tiny_lora.converted_motion(pipe.components), "two")
    answers |= pipe.answers("last")
    pipe.set_adapters(["one", "two"], [0.3, -0.7])
    answers |= pipe.answers("both")
    pipe.set_adapters(["one", "two"], [{"unet": 0.4, "text_encoder": 0.9}, 0.5])
    answers |= pipe.answers("components")
    pipe.set_adapters("one", {"unet": {"down": 0.2, "mid": 0.5, "up": {"block_1": [0.3, 0.6, 0.9]}}})
    answers |= pipe.answers("blocks")

    videos = Videos()
    loaded(videos, tiny_lora.transformer(videos.components), "one")
    face = tiny_consisid.face()
    crop = get_resize_crop_region_for_grid((3, 5), tiny_consisid.WIDTH // 2, tiny_consisid.HEIGHT // 2)
    rotary = get_3d_rotary_pos_embed(16, crop, (3, 5), tiny_consisid.FRAMES)
    sample = videos.transformer(
        tiny_consisid.latents(), tiny_consisid.text(), torch.tensor([640, 640]), image_rotary_emb=rotary, **face
    ).sample
    answers["transformer"] = sample
    versions = {"diffusers": diffusers.__version__, "peft": __import__("peft").__version__}
    save_file(
        {k: v.contiguous() for k, v in answers.items()}, HERE / "lora.safetensors", {"made_by": json.dumps(versions)}
    )


if __name__ == "__main__":
    main()
