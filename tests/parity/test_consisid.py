"""ConsisID's transformer against diffusers and against the published tensor names."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers import consisid_transformer_3d as port
from diffusers.pipelines.consisid.pipeline_consisid import get_resize_crop_region_for_grid

import tiny
import tiny_consisid as small
from tolerances import assert_parity, relative_l2
from vivant.consisid.identity import LocalFacialExtractor, PerceiverCrossAttention
from vivant.consisid.positions import crop_region, rotary_table
from vivant.consisid.transformer import ConsisIDTransformer3DModel
from vivant.errors import InputError

CPU = torch.device("cpu")


def pair(**changes):
    """The port and ours with the same weights."""
    config = {**small.TRANSFORMER, **changes}
    oracle = tiny.fill(port.ConsisIDTransformer3DModel.from_config(config))
    ours = ConsisIDTransformer3DModel.from_config(config).eval()
    ours.load_state_dict(oracle.state_dict())
    return oracle, ours


def angles(num_frames: int, height: int, width: int):
    """The port's tables for a grid of tokens."""
    crop = get_resize_crop_region_for_grid((height, width), small.WIDTH // 2, small.HEIGHT // 2)
    return get_3d_rotary_pos_embed(16, crop, (height, width), num_frames)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"attention_bias": False}, {"norm_eps": 1e-3}, {"is_train_face": False}])
def test_transformer_equals_the_port(changes):
    oracle, ours = pair(**changes)
    people = small.face() if changes.get("is_train_face", True) else {}
    rotary = angles(3, 3, 5)
    times = torch.tensor([999, 20])
    theirs = oracle(small.latents(), small.text(), times, image_rotary_emb=rotary, **people).sample
    assert_parity(ours(small.latents(), small.text(), times, **people).sample, theirs)
    given = ours(small.latents(), small.text(), times, image_rotary_emb=rotary, return_dict=False, **people)
    assert_parity(given[0], theirs)


def test_transformer_equals_the_port_where_it_is_differentiated():
    oracle, ours = pair()
    grads = []
    for model, rotary in ((oracle, angles(3, 3, 5)), (ours, None)):
        x = small.latents().requires_grad_()
        out = model(x, small.text(), torch.tensor(311).expand(2), image_rotary_emb=rotary, **small.face()).sample
        (out * tiny.noise(*out.shape, seed=9)).sum().backward()
        grads.append((x.grad, model.transformer_blocks[0].norm1.linear.weight.grad, model.patch_embed.proj.weight.grad))
    for mine, theirs in zip(grads[1], grads[0], strict=True):
        assert_parity(mine, theirs)


@torch.no_grad()
def test_half_precision_is_as_close_as_the_port():
    oracle, ours = pair()
    rotary, times = angles(3, 3, 5), torch.tensor([640, 640])
    exact = oracle(small.latents(), small.text(), times, image_rotary_emb=rotary, **small.face()).sample
    oracle, ours = oracle.bfloat16(), ours.bfloat16()
    inputs = small.latents().bfloat16(), small.text().bfloat16(), times
    people = small.to(small.face(), torch.bfloat16)
    theirs = relative_l2(oracle(*inputs, image_rotary_emb=rotary, **people).sample, exact)
    mine = relative_l2(ours(*inputs, **people).sample, exact)
    assert 0 < mine <= 1.1 * theirs


@torch.no_grad()
def test_facial_extractor_and_folded_attention_equal_the_port():
    oracle, ours = pair()
    people, video = small.face(), tiny.noise(2, 17, 48, seed=6)
    tokens = oracle.local_facial_extractor(people["id_cond"], people["id_vit_hidden"])
    assert isinstance(ours.local_facial_extractor, LocalFacialExtractor)
    assert_parity(ours.local_facial_extractor(people["id_cond"], people["id_vit_hidden"]), tokens)
    theirs, mine = oracle.perceiver_cross_attention[1], ours.perceiver_cross_attention[1]
    assert isinstance(mine, PerceiverCrossAttention)
    assert_parity(mine(video, mine.fold(tokens, 0.7)), 0.7 * theirs(tokens, video))
    one = mine(video, mine.fold(tokens[1:], 1.0))
    assert_parity(one, theirs(tokens[1:].expand(2, -1, -1), video))


@torch.no_grad()
def test_people_of_a_batch_are_not_mixed():
    _, ours = pair()
    x, text, people = small.latents(), small.text(4), small.face()
    x = x.repeat(2, 1, 1, 1, 1)
    together = ours(x, text, 500, **people).sample
    for row in range(4):
        alone = {
            "id_cond": people["id_cond"][row % 2, None],
            "id_vit_hidden": [h[row % 2, None] for h in people["id_vit_hidden"]],
        }
        assert_parity(together[row, None], ours(x[row, None], text[row, None], 500, **alone).sample)


@torch.no_grad()
def test_more_layers_than_whole_intervals():
    _, ours = pair(num_layers=4)
    odd = ConsisIDTransformer3DModel.from_config({**small.TRANSFORMER, "num_layers": 5})
    assert len(odd.perceiver_cross_attention) == 3
    assert ours(small.latents(), small.text(), 1, **small.face()).sample.shape == (2, 3, 4, 6, 10)
    assert tiny.fill(odd)(small.latents(), small.text(), 1, **small.face()).sample.isfinite().all()


@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (2, 9), (7, 3), (30, 45)])
def test_rotary_tables_equal_the_port(grid):
    assert crop_region(grid, (3, 5)) == get_resize_crop_region_for_grid(grid, 5, 3)
    ours, theirs = rotary_table(16, (4, *grid), (3, 5), CPU), angles(4, *grid)
    assert torch.equal(ours.real.repeat_interleave(2, dim=1), theirs[0])
    assert torch.equal(ours.imag.repeat_interleave(2, dim=1), theirs[1])


def test_published_names_and_shapes():
    golden = Path(__file__).parents[1] / "golden"
    config = json.loads((golden / "configs.json").read_text())["consisid_transformer"]
    config.pop("inferred", None)
    published = json.loads((golden / "consisid_transformer.json").read_text())["tensors"]
    with torch.device("meta"):
        model = ConsisIDTransformer3DModel.from_config(config)
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == published


@torch.no_grad()
def test_the_published_size_runs_on_meta():
    config = json.loads((Path(__file__).parents[1] / "golden" / "configs.json").read_text())["consisid_transformer"]
    config.pop("inferred", None)
    with torch.device("meta"):
        model = ConsisIDTransformer3DModel.from_config(config).bfloat16()
        x, text = torch.empty(2, 13, 32, 60, 90).bfloat16(), torch.empty(2, 226, 4096).bfloat16()
        people = {"id_cond": torch.empty(1, 1280), "id_vit_hidden": [torch.empty(1, 577, 1024) for _ in range(5)]}
        out = model(x, text, 999, **people).sample
    assert out.shape == (2, 13, 16, 60, 90)
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"LFE_output_dim": 30}, "E-CONFIG-VALUE"),
        ({"LFE_depth": 5}, "E-CONFIG-VALUE"),
        ({"attention_head_dim": 24}, "E-CONFIG-VALUE"),
        ({"patch_size": 4}, "E-CONFIG-VALUE"),
        ({"patch_size_t": 2}, "E-CONFIG-UNKNOWN"),
        ({"ofs_embed_dim": 512}, "E-CONFIG-UNKNOWN"),
        ({"use_rotary_positional_embeddings": False}, "E-CONFIG-VALUE"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(changes, code):
    with pytest.raises(InputError) as refused:
        ConsisIDTransformer3DModel.from_config({**small.TRANSFORMER, **changes})
    assert refused.value.code == code
