"""Weights that are in memory only while they are used: pages of files on the CPU, copies on an accelerator."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tiny
import tiny_consisid as small
import tiny_pia
from vivant import placement
from vivant.consisid import generate
from vivant.consisid.transformer import ConsisIDTransformer3DModel
from vivant.errors import InputError
from vivant.hub.load import read_weights
from vivant.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from vivant.pipelines.pia import PIAPipeline
from vivant.placement import MemoryPolicy, active, pages
from vivant.placement.layers import Lending, lent, units

linux = pytest.mark.skipif(not pages.supported(), reason="memory is given back on Linux only")


class Stack(nn.Module):
    """Blocks in a list, and a rest before and after them."""

    def __init__(self, num_blocks: int = 4, width: int = 512):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(num_blocks)
        )
        self.last = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


@pytest.fixture
def mapped(tmp_path: Path) -> Stack:
    """A module whose weights are views of a file."""
    save_file(dict(tiny.fill(Stack()).state_dict()), tmp_path / "diffusion_pytorch_model.safetensors")
    with torch.device("meta"):
        module = Stack()
    module.load_state_dict(read_weights(tmp_path), assign=True)
    return module.eval().requires_grad_(False)


def resident(module: nn.Module) -> int:
    """Pages of a module's weights that are in memory."""
    count = 0
    with open("/proc/self/pagemap", "rb") as file:
        for start, end in pages.spans(pages.tensors_of([module])):
            first, last = -(-start // pages.PAGE), end // pages.PAGE
            file.seek(8 * first)
            entries = np.frombuffer(file.read(8 * (last - first)), dtype=np.uint64)
            count += int((entries >> np.uint64(63)).sum())
    return count


# Pages


def test_neighbours_are_joined():
    whole = torch.zeros(100_000)
    found = pages.spans([whole[50_000:60_000], whole[:100], whole[100:200], whole[60_000:70_000]])
    first = whole.data_ptr()
    assert found == [(first, first + 800), (first + 200_000, first + 280_000)]


@linux
def test_pages_of_a_file_are_given_back_and_read_again(mapped):
    x = tiny.noise(2, 3)
    before = mapped(x)
    assert placement.stays([mapped]) == (0, sum(p.nbytes for p in mapped.parameters()))
    assert resident(mapped) > 900
    placement.give_back([mapped.blocks[1]])
    assert resident(mapped.blocks[1]) == 0
    assert resident(mapped.blocks[2]) > 200
    placement.give_back([mapped])
    assert resident(mapped) == 0
    assert torch.equal(mapped(x), before)


@linux
@pytest.mark.parametrize(("residency", "stays"), [("resident", True), ("component", False), ("layer", False)])
def test_a_component_is_given_back_after_its_use(mapped, residency, stays):
    with active(mapped, MemoryPolicy(residency=residency)):
        mapped(tiny.noise(2, 3))
        held = resident(mapped)
    assert held > (900 if residency != "layer" else 0)
    assert resident(mapped) == (held if stays else 0)


@linux
def test_what_was_changed_in_memory_stays(mapped):
    mapped.blocks[0][0].weight[7, 3] = 41.0
    mapped(tiny.noise(2, 3))
    placement.give_back([mapped])
    assert mapped.blocks[0][0].weight[7, 3] == 41.0
    assert 0 < resident(mapped) < 10
    with active(mapped, MemoryPolicy(residency="layer")):
        mapped(tiny.noise(2, 3))
    assert mapped.blocks[0][0].weight[7, 3] == 41.0


@linux
def test_what_lies_in_no_file_stays():
    module = tiny.fill(Stack())
    state = {name: value.clone() for name, value in module.state_dict().items()}
    held, total = placement.stays([module])
    assert held == total > 4 * 2**20
    placement.give_back([module])
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_other_systems_give_nothing_back(mapped, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(pages, "_advise", lambda *_: pytest.fail("advised"))
    placement.give_back([mapped])
    pages.fetch(pages.spans(pages.tensors_of([mapped])))
    held, total = placement.stays([mapped])
    assert held == total


# Layers


class Recording:
    """A store that writes down what is asked of it, by the number of the unit; the rest is -1."""

    def __init__(self, module: nn.Module):
        self.numbers = {id(unit): i for i, unit in enumerate(units(module))}
        self.said: list[tuple[str, int]] = []
        self.away: set[int] = set()
        self.most = 0
        self.closed = 0

    def _say(self, word: str, unit: tuple[nn.Module, ...]) -> int:
        number = self.numbers.get(id(unit[0]), -1)
        self.said.append((word, number))
        return number

    def bring(self, unit: tuple[nn.Module, ...]) -> None:
        self.away.add(self._say("bring", unit))
        self.most = max(self.most, len(self.away - {-1}))

    def prefetch(self, unit: tuple[nn.Module, ...]) -> None:
        self.away.add(self._say("prefetch", unit))
        self.most = max(self.most, len(self.away - {-1}))

    def give_back(self, unit: tuple[nn.Module, ...]) -> None:
        self.away.discard(self._say("give back", unit))

    def close(self) -> None:
        self.closed += 1


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in module.modules())


def test_units_come_and_go_in_turn_and_the_next_is_fetched_ahead():
    module = tiny.fill(Stack(3, 8))
    store = Recording(module)
    with lent(module, store):
        module(tiny.noise(2, 3))
        module(tiny.noise(2, 3))
    turn = [("give back", 0), ("bring", 1), ("prefetch", 2), ("give back", 1), ("bring", 2), ("prefetch", 0)]
    begin, end = [("bring", -1), ("bring", 0), ("prefetch", 1)], [("give back", 2), ("give back", -1)]
    assert store.said == [*begin, *turn, ("give back", 2), ("bring", 0), ("prefetch", 1), *turn, *end]
    assert (store.most, store.closed, hooks_of(module)) == (2, 1, 0)


def test_the_order_of_use_is_learnt():
    module = tiny.fill(Stack(4, 8))
    store = Recording(module)
    x = tiny.noise(2, 8)
    with lent(module, store):
        for _ in range(2):
            for i in (2, 0):
                module.blocks[i](x)
    assert store.said[-7:-2] == [("bring", 2), ("prefetch", 0), ("give back", 2), ("bring", 0), ("prefetch", 2)]


def test_a_part_of_a_unit_begins_it():
    module = tiny.fill(Stack(3, 8))
    store = Recording(module)
    with lent(module, store):
        module.blocks[1][1](tiny.noise(2, 8))
    assert ("bring", 1) in store.said


@pytest.mark.parametrize("where", ["bring", "compute"])
def test_nothing_stays_behind_after_a_failure(where):
    module = tiny.fill(Stack(3, 8))
    store = Recording(module)
    if where == "bring":
        real = store.bring

        def bring(unit):
            real(unit)
            if store.said[-1] == ("bring", 1):
                raise MemoryError("full")

        store.bring = bring
    else:
        module.blocks[1].register_forward_hook(lambda *_: (_ for _ in ()).throw(MemoryError("full")))
    before = hooks_of(module)
    with pytest.raises(MemoryError), lent(module, store):
        module(tiny.noise(2, 3))
    assert store.away <= {2}  # fetched ahead, and forgotten by close
    assert (store.closed, hooks_of(module)) == (1, before)


@torch.no_grad()
def test_layers_lent_to_a_device_and_taken_back():
    network = tiny.fill(ConsisIDTransformer3DModel.from_config(small.TRANSFORMER)).requires_grad_(False)
    own = dict(network.named_parameters())
    own_buffers = dict(network.named_buffers())
    on_meta = [x.to("meta") for x in (small.latents(), small.text())]
    people = {k: [x.to("meta") for x in v] if isinstance(v, list) else v.to("meta") for k, v in small.face().items()}
    with active(network, MemoryPolicy("meta", residency="layer")):
        assert network.device.type == "meta"
        out = network(*on_meta, torch.tensor([500.0], device="meta"), **people).sample
        assert out.device.type == "meta"
        assert network.transformer_blocks[1].ff.net[2].weight.device.type == "cpu"
    assert all(value is own[name] for name, value in network.named_parameters())
    assert all(value is own_buffers[name] for name, value in network.named_buffers())


@torch.no_grad()
def test_every_kind_of_network_finds_its_layers_on_the_device():
    """A parameter that is read past its module's call would still lie on the CPU, and torch would refuse."""

    def meta(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    t5, vae = small.text_parts()["text_encoder"], small.parts()["vae"]
    clip, stills, unet = (tiny_pia.pipeline().components[name] for name in ("text_encoder", "vae", "unet"))
    channels = unet.config.cross_attention_dim
    calls = (
        (t5, lambda: t5(torch.zeros(1, 7, dtype=torch.long, device="meta")).last_hidden_state),
        (vae, lambda: vae.decode(meta(1, 4, 3, 6, 10)).sample),
        (vae, lambda: vae.encode(meta(1, 3, 9, 48, 80)).latent_dist.mean),
        (clip, lambda: clip(torch.zeros(1, 7, dtype=torch.long, device="meta")).last_hidden_state),
        (stills, lambda: stills.decode(meta(1, 4, 6, 10)).sample),
        (stills, lambda: stills.encode(meta(1, 3, 48, 80)).latent_dist.mean),
        (unet, lambda: unet(meta(1, 9, 3, 6, 10), 500, meta(1, 5, channels)).sample),
    )
    for network, call in calls:
        with active(network, MemoryPolicy("meta", residency="layer")):
            assert call().device.type == "meta"
        assert {tensor.device.type for tensor in network.state_dict().values()} == {"cpu"}


def test_lending_gives_back_after_a_failure():
    module = tiny.fill(Stack(3, 8)).requires_grad_(False)
    own = dict(module.named_parameters())
    with pytest.raises(RuntimeError), lent(module, Lending("meta")):
        module(tiny.noise(2, 3))  # on the CPU, where the first layer is not
    assert all(value is own[name] for name, value in module.named_parameters())
    assert hooks_of(module) == 0


# Pipelines


@pytest.mark.parametrize("residency", ["component", "layer"])
def test_pia_gives_the_same_bits_too(tmp_path, residency):
    tiny_pia.pipeline().save_pretrained(tmp_path)
    pipe = PIAPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    plain = tiny_pia.run(pipe)
    (pipe.enable_model_cpu_offload if residency == "component" else pipe.enable_sequential_cpu_offload)(device="cpu")
    assert torch.equal(tiny_pia.run(pipe), plain)
    assert torch.equal(tiny_pia.run(pipe), plain)
    assert pipe.to("cpu").memory.residency == "resident"


@pytest.mark.filterwarnings("ignore:.*W-OFF-SIZE")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_residency_gives_the_same_bits(tmp_path, dtype):
    small.pipeline().to(torch.float32)
    made = {}
    pipe = small.pipeline()
    pipe.save_pretrained(tmp_path)
    if dtype != torch.float32:
        ConsisIDPipeline.from_pretrained(tmp_path, torch_dtype=dtype).save_pretrained(tmp_path / "half")
        tmp_path /= "half"
    for residency in ("resident", "component", "layer"):
        pipe = ConsisIDPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        if residency != "resident":
            (pipe.enable_model_cpu_offload if residency == "component" else pipe.enable_sequential_cpu_offload)(
                device="cpu"
            )
        assert pipe.memory.residency == residency
        made[residency] = pipe(**small.asked()).frames
        assert torch.equal(pipe(**small.asked()).frames, made[residency])
        assert all(hooks_of(part) == 0 for part in placement.networks(pipe.components.values()))
    assert torch.equal(made["component"], made["resident"])
    assert torch.equal(made["layer"], made["resident"])


def test_a_cancelled_run_leaves_no_hooks():
    pipe = small.pipeline()
    with pytest.warns(UserWarning, match="W-OFFLOAD-CPU"):
        pipe.enable_sequential_cpu_offload(device="cpu")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(**small.asked(callback_on_step_end=stop))
    assert all(hooks_of(part) == 0 for part in placement.networks(pipe.components.values()))


@torch.no_grad()
def test_a_step_touches_nothing_of_what_is_read_once():
    network = tiny.fill(ConsisIDTransformer3DModel.from_config(small.TRANSFORMER))
    people = small.face()
    identity = network.read_identity(people["id_cond"], people["id_vit_hidden"])
    table, places, text = (
        network.modulate(torch.tensor([500.0])),
        network.place(3, 6, 10),
        network.read_text(small.text()),
    )
    due = network.predict(small.latents(), text, table, places, identity)
    for module in network.read_once():
        for value in (*module.parameters(), *module.buffers()):
            value.fill_(float("nan"))
    assert torch.equal(network.predict(small.latents(), text, table, places, identity), due)


def test_a_run_gives_back_what_was_read_once(monkeypatch):
    pipe, given = small.pipeline(), []
    monkeypatch.setattr(generate, "give_back", lambda modules: given.append(list(modules)))
    pipe(**small.asked())
    assert given == [pipe.transformer.read_once()]


def test_layers_of_a_compiled_network_are_refused():
    pipe = small.pipeline()
    pipe.transformer.predict = pipe.transformer.predict
    try:
        with pytest.raises(InputError, match="E-OFFLOAD-COMPILED"):
            pipe.enable_sequential_cpu_offload(device="cpu")
    finally:
        del pipe.transformer.predict


PROGRAM = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from vivant.hub.load import read_weights
from vivant.placement import MemoryPolicy, active
from torch import Tensor
{stack}
with torch.device("meta"):
    module = Stack(20, 3200)
module.load_state_dict(read_weights(Path({folder!r})), assign=True)
module.requires_grad_(False)
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
with active(module, MemoryPolicy(residency={residency!r})):
    out = [float(module(torch.ones(1, 3, dtype=torch.bfloat16)).sum()) for _ in range(2)]
print(json.dumps([(peak() - before) * 1024, out]))
"""


@linux
def test_resident_memory_is_bounded(tmp_path):
    with torch.device("meta"):
        shapes = Stack(20, 3200).state_dict()
    noise = tiny.noise(3200 * 3200, seed=1).bfloat16() / 3200**0.5
    weights = {name: noise[: value.numel()].clone().view(value.shape) for name, value in shapes.items()}
    size = sum(value.nbytes for value in weights.values())
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    del weights
    grown = {}
    for residency in ("resident", "layer"):
        program = PROGRAM.format(stack=inspect.getsource(Stack), folder=str(tmp_path), residency=residency)
        done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
        grown[residency] = json.loads(done.stdout.splitlines()[-1])
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    assert grown["layer"][1] == grown["resident"][1]
    assert grown["resident"][0] > 0.95 * size > 3e8
    assert grown["layer"][0] < size / 4
