"""The face networks at full size against the original ones, on weights that `tiny.rule` makes.

The files beside this one hold outputs of facexlib 0.3.0 (RetinaFace on ResNet-50, BiSeNet) and consisid-eva-clip 1.0.2
(EVA02-CLIP-L/14 at 336 pixels), and names and shapes of the published weights. They outlive those packages.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from tolerances import assert_parity
from vivant.errors import LoadError
from vivant.faces.detect import RetinaFace, anchors
from vivant.faces.eva import EvaVisual, rotary_places
from vivant.faces.network import Network
from vivant.faces.parse import BiSeNet

HERE = Path(__file__).parent
NETWORKS = {"retinaface_resnet50": RetinaFace, "bisenet_parsing": BiSeNet, "eva02_clip_l_336_visual": EvaVisual}


def published(manifest: str) -> dict[str, Tensor]:
    """Tensors without values, by the names and shapes of the published file."""
    shapes = json.loads((HERE / f"{manifest}.json").read_text())["tensors"]
    integers = {name for name in shapes if name.endswith("num_batches_tracked")}
    return {
        name: torch.zeros(shape, dtype=torch.long) if name in integers else torch.empty(shape, device="meta")
        for name, shape in shapes.items()
    }


def network(manifest: str) -> Network:
    return NETWORKS[manifest].from_state(tiny.filled(published(manifest)))


def picture(height: int, width: int) -> Tensor:
    return tiny.noise(1, 3, height, width, seed=12)


@torch.no_grad()
def test_retinaface_is_the_original():
    golden = load_file(HERE / "retina.safetensors")
    seen = network("retinaface_resnet50")(picture(256, 320))
    assert seen.boxes.shape[1] == len(anchors(256, 320))
    for name, values in (("boxes", seen.boxes), ("scores", seen.scores), ("landmarks", seen.points)):
        assert_parity(values[:, ::7], golden[f"{name}_every_7"])


@torch.no_grad()
def test_bisenet_is_the_original():
    golden = load_file(HERE / "bisenet.safetensors")
    parser, x = network("bisenet_parsing"), picture(512, 512)
    assert_parity(parser(x)[:, :, ::16, ::16], golden["logits_every_16"])
    labels = parser.labels(x)[:, ::4, ::4]
    assert len(labels.unique()) > 3
    assert torch.equal(labels, golden["argmax_every_4"].to(labels.dtype))


@torch.no_grad()
def test_the_tower_is_the_original():
    golden = load_file(HERE / "eva.safetensors")
    tower = network("eva02_clip_l_336_visual")
    assert tower.size == 336
    seen = tower(picture(336, 336))
    assert_parity(seen.pooled, golden["pooled"])
    assert len(seen.hidden) == 5
    for i, hidden in enumerate(seen.hidden):
        assert hidden.shape == (1, 577, 1024)
        assert_parity(hidden[:, ::32, ::16], golden[f"hidden_{i}_every_32_16"])
        assert_parity(torch.stack([hidden.mean(), hidden.std()]), golden[f"hidden_{i}_mean_std"])


def test_positions_have_the_shape_of_the_published_tables():
    assert rotary_places(24).shape == (2, *published("eva02_clip_l_336_visual")["rope.freqs_cos"].shape)


@pytest.mark.parametrize("manifest", NETWORKS)
def test_what_does_not_fit_is_refused_by_name(manifest):
    state, cls = published(manifest), NETWORKS[manifest]
    whole = cls.from_state({cls.PREFIX + name: tensor for name, tensor in state.items()} | _others(cls))
    assert {name for name in state if ".rope." not in f".{name}"} == set(whole.state_dict())
    last = list(state)[-1]
    for wrong in (
        {name: tensor for name, tensor in state.items() if name != last},
        state | {"stranger.weight": torch.empty(1)},
        state | {last: torch.empty(3, 4, 5)},
        {"stranger.weight": torch.empty(1)},
        {},
    ):
        with pytest.raises(LoadError, match="E-KEYS-MISMATCH"):
            cls.from_state(wrong)


def _others(cls: type[Network]) -> dict[str, Tensor]:
    """What stands in the published file besides the network: CLIP's text tower."""
    return {"logit_scale": torch.ones(()), "text.token_embedding.weight": torch.ones(2, 3)} if cls is EvaVisual else {}
