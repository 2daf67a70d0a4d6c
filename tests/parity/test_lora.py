"""LoRA in every layout: the network is diffusers' with the same differences added to its weights by hand."""

import copy
from functools import cache

import diffusers
import pytest
import torch
from safetensors.torch import save_file

import tiny
import tiny_lora
import tiny_pia
import tiny_repo
from tolerances import TOLERANCES, assert_parity, relative_l2
from vivant.lora.change import Hadamard, Kronecker, LowRank


@pytest.fixture
def pipe():
    pipe = tiny_pia.pipeline()
    yield pipe
    pipe.unload_lora_weights()


@cache
def oracle():
    """The oracle's networks, the same objects at every call."""
    base = tiny.fill(diffusers.UNet2DConditionModel(**tiny_repo.public(tiny.UNET2D)))
    adapter = tiny.fill(diffusers.MotionAdapter(**tiny_repo.public(tiny.ADAPTER)))
    return {
        "unet": diffusers.UNetMotionModel.from_unet2d(base, adapter).eval(),
        "text_encoder": tiny_repo.text_encoder(),
    }


@torch.no_grad()
def assert_same(pipe, deltas, strength=1.0):
    """Ours, changed, and the oracle's with differences added to its weights for the time being."""
    x, ids = tiny_lora.inputs()
    text = tiny.noise(1, tiny.TOKENS, tiny.TEXT_DIM, seed=1)
    own = {part: dict(network.named_parameters()) for part, network in oracle().items()}
    places = {key: own[key[0]].get(key[1], own[key[0]].get(f"text_model.{key[1]}")) for key in deltas}
    kept = {key: place.clone() for key, place in places.items()}
    for key, place in places.items():
        place.add_(strength * deltas[key])
    theirs = oracle()["unet"](x, 500, text.repeat(x.shape[2], 1, 1)).sample, oracle()["text_encoder"](ids)[0]
    for key, place in places.items():
        place.copy_(kept[key])
    assert_parity(pipe.unet(x, 500, text).sample, theirs[0])
    assert_parity(pipe.text_encoder(ids)[0], theirs[1])


@pytest.mark.parametrize(
    ("name", "suffix"), [*((name, "safetensors") for name in tiny_lora.LAYOUTS), ("motion", "bin"), ("kohya", "bin")]
)
def test_every_layout(pipe, name, suffix, tmp_path):
    written = tiny_lora.LAYOUTS[name](pipe.components)
    path = tmp_path / f"pytorch_lora_weights.{suffix}"
    if suffix == "safetensors":
        save_file({k: v.contiguous() for k, v in written.tensors.items()}, path, metadata=written.metadata)
    else:
        torch.save({"state_dict": written.tensors} if name == "motion" else written.tensors, path)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(tmp_path)
    changed = {name for name, value in pipe.unet.state_dict().items() if not value.equal(before[name])}
    assert changed == {name for component, name in written.deltas if component == "unet"}
    assert_same(pipe, written.deltas)


def test_every_number_of_a_strength_counts(pipe):
    written = tiny_lora.kohya(pipe.components)
    pipe.load_lora_weights(written.tensors, adapter_name="a")
    for strength in (0.5, -1.3):
        pipe.set_adapters("a", strength)
        assert_same(pipe, written.deltas, strength)


def test_bfloat16_is_rounded_once(pipe):
    """Merged from the untouched weight each time, in float32."""
    pipe = copy.deepcopy(pipe)  # its networks are shared with other tests
    written = tiny_lora.locon(pipe.components)
    pipe.to(torch.bfloat16)
    own = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(written.tensors, adapter_name="a")
    pipe.set_adapters("a", 0.37)
    for (_, name), delta in written.deltas.items():
        due = own[name].float() + 0.37 * delta
        now = pipe.unet.get_parameter(name)
        assert now.dtype == torch.bfloat16
        assert (now.float() - due).abs().max() <= due.abs().max() / 256
        assert relative_l2(now, due.bfloat16()) < 1e-4, "rounded twice"


def test_the_changes_are_their_formulas():
    """Against products spelt out entry by entry."""
    weight, r = torch.zeros(4, 6), 3
    a, b = tiny.noise(r, 6, seed=1), tiny.noise(4, r, seed=2)
    by_hand = torch.tensor([[sum(b[o, k] * a[k, i] for k in range(r)) for i in range(6)] for o in range(4)])
    torch.testing.assert_close(LowRank(a, b, scale=0.5).delta(weight, 3), 1.5 * by_hand)
    c, d = tiny.noise(r, 6, seed=3), tiny.noise(4, r, seed=4)
    torch.testing.assert_close(Hadamard(b, a, d, c, scale=2).delta(weight, 1), 2 * by_hand * (d @ c))
    w1, w2 = tiny.noise(2, 3, seed=5), tiny.noise(2, 2, seed=6)
    entries = [[w1[o // 2, i // 2] * w2[o % 2, i % 2] for i in range(6)] for o in range(4)]
    torch.testing.assert_close(Kronecker(w1=w1, w2=w2).delta(weight, 1), torch.tensor(entries))
    assert TOLERANCES[torch.float32].peak <= 1e-4
