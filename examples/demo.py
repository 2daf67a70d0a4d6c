"""`make demo`: a clip from a photo, through the command line, on any machine and without a download.

It builds a small model with the layout of Stable Diffusion 1.5 and PIA, and with RANDOM weights: the clip shows that
everything from the photo to the file works, not what a trained model makes of the photo.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vivant import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel
from vivant.media.video import probe
from vivant.text.clip import save_text_encoder

PHOTO = Path(__file__).with_name("astronaut.jpg")
OUT = Path(__file__).resolve().parents[1] / "out"
SIZE, FRAMES, STEPS, FPS = 192, 16, 5, 8


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A tokenizer of CLIP's kind that spells every word: one token for each letter."""
    folder.mkdir(parents=True)
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 77}\n', encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def write_models(folder: Path) -> None:
    """A base and a motion adapter as they are published, four orders of magnitude smaller, with random weights."""
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "base" / "tokenizer")
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // 8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    adapter = MotionAdapter(
        block_out_channels=(32, 64),
        motion_norm_num_groups=8,
        motion_num_attention_heads=4,
        use_motion_mid_block=False,
        conv_in_channels=9,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
    )
    adapter.save_pretrained(folder / "adapter")
    base = folder / "base"
    unet.save_pretrained(base / "unet")
    vae.save_pretrained(base / "vae")
    save_text_encoder(CLIPTextModel(text), base / "text_encoder")
    DDIMScheduler().save_pretrained(base / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (base / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def animate(models: Path, outputs: Sequence[Path]) -> None:
    """The command line as a person would type it."""
    arguments = ["animate", str(PHOTO), "an astronaut smiles"]
    arguments += ["--base", str(models / "base"), "--motion-adapter", str(models / "adapter")]
    arguments += ["--size", f"{SIZE}x{SIZE}", "--frames", str(FRAMES), "--fps", str(FPS), "--steps", str(STEPS)]
    arguments += ["--motion", "loop:large", "--seed", "0", "--overwrite"]
    for path in outputs:
        arguments += ["-o", str(path)]
    print("vivant " + " ".join(f'"{text}"' if " " in text else text for text in arguments), flush=True)
    subprocess.run([sys.executable, "-m", "vivant.cli", *arguments], check=True)


def main() -> None:
    """Build the models, animate the photo, and check the files."""
    start = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    outputs = [OUT / "demo.mp4", OUT / "demo.gif"]
    print("The weights of this demo are random: the clip shows that everything works, not what a model can do.")
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        animate(Path(folder), outputs)
    for path in outputs:
        found = probe(path)
        if (found.width, found.height, found.num_frames, found.fps) != (SIZE, SIZE, FRAMES, FPS):
            sys.exit(f"{path} is not what was asked for: {found}")
        print(f"{path}: {found.width} x {found.height}, {found.num_frames} frames, {found.fps} a second.")
    print(f"{time.perf_counter() - start:.0f} s in all. The noise is no fault: random weights, see above.")


if __name__ == "__main__":
    main()
