"""What ConsisID's training shows to the network, piece by piece, against its formulas; and a short real run."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.exc import InvalidCxxCompiler

import tiny
import tiny_consisid
import tiny_faces
from tolerances import assert_parity
from train.world import make, write
from vivant import Portrait
from vivant.consisid.conditioning import Face
from vivant.consisid.transformer import Block, ConsisIDTransformer3DModel
from vivant.errors import InputError, MissingPackage
from vivant.faces.encoders import Encoders
from vivant.pocket.avatars import ACTIONS, AvatarClips, sample_setting, sentence, vocabulary
from vivant.schedulers import CogVideoXDPMScheduler
from vivant.text.t5 import encode, load_tokenizer
from vivant.train.consisid import (
    SCHEDULER,
    ConsisidLoss,
    ConsisidTask,
    Repository,
    check_fits,
    masked_mean,
    new_transformer,
    waves,
)
from vivant.train.loop import compile_blocks
from vivant.train.people import People, Seen, raw, shrunk
from vivant.train.recipe import open_consisid, read_recipe
from vivant.train.samples import Draws, collate, numpy_rng
from vivant.train.text import new_t5, train_t5_tokenizer

B, F, C, H, W, PATCHES = 3, 3, 4, 6, 10, 7
ABAR = CogVideoXDPMScheduler.from_config(SCHEDULER).solver.signal.float()


def task(**loss) -> ConsisidTask:
    """Training of a small network of its own that does something already."""
    own = copy.deepcopy(tiny_consisid.parts(**tiny_faces.TRANSFORMER))
    text = tiny_consisid.text_parts()
    seen = Seen(own["vae"], tiny_faces.seeing())
    encoder = copy.deepcopy(text["text_encoder"])
    parts = Repository(seen, encoder, text["tokenizer"], own["transformer"], Path("nowhere"))
    return ConsisidTask(parts, ConsisidLoss(**loss), (), 9)


def batch(num: int = B) -> dict[str, Any]:
    """Stored latents without deviation, so that nothing but the task draws."""
    mask = torch.zeros(num, F, H, W)
    mask[0, :, 1:3, 2:5], mask[1, 1] = 1.0, 0.5  # the third clip shows no face
    return {
        "n": torch.arange(num),
        "mean": tiny.noise(num, F, C, H, W, seed=2),
        "deviation": torch.zeros(num, F, C, H, W),
        "picture_mean": tiny.noise(num, 1, C, H, W, seed=3),
        "picture_deviation": torch.zeros(num, 1, C, H, W),
        "mask": mask[:num],
        "id_cond": tiny.noise(num, tiny_faces.TRANSFORMER["LFE_id_dim"], seed=4),
        "hidden": tiny.noise(num, 5, PATCHES, tiny_faces.WIDTH, seed=5),
        "caption": ("a sea", "sea", "old")[:num],
    }


def seen(learner: ConsisidTask, monkeypatch: pytest.MonkeyPatch, seed: int = 0, num: int = B) -> dict[str, Any]:
    """What the network is shown in one evaluation, and the numbers of the loss."""
    caught: dict[str, Any] = {}

    def predict(self, x, text, modulations, places, identity):
        caught.update(x=x, text=text)
        return torch.zeros_like(x[:, :, :C])

    def read_identity(self, id_cond, id_vit_hidden):
        caught.update(id_cond=id_cond, hidden=torch.stack(list(id_vit_hidden), dim=1))
        return ()

    def modulate(self, timesteps):
        caught["timesteps"] = timesteps.long()

    for method in (predict, read_identity, modulate):
        monkeypatch.setattr(ConsisIDTransformer3DModel, method.__name__, method)
    return {**learner.losses(batch(num), Draws(seed, range(num)), torch.float32), **caught}


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The noise that the task draws, and what comes after it."""
    draws = Draws(seed, range(B))
    draws.normal((F, C, H, W))  # of the clip's latents
    draws.normal((1, C, H, W))  # of the picture's
    draws.uniform()  # the timestep
    return draws.normal((F, C, H, W)), draws.uniform()


def test_the_network_sees_noise_the_picture_on_the_first_frame_and_the_face(monkeypatch):
    given = seen(task(drop_text=0.0), monkeypatch)
    x0, (eps, _) = batch()["mean"], drawn()
    abar = ABAR[given["timesteps"]].view(-1, 1, 1, 1, 1)
    assert torch.allclose(given["x"][:, :, :C], abar.sqrt() * x0 + (1 - abar).sqrt() * eps, atol=1e-6)
    assert torch.equal(given["x"][:, 0, C:], batch()["picture_mean"][:, 0])
    assert (given["x"][:, 1:, C:] == 0).all()
    assert torch.equal(given["id_cond"], batch()["id_cond"])
    assert torch.equal(given["hidden"], batch()["hidden"])
    velocity = abar.sqrt() * eps - (1 - abar).sqrt() * x0
    assert torch.allclose(given["whole"], velocity.square().flatten(1).mean(1), rtol=1e-5)  # the stand-in predicts 0


def test_at_the_last_timestep_nothing_of_the_clip_is_left():
    assert ABAR[-1] == 0
    assert 0.9 < ABAR[0] < 1


def test_half_of_the_clips_count_where_the_face_is_only(monkeypatch):
    learner, masked, total = task(), 0, 0
    for seed in range(60):
        given = seen(learner, monkeypatch, seed=seed, num=2)  # of two clips, whose face is not everywhere
        is_face = torch.isclose(given["loss"], given["face"]) & ~torch.isclose(given["loss"], given["whole"])
        assert (is_face | torch.isclose(given["loss"], given["whole"])).all()
        masked, total = masked + int(is_face.sum()), total + 2
    assert 0.35 * total < masked < 0.65 * total


def test_errors_are_averaged_over_the_face():
    errors, mask = tiny.noise(B, F, C, H, W, seed=9).square(), batch()["mask"]
    found = masked_mean(errors, mask)
    assert torch.allclose(found[0], errors[0, :, :, 1:3, 2:5].mean())
    assert torch.allclose(found[1], errors[1, 1].mean())
    assert torch.allclose(found[2], errors[2].mean())  # no face: all of it


def test_captions_faces_and_pictures_are_dropped_as_often_as_asked(monkeypatch):
    learner = task(drop_text=0.2, drop_face=0.3, drop_picture=0.5)
    words, _ = encode(learner.parts.tokenizer, learner.parts.text_encoder, [""], tiny_consisid.WORDS)
    empty = learner.parts.transformer.read_text(words)
    text = face = picture = 0
    for seed in range(60):
        given = seen(learner, monkeypatch, seed=seed)
        text += int(torch.isclose(given["text"], empty, atol=1e-6).flatten(1).all(1).sum())
        no_face = (given["id_cond"] == 0).all(1)
        assert torch.equal(no_face, (given["hidden"].flatten(1) == 0).all(1))
        no_picture = (given["x"][:, :, C:].flatten(1) == 0).all(1)
        assert (no_picture | ~no_face).all()
        face, picture = face + int(no_face.sum()), picture + int((no_picture & ~no_face).sum())
    assert 20 < text < 55  # 36 of 180
    assert 36 < face < 74  # 54 of 180
    assert 42 < picture < 84  # 63 of 180


def test_high_noise_can_come_more_often(monkeypatch):
    mean = {}
    for skew in (1.0, 3.0):
        learner = task(skew=skew)
        mean[skew] = np.mean([seen(learner, monkeypatch, seed=s)["timesteps"].float().mean() for s in range(40)])
    assert 440 < mean[1.0] < 560
    assert 700 < mean[3.0] < 800  # 1000 (1 - 1/4)


@pytest.mark.parametrize("train_text", [False, True])
def test_what_learns(train_text):
    learner = task(train_text=train_text)
    parts = {"transformer", "text_encoder"} if train_text else {"transformer"}
    assert {name.split(".")[0] for name in learner.weights} == parts
    learner.losses(batch(), Draws(0, range(B)), torch.float32)["loss"].sum().backward()
    reached = [name for name, p in learner.weights.items() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(reached) > 0.9 * len(learner.weights)
    for frozen in (learner.parts.seen.vae, *([] if train_text else [learner.parts.text_encoder])):
        assert all(p.grad is None for p in frozen.parameters())


def test_a_new_network_predicts_nothing_yet_and_all_of_it_can_learn():
    torch.manual_seed(0)
    network = new_transformer(**{**tiny_consisid.TRANSFORMER, **tiny_faces.TRANSFORMER})
    hidden = list(batch()["hidden"].unbind(1))
    x, text = tiny.noise(B, F, 2 * C, H, W), tiny_consisid.text(B)
    out = network(x, text, 500, id_cond=batch()["id_cond"], id_vit_hidden=hidden).sample
    assert (out == 0).all()
    assert network.transformer_blocks[0].attn1.to_q.weight.std() > 0


def test_every_place_of_a_new_network_has_a_row_of_its_own():
    """Its rotary angles tell where tokens lie to each other; where they lie in the picture, only this table does."""
    rows = waves((3, 4, 5), 50)
    assert rows.shape == (60, 50)
    assert (torch.cdist(rows, rows) + 9 * torch.eye(60)).min() > 0.5
    assert (rows[:, -2:] == 0).all()
    assert torch.equal(rows[5, :8], rows[0, :8])  # a row lower: frame and column stay
    assert torch.equal(rows[5, 16:24], rows[0, 16:24])
    assert not torch.equal(rows[5, 8:16], rows[0, 8:16])
    network = new_transformer(**{**tiny_consisid.TRANSFORMER, **tiny_faces.TRANSFORMER})
    table, words = network.patch_embed.pos_embedding[0], network.settings.max_text_seq_length
    assert (table[:words] == 0).all()
    assert torch.equal(table[words:], waves(network.settings.grid, network.settings.num_channels))


def test_a_vocabulary_is_learnt_from_sentences(tmp_path):
    """Words that come often are one token, and no word is unknown."""
    rng = np.random.default_rng(0)
    said = [sentence(ACTIONS[i % len(ACTIONS)], sample_setting(rng), rng) for i in range(200)]
    train_t5_tokenizer(said, tmp_path, 32)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.tokenize("a person") == ["▁a", "▁person"]
    lengths = [len(tokenizer(text)["input_ids"]) for text in said]
    assert max(lengths) <= 24
    assert not any(tokenizer.unk_token_id in tokenizer(word)["input_ids"] for word in vocabulary())
    encoder = new_t5(tokenizer, 12, d_kv=6, d_ff=20, num_layers=1, num_heads=2)
    assert encoder.get_input_embeddings().weight.shape == (len(tokenizer), 12)


def test_a_latent_is_as_much_face_as_its_pixels():
    mask = torch.zeros(2, 9, 24, 40, dtype=torch.bool)
    mask[0, 0, :8, 8:16] = True
    mask[1, 1:5, 8:12, :8] = True
    found = shrunk(mask, 3, 8)
    assert found.shape == (2, 3, 3, 5)
    assert found[0, 0, 0, 1] == 1
    assert found[0].sum() == 1
    assert found[1, 1, 1, 0] == 0.5
    assert found[1].sum() == 0.5
    assert shrunk(mask[:, :1], 1, 8).shape == (2, 1, 3, 5)


def test_a_face_is_seen_as_a_photo_s_crop_is():
    encoders = tiny_faces.seeing()
    clip = AvatarClips(4, 9, 64).read(1, np.random.default_rng(0))
    identity, hidden = Seen(tiny_consisid.parts()["vae"], encoders).face(clip.crop, clip.portrait)
    crop = torch.from_numpy(clip.crop).permute(2, 0, 1) / 255
    grey = (0.299 * crop[0] + 0.587 * crop[1] + 0.114 * crop[2]).expand(3, -1, -1)
    pooled = encoders.see(grey).pooled[0]
    assert torch.allclose(identity[-len(pooled) :], pooled / pooled.norm(), atol=1e-5)
    assert hidden.shape == (5, tiny_faces.PATCHES, tiny_faces.WIDTH)
    other = AvatarClips(4, 9, 64).read(2, np.random.default_rng(0))
    assert (Seen(tiny_consisid.parts()["vae"], encoders).face(other.crop, other.portrait)[0] - identity).norm() > 0.05


@pytest.mark.parametrize(
    ("changes", "size", "num_frames", "word"),
    [
        ({}, (48, 80), 17, "sample_frames"),
        ({}, (80, 48), 9, "sample_height"),
        ({"in_channels": 6}, (48, 80), 9, "in_channels"),
        ({"LFE_id_dim": 31}, (48, 80), 9, "31"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, size, num_frames, word):
    parts = task().parts
    face = Face(batch()["id_cond"][:1], tuple(batch()["hidden"][:1].unbind(1)))
    check_fits(parts, face, (48, 80), 9)
    network = ConsisIDTransformer3DModel.from_config({**parts.transformer.config, **changes})
    with pytest.raises(InputError, match=word):
        check_fits(replace(parts, transformer=network), face, size, num_frames)


has_compiler = any(map(shutil.which, ("c++", "g++", "clang++", "cl")))


@pytest.mark.compile
@pytest.mark.skipif(not has_compiler, reason="there is no C++ compiler")
def test_compiled_blocks_learn_the_same_and_film_as_they_are_written():
    plain, compiled = task(), task()
    counters.clear()
    compile_blocks(compiled.parts.transformer, (Block,))
    gradients: list[dict[str, torch.Tensor]] = []
    for learner in (plain, compiled):
        learner.losses(batch(), Draws(0, [0, 1, 2], "cpu"), torch.float32)["loss"].sum().backward()
        gradients.append({name: p.grad for name, p in learner.weights.items() if p.grad is not None})
    assert counters["stats"]["unique_graphs"] > 0
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_parity(gradients[1][name], gradient)
    with torch.no_grad():
        losses = [
            learner.losses(batch(), Draws(0, [0, 1, 2], "cpu"), torch.float32)["loss"] for learner in (plain, compiled)
        ]
    assert torch.equal(*losses)


@pytest.mark.compile
@pytest.mark.skipif(not has_compiler, reason="there is no C++ compiler")
def test_a_machine_that_cannot_compile_says_so_at_the_first_step(monkeypatch):
    def refuse(*args, **kwargs):
        raise InvalidCxxCompiler

    learner = task()
    compile_blocks(learner.parts.transformer, (Block,))
    torch.compiler.reset()
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", refuse)
    with pytest.raises(MissingPackage) as caught:
        learner.losses(batch(), Draws(0, [0, 1, 2], "cpu"), torch.float32)
    assert caught.value.code == "E-COMPILE"


# ------------------------------------------------------------------------------------------------------ real runs

TRAINING = (
    "[training]\nsteps = 4\nbatch = 2\nlearning_rate = 2e-3\nworkers = 0\nsample_every = 0\nprecision = 'float32'\n"
)
CLIPS = "[[data]]\nkind = 'avatars'\nnum = 6\nsize = [32, 32]\nnum_frames = 9\n"
VAE = """[model.config]
block_out_channels = [4, 8, 8]
down_block_types = ["CogVideoXDownBlock3D", "CogVideoXDownBlock3D", "CogVideoXDownBlock3D"]
up_block_types = ["CogVideoXUpBlock3D", "CogVideoXUpBlock3D", "CogVideoXUpBlock3D"]
layers_per_block = 1
latent_channels = 3
norm_num_groups = 4
sample_height = 32
sample_width = 32
[loss]
crop = 16
[samples]
num = 1
"""
MODEL = """[model]
vae = "vae/export"
faces = "faces"
{}
[model.text]
d_kv = 6
d_ff = 20
num_layers = 1
num_heads = 2
[model.config]
num_attention_heads = 3
attention_head_dim = 16
in_channels = 6
out_channels = 3
time_embed_dim = 20
text_embed_dim = 12
num_layers = 2
sample_width = 8
sample_height = 8
sample_frames = 9
max_text_seq_length = 60
is_train_face = true
cross_attn_dim_head = 10
cross_attn_num_heads = 2
LFE_id_dim = 29
LFE_vit_dim = 64
LFE_depth = 5
LFE_dim_head = 6
LFE_num_heads = 2
LFE_num_id_token = 3
LFE_num_querie = 4
LFE_output_dim = 32
LFE_ff_mult = 1
[loss]
train_text = true
[samples]
num = 1
"""
STORED = 'latents = "latents"'


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds face encoders and a trained autoencoder of videos."""
    folder = tmp_path_factory.mktemp("people")
    tiny_faces.write(folder / "faces")
    values = make(folder, "video-vae", "vae", TRAINING + CLIPS + VAE)["values"]
    assert 0 < values["psnr"] < 40
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A ConsisID trained with them, from latents that were encoded once."""
    return Path(make(folder, "consisid", "stored", TRAINING + CLIPS + MODEL.format(STORED))["output"])


def test_the_result_films_people(folder: Path, trained: Path):
    """It loads as a published repository, and knows the faces of photos by its own encoders."""
    seen = open_consisid(trained).seen
    clip = AvatarClips(6, 9, 32).read(0, numpy_rng(1, 0))
    identity, hidden = seen.face(clip.crop, clip.portrait)
    face = Face(identity[None], tuple(states[None] for states in hidden))
    made = Portrait.from_pretrained(trained).film(clip.crop, clip.caption, identity=face, num_inference_steps=2)
    assert made.clips[0].shape == (9, 32, 32, 3)
    assert Encoders.from_pretrained(trained).vision.size == 24
    assert (folder / "stored" / "samples" / "00000004.png").is_file()


def test_a_run_is_resumed_bit_for_bit(folder: Path, trained: Path):
    text = TRAINING + CLIPS + MODEL.format(STORED)
    make(folder, "consisid", "cut", text, "--steps", "2")
    make(folder, "consisid", "cut", text, "--resume")
    one, other = (
        (folder / name / "export/transformer/diffusion_pytorch_model.safetensors").read_bytes()
        for name in ("stored", "cut")
    )
    assert one == other


def test_another_run_begins_where_one_ended(folder: Path, trained: Path):
    text = TRAINING + CLIPS + '[model]\nstart = "stored/export"\n[samples]\nnum = 1\n'
    output = Path(make(folder, "consisid", "further", text)["output"])
    assert (output / "face_encoder/models/antelopev2/glintr100.onnx").is_file()


def test_blocks_are_compiled_where_the_recipe_asks_for_it(folder: Path, monkeypatch):
    seen: list[str] = []

    def compiled(function, **options):
        seen.append(type(function.__self__).__name__)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    make(folder, "consisid", "compiled", TRAINING + CLIPS + MODEL.format(f"{STORED}\ncompiled = true"))
    assert seen == ["Block", "Block"]


def test_what_is_stored_is_what_would_be_seen(folder: Path, trained: Path):
    parts = open_consisid(trained)
    clip = AvatarClips(6, 9, 32).read(4, numpy_rng(0, 4))
    fresh = parts.seen.clips(collate([raw(clip)]))
    stored = People(folder / "latents", 6).read(4, numpy_rng(0, 4))
    assert stored["caption"] == clip.caption
    for name, value in fresh.items():
        assert torch.allclose(stored[name], value[0], rtol=1e-2, atol=1e-2), name
    assert fresh["mask"].mean() > 0.05


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("kind = 'avatars'\nnum = 6", "kind = 'films'\nfolder = 'x'"), "avatars"),
        (('faces = "faces"\n', ""), "either start or"),
        (("[loss]\n", "[loss]\nmask = 2.0\n"), "mask"),
        (("[loss]\n", "[loss]\nnoise = 1\n"), "noise"),
        (("size = [32, 32]", "size = [32, 48]"), "squares"),
        (("train_text = true", "skew = 0.5"), "skew"),
        (("num = 6\n", "num = 6\nstyle = 'neon'\n"), "style"),
    ],
)
def test_recipes_are_refused_before_anything_is_read(tmp_path, change, word):
    text = (TRAINING + CLIPS + MODEL.format(STORED)).replace(*change)
    with pytest.raises(InputError, match=word):
        read_recipe("consisid", write(tmp_path / "recipe.toml", text))
