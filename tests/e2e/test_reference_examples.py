"""The examples of the reference page, word for word but for the name of the library, on small repositories.

`reference/` holds the pages' blocks of code as they stand there. Hub ids are answered from a prepared cache and
addresses by a photograph at hand; the settings are the pages' own: 50 steps, 16 or 49 frames, guidance, half precision
where asked.
"""

import doctest
import io
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from skimage import data

import tiny
import tiny_consisid as small
import tiny_faces
import tiny_repo
from vivant import ConsisIDPipeline, PIAPipeline
from vivant.errors import VivantWarning
from vivant.media import fetch
from vivant.media.video import probe, read_clip

FOLDER = Path(__file__).parent / "reference"
# What Stable Diffusion 1.5 ships with: betas that PIA was not trained with, which a warning says.
SCHEDULER = {
    **tiny.SCHEDULER,
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A hub cache with small repositories under the names that the examples use."""
    folder = tmp_path_factory.mktemp("hub")
    sources = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as narrower:  # three times fifty steps of sixteen frames
        for config, layers in ((tiny.UNET2D, "layers_per_block"), (tiny.ADAPTER, "motion_layers_per_block")):
            narrower.setitem(config, "block_out_channels", [8, 16])
            narrower.setitem(config, layers, 1)
        adapter = tiny_repo.write_adapter(sources / "adapter")
        base = tiny_repo.write_base(sources / "base", scheduler=SCHEDULER)
    tiny_repo.into_cache(folder, "openmmlab/PIA-condition-adapter", adapter)
    tiny_repo.into_cache(folder, "SG161222/Realistic_Vision_V6.0_B1_noVAE", base)
    return folder


def code(name: str) -> str:
    """A block of the page; prompts of an interactive session are taken off, as doctest does."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    if text.startswith(">>>"):
        text = "".join(example.source for example in doctest.DocTestParser().get_examples(text))
    swapped = text.replace("from diffusers", "from vivant")
    changed = [line for line, old in zip(swapped.splitlines(), text.splitlines(), strict=True) if line != old]
    assert len(changed) == 2
    assert all(line.startswith("from vivant") for line in changed)
    assert "diffusers import" not in swapped
    return swapped


@pytest.mark.parametrize(
    ("name", "file", "dtype", "num_calls", "warned"),
    [
        ("pia.txt", "pia-animation.gif", torch.float16, 50, {"W-SOLVER-BETAS", "W-CPU-FLOAT16", "W-OFFLOAD-CPU"}),
        (
            "freeinit.txt",
            "pia-freeinit-animation.gif",
            torch.float32,
            16 + 33 + 50,
            {"W-SOLVER-BETAS"},
        ),
        ("call.txt", "pia-animation.gif", torch.float16, 50, {"W-SOLVER-BETAS", "W-CPU-FLOAT16"}),
    ],
)
def test_an_example_runs_as_it_stands(cache, tmp_path, monkeypatch, name, file, dtype, num_calls, warned):
    asked: list[str] = []

    def photograph(url: str, **options: object) -> bytes:
        asked.append(url)
        encoded = io.BytesIO()
        Image.fromarray(data.astronaut()).save(encoded, "PNG")
        return encoded.getvalue()

    monkeypatch.setattr(fetch, "fetch", photograph)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with pytest.warns(VivantWarning) as warnings:
        exec(compile(code(name), name, "exec"), namespace)

    assert {str(w.message).partition("]")[0][1:] for w in warnings if isinstance(w.message, VivantWarning)} == warned
    assert [url.partition("?")[0].rpartition("/")[2] for url in asked] == ["cat_6.png"]
    pipe, frames = namespace["pipe"], namespace["frames"]
    assert type(pipe) is PIAPipeline
    assert pipe.dtype == pipe.unet.dtype == dtype
    assert pipe.num_timesteps == num_calls
    assert [frame.size for frame in frames] == [(64, 64)] * 16
    assert [path.name for path in tmp_path.iterdir()] == [file]
    with Image.open(tmp_path / file) as gif:
        assert (gif.format, gif.size, gif.n_frames) == ("GIF", (64, 64), 16)
        assert gif.info["duration"] == 100
        gif.seek(15)
        assert len(gif.convert("RGB").getcolors(64 * 64)) > 16


def filming() -> str:
    """ConsisID's example on the CPU."""
    text = (FOLDER / "consisid.txt").read_text(encoding="utf-8").replace("cuda", "cpu")
    code = "".join(example.source for example in doctest.DocTestParser().get_examples(text))
    return code.replace("from diffusers", "from vivant")


def test_consisid_s_example_films_the_person_in_a_photo(tmp_path, monkeypatch):
    """All of it: the repository is answered from a prepared folder, the photo's address by a photograph at hand."""
    prepared = tiny_faces.write(tmp_path / "prepared")
    pipe = small.pipeline(sample_frames=49, max_text_seq_length=226, is_kps=True, **tiny_faces.TRANSFORMER)
    pipe.save_pretrained(prepared)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    portrait, asked = io.BytesIO(), list[str]()
    Image.fromarray(data.astronaut()).save(portrait, "PNG")
    monkeypatch.setattr(fetch, "fetch", lambda url: asked.append(url) or portrait.getvalue())

    def snapshot_download(repo_id: str, local_dir: str) -> None:
        asked.append(repo_id)
        shutil.copytree(prepared, local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with pytest.warns(VivantWarning) as warnings:
        exec(compile(filming(), "consisid.txt", "exec"), namespace)

    assert {str(w.message).partition("]")[0][1:] for w in warnings if isinstance(w.message, VivantWarning)} == {
        "W-PROMPT-TRUNCATED",  # the small tokenizer has letters where the real one has words
    }
    assert asked[0] == "BestWishYsh/ConsisID-preview"
    assert [url.partition("?")[0].rpartition("/")[2] for url in asked[1:]] == ["consisid_input.png"]
    assert namespace["id_cond"].dtype == torch.bfloat16
    assert namespace["id_cond"].shape == (1, 29)
    assert [hidden.shape for hidden in namespace["id_vit_hidden"]] == [(1, 10, 64)] * 5
    assert (namespace["image"].size, namespace["face_kps"].shape) == ((512, 512), (5, 2))
    pipe, video = namespace["pipe"], namespace["video"]
    assert type(pipe) is ConsisIDPipeline
    assert pipe.dtype == pipe.transformer.dtype == torch.bfloat16
    assert pipe.num_timesteps == 50
    assert [frame.size for frame in video.frames[0]] == [(80, 48)] * 49
    seen = probe("output.mp4")
    assert (seen.codec, seen.width, seen.height, seen.num_frames, seen.fps) == ("h264", 80, 48, 49, 8)
    assert read_clip("output.mp4")[0].std() > 5


def test_the_page_s_examples_are_all_here():
    assert sorted(path.name for path in FOLDER.iterdir()) == ["call.txt", "consisid.txt", "freeinit.txt", "pia.txt"]
