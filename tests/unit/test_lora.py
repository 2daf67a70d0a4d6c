"""LoRA on pipelines: what is loaded, what counts how much, and that nothing remains of it."""

import copy
import json
import struct

import pytest
import torch
from safetensors.torch import save_file

import tiny
import tiny_consisid
import tiny_lora
import tiny_pia
from vivant.errors import InputError, LoadError, VivantWarning
from vivant.lora.merge import adapters_of, merged_of
from vivant.pia.unet import UNetMotionModel
from vivant.pipelines.pia import PIAPipeline
from vivant.train import lora as training


@pytest.fixture
def pipe():
    pipe = tiny_pia.pipeline()
    yield pipe
    pipe.unfuse_lora()
    pipe.unload_lora_weights()


def traces(pipe):
    """Everything that could tell a pipeline that had LoRA from one that never had."""
    networks = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return {
        (part, name): (id(value), value.data_ptr(), value.dtype, value.detach().clone())
        for part, network in networks.items()
        for name, value in (*network.named_parameters(), *network.named_buffers())
    } | {(part, "attributes"): sorted(vars(network)) for part, network in networks.items()}


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if key[1] == "attributes":
            assert value == other[key]
        else:
            assert value[:3] == other[key][:3], key
            assert torch.equal(value[3], other[key][3]), key


def weights(pipe):
    return {
        name: value.detach().clone()
        for name, value in (*pipe.unet.named_parameters(), *pipe.text_encoder.named_parameters())
    }


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def kohya(pipe, seed=None):
    tensors = tiny_lora.kohya(pipe.components).tensors
    return (
        tensors
        if seed is None
        else {k: v if "alpha" in k else tiny.rule(k, tuple(v.shape), seed) for k, v in tensors.items()}
    )


# ------------------------------------------------------------------------------------------------ and back


@pytest.mark.parametrize("name", ["kohya", "locon", "differences", "motion"])
def test_unloading_leaves_no_trace(pipe, name):
    before = traces(pipe)
    pipe.load_lora_weights(tiny_lora.LAYOUTS[name](pipe.components).tensors)
    assert not equal(weights(pipe), {k[1]: v[3] for k, v in before.items() if k[1] != "attributes"})
    pipe.unload_lora_weights()
    same(traces(pipe), before)


def test_a_run_between_loading_and_unloading_leaves_no_trace(pipe):
    first = tiny_pia.run(pipe)
    before = traces(pipe)
    pipe.load_lora_weights(kohya(pipe))
    assert not torch.equal(tiny_pia.run(pipe), first)
    pipe.unload_lora_weights()
    same(traces(pipe), before)
    assert torch.equal(tiny_pia.run(pipe), first)


def test_fusing_is_until_unfusing(pipe):
    before = traces(pipe)
    pipe.load_lora_weights(kohya(pipe), adapter_name="a")
    pipe.set_adapters("a", 0.6)
    active = weights(pipe)
    pipe.fuse_lora()
    assert equal(weights(pipe), active)
    assert (pipe.num_fused_loras, pipe.fused_loras) == (1, {"a"})
    pipe.unload_lora_weights()
    assert equal(weights(pipe), active), "what is fused outlives its adapter"
    with pytest.raises(InputError, match="E-LORA-NAME"):
        pipe.load_lora_weights(kohya(pipe), adapter_name="a")
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    same(traces(pipe), before)


def test_the_scale_of_fusing_multiplies_and_components_are_chosen(pipe):
    pipe.load_lora_weights(kohya(pipe), adapter_name="a")
    pipe.set_adapters("a", 0.6)
    own = merged_of(pipe.text_encoder).own
    pipe.set_adapters("a", 0.3)
    half = weights(pipe)
    pipe.set_adapters("a", 0.6)
    pipe.fuse_lora(["unet"], lora_scale=0.5, adapter_names=["a"])
    pipe.disable_lora()
    assert equal(dict(pipe.unet.named_parameters()), half)
    assert all(pipe.text_encoder.get_parameter(name) is value for name, value in own.items())
    with pytest.raises(InputError, match=r"E-LORA-COMPONENT.*vae"):
        pipe.fuse_lora(["vae"])


def test_a_scale_does_not_act_on_what_is_fused(pipe):
    pipe.load_lora_weights(kohya(pipe), adapter_name="a")
    pipe.fuse_lora()
    fused = tiny_pia.run(pipe)
    with pytest.warns(VivantWarning, match="W-LORA-NONE"):
        assert torch.equal(tiny_pia.run(pipe, cross_attention_kwargs={"scale": 0.2}), fused)


def test_setting_weights_again_and_again_does_not_drift(pipe):
    pipe.load_lora_weights(kohya(pipe), adapter_name="a")
    pipe.set_adapters("a", 0.7)
    once = weights(pipe)
    for weight in (3.0, -1.0, 0.1, 0.7):
        pipe.set_adapters("a", weight)
    assert equal(weights(pipe), once)


def test_weights_that_do_not_change_are_not_computed_again(pipe):
    pipe.load_lora_weights(kohya(pipe), adapter_name="a")
    pipe.load_lora_weights(tiny_lora.motion(pipe.components).tensors, adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, 1.0])
    before = dict(pipe.unet.named_parameters())
    pipe.set_adapters(["a", "b"], [0.5, 2.0])
    new = {name for name, value in pipe.unet.named_parameters() if value is not before[name]}
    assert new == set(adapters_of(pipe.unet).loaded["b"])


# ----------------------------------------------------------------------------------------------- how much


def test_a_scale_of_a_call_is_a_weight_for_that_call(pipe):
    pipe.load_lora_weights(kohya(pipe), adapter_name="a")
    kept = dict(pipe.unet.named_parameters())
    half = tiny_pia.run(pipe, cross_attention_kwargs={"scale": 0.5})
    assert equal(kept, dict(pipe.unet.named_parameters()))
    pipe.set_adapters("a", 0.5)
    assert torch.equal(tiny_pia.run(pipe), half)
    pipe.set_adapters("a", 1.0)
    assert not torch.equal(tiny_pia.run(pipe), half)


def test_a_failing_call_with_a_scale_leaves_the_weights(pipe):
    pipe.load_lora_weights(kohya(pipe), adapter_name="a")
    kept = weights(pipe)

    def stop(*args):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        tiny_pia.run(pipe, cross_attention_kwargs={"scale": 0.5}, callback_on_step_end=stop)
    assert equal(weights(pipe), kept)


def test_encode_prompt_has_a_scale_of_its_own(pipe):
    pipe.load_lora_weights(kohya(pipe), adapter_name="a")
    whole, half = (pipe.encode_prompt("a cat", lora_scale=scale)[0] for scale in (None, 0.5))
    pipe.set_adapters("a", 0.5)
    assert torch.equal(pipe.encode_prompt("a cat")[0], half)
    assert not torch.equal(whole, half)


def test_consisid_has_a_scale():
    pipe = tiny_consisid.pipeline()
    base = pipe(**tiny_consisid.asked()).frames
    before = {name: value.data_ptr() for name, value in pipe.transformer.named_parameters()}
    for prefix in ("transformer.", "", "base_model.model."):
        pipe.load_lora_weights(tiny_lora.transformer(pipe.components, prefix).tensors, adapter_name=f"a{len(prefix)}")
    pipe.delete_adapters(["a0", "a17"])
    pipe.set_adapters("a12")
    half = pipe(**tiny_consisid.asked(attention_kwargs={"scale": 0.5})).frames
    pipe.set_adapters("a12", 0.5)
    assert torch.equal(pipe(**tiny_consisid.asked()).frames, half)
    pipe.unload_lora_weights()
    assert {name: value.data_ptr() for name, value in pipe.transformer.named_parameters()} == before
    assert torch.equal(pipe(**tiny_consisid.asked()).frames, base)
    assert not torch.equal(half, base)


def test_which_adapters_there_are_and_which_act(pipe):
    pipe.load_lora_weights(kohya(pipe))
    pipe.load_lora_weights(tiny_lora.motion(pipe.components).tensors, adapter_name="b")
    assert pipe.get_list_adapters() == {"unet": ["default_0", "b"], "text_encoder": ["default_0"]}
    pipe.set_adapters(["b", "default_0"], [1, {"unet": 0.5}])
    assert set(pipe.get_active_adapters()) == {"default_0", "b"}
    acting = weights(pipe)
    pipe.disable_lora()
    assert not merged_of(pipe.unet).own
    pipe.enable_lora()
    assert equal(weights(pipe), acting)
    pipe.delete_adapters("default_0")
    assert pipe.get_list_adapters() == {"unet": ["b"]}
    assert pipe.get_active_adapters() == ["b"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((["a", "z"],), "E-LORA-NAME.*'z'"),
        ((["a", "a"],), "E-LORA-NAME.*twice"),
        ((["a"], [1, 2]), "E-LORA-WEIGHT"),
        ((["a"], [float("nan")]), "E-LORA-WEIGHT"),
        ((["a"], [True]), "E-LORA-WEIGHT"),
        ((["a"], [{"unet": 1, "text_encoder_2": 1}]), "E-LORA-COMPONENT.*text_encoder_2"),
        ((["b"], [{"text_encoder": 1}]), "E-LORA-COMPONENT.*text_encoder"),
        ((["a"], [{"unet": {"down": {"block_1": 1}}}]), "E-LORA-BLOCKS.*down.block_1"),
        ((["a"], [{"unet": {"up": {"block_1": [1, 2]}}}]), "E-LORA-BLOCKS"),
        ((["a"], [{"unet": {"middle": 1}}]), "E-LORA-BLOCKS.*middle"),
        ((["a"], [{"text_encoder": {"down": 1}}]), "E-LORA-BLOCKS"),
    ],
)
@pytest.mark.unchecked
def test_weights_that_cannot_be_honoured_are_refused(pipe, arguments, code):
    pipe.load_lora_weights(tiny_lora.motion(pipe.components).tensors, adapter_name="b")
    pipe.load_lora_weights(kohya(pipe), adapter_name="a")
    before = weights(pipe)
    with pytest.raises(InputError, match=code):
        pipe.set_adapters(*arguments)
    assert equal(weights(pipe), before)
    assert pipe.get_active_adapters() == ["a"]


# ------------------------------------------------------------------------------------------ other features


def test_changing_the_data_type_afterwards_is_the_same_as_before(pipe):
    tensors = kohya(pipe)
    parts = {"unet": copy.deepcopy(pipe.unet), "text_encoder": copy.deepcopy(pipe.text_encoder)}
    after, before = tiny_pia.pipeline(**copy.deepcopy(parts)), tiny_pia.pipeline(**copy.deepcopy(parts))
    for one in (after, before):
        one.vae = copy.deepcopy(one.vae)
    after.load_lora_weights(tensors)
    after.to(torch.bfloat16)
    before.to(torch.bfloat16)
    untouched = weights(before)
    before.load_lora_weights(tensors)
    assert equal(weights(after), weights(before))
    after.unload_lora_weights()
    assert equal(weights(after), untouched)


def test_a_network_that_was_converted_by_itself_gets_its_weights_back_in_its_type(pipe):
    unet = copy.deepcopy(pipe.unet)
    own = {name: value.clone() for name, value in unet.named_parameters()}
    one = tiny_pia.pipeline(unet=unet, text_encoder=copy.deepcopy(pipe.text_encoder))
    one.load_lora_weights(tiny_lora.locon(one.components).tensors)
    unet.half()
    one.unload_lora_weights()
    assert all(torch.equal(value, own[name].half()) for name, value in unet.named_parameters())


@pytest.mark.parametrize("residency", ["component", "layer"])
def test_offloading_gives_the_same_clip(pipe, residency):
    pipe.load_lora_weights(kohya(pipe))
    resident = tiny_pia.run(pipe)
    with pytest.warns(VivantWarning, match="W-OFFLOAD-CPU"):
        (pipe.enable_model_cpu_offload if residency == "component" else pipe.enable_sequential_cpu_offload)(
            device="cpu"
        )
    assert torch.equal(tiny_pia.run(pipe), resident)


def test_what_is_saved_is_the_base_and_what_is_fused(pipe, tmp_path):
    base = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(kohya(pipe))
    active = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    pipe.save_pretrained(tmp_path / "base")
    assert equal(pipe.unet.state_dict(), active)
    pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "fused")
    assert equal(UNetMotionModel.from_pretrained(tmp_path / "base" / "unet").state_dict(), base)
    assert equal(UNetMotionModel.from_pretrained(tmp_path / "fused" / "unet").state_dict(), active)


def test_pipelines_that_share_a_network_share_its_lora(pipe):
    pipe.load_lora_weights(kohya(pipe), adapter_name="a")
    other = PIAPipeline.from_pipe(pipe)
    assert other.get_active_adapters() == ["a"]
    before = traces(tiny_pia.pipeline())
    other.unload_lora_weights()
    assert pipe.get_list_adapters() == {}
    assert traces(pipe).keys() == before.keys()


def test_a_training_s_file_is_what_was_trained(pipe, tmp_path):
    trained = copy.deepcopy(pipe.unet)
    rank = training.Rank(2, 3.0)
    learned = training.attach(trained, rank)
    with torch.no_grad():
        for name, parameter in learned.items():
            parameter.copy_(tiny.rule(name, tuple(parameter.shape)))
    training.save(learned, rank, tmp_path / "trained.safetensors")
    pipe.load_lora_weights(tmp_path / "trained.safetensors")
    now = pipe.unet.state_dict()
    for name, value in training.merged(trained).items():
        torch.testing.assert_close(now[name], value, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------- wrong files


def refused(pipe, tensors, code, **keywords):
    """A file is refused, and the pipeline is as it was, an adapter that was there before included."""
    pipe.load_lora_weights(tiny_lora.motion(pipe.components).tensors, adapter_name="before")
    before, notes = traces(pipe), list(pipe.notes)
    with pytest.raises((LoadError, InputError), match=code):
        pipe.load_lora_weights(tensors, adapter_name="wrong", **keywords)
    same(traces(pipe), before)
    assert pipe.get_list_adapters() == {"unet": ["before"]}
    assert pipe.notes == notes


def broken(pipe, edit):
    tensors = kohya(pipe)
    edit(tensors, "lora_te_text_model_encoder_layers_2_self_attn_q_proj")
    return tensors


BROKEN = {
    "E-WEIGHTS-NAN": lambda t, n: t.update({f"{n}.lora_up.weight": t[f"{n}.lora_up.weight"] * float("nan")}),
    "E-LORA-SHAPE.*q_proj of the text_encoder": lambda t, n: t.update({f"{n}.lora_up.weight": torch.ones(21, 3)}),
    "E-LORA-SHAPE.*rank": lambda t, n: t.update({f"{n}.lora_up.weight": torch.ones(20, 4)}),
    "E-LORA-SHAPE.*claims": lambda t, n: t.update(
        {
            f"{n}.lora_up.weight": torch.ones(1, 1).expand(20, 10**12),
            f"{n}.lora_down.weight": torch.ones(1, 1).expand(10**12, 20),
        }
    ),
    "E-LORA-PARTS.*only the parts": lambda t, n: t.pop(f"{n}.lora_up.weight"),
    "E-LORA-PARTS.*nothing else": lambda t, n: [t.pop(f"{n}.lora_{half}.weight") for half in ("up", "down")],
    "E-LORA-PARTS.*no number": lambda t, n: t.update({f"{n}.alpha": torch.tensor(float("inf"))}),
    "E-LORA-PARTS.*same part": lambda t, n: t.update({f"{n}.lora_A.weight": torch.ones(3, 20)}),
    "E-LORA-KIND.*OFT": lambda t, n: t.update({f"{n}.oft_blocks": torch.ones(2, 3, 3)}),
    "E-LORA-KIND.*IA": lambda t, n: t.update({f"{n}.on_input": torch.ones(1)}),
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_damaged_file_changes_nothing(pipe, code):
    refused(pipe, broken(pipe, BROKEN[code]), code.removesuffix(".*rank").removesuffix(".*claims"))


FOREIGN = {
    "E-FILE-FAMILY.*Stable Diffusion XL": {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (3, 2)},
    "E-FILE-FAMILY.*Stable Diffusion 2": {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 1024)
    },
    "E-FILE-FAMILY.*Flux": {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)},
    "E-FILE-FAMILY.*CogVideoX": {"transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": (4, 48)},
    "E-FILE-KIND.*vae": {"first_stage_model.encoder.down.0.block.0.conv1.weight": (4, 4, 3, 3)},
    "E-LORA-EMPTY.*nearest": {"lora_unet_down_blocks_7_attentions_0_proj_in.lora_down.weight": (3, 16)},
}


@pytest.mark.parametrize("code", FOREIGN)
def test_a_file_of_another_model_is_named(pipe, code, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({name: torch.ones(shape) for name, shape in FOREIGN[code].items()}, path)
    refused(pipe, path, code)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_hostile_files(pipe, tmp_path):
    canary = tmp_path / "canary"
    torch.save({"x": Canary(str(canary))}, tmp_path / "pickle.bin")
    refused(pipe, tmp_path / "pickle.bin", "E-WEIGHTS-PICKLE")
    assert not canary.exists()
    (tmp_path / "long.safetensors").write_bytes(struct.pack("<Q", 2 << 30) + b"{}")
    pipe.unload_lora_weights()
    refused(pipe, tmp_path / "long.safetensors", "E-WEIGHTS-BROKEN")
    pipe.unload_lora_weights()
    refused(pipe, tmp_path / "none.safetensors", "E-REPO-MISSING")
    pipe.unload_lora_weights()
    torch.save(kohya(pipe), tmp_path / "a.bin")
    refused(pipe, tmp_path / "a.bin", "E-REPO-PICKLE", use_safetensors=True)


@pytest.mark.parametrize("said", ["[]", "{", '{"unet.lora_alpha": "4"}', '{"unet.lora_alpha": 1e999}', "[" * 100_000])
def test_hostile_remarks_of_a_header(pipe, said, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(tiny_lora.new_diffusers(pipe.components).tensors, path, metadata={"lora_adapter_metadata": said})
    refused(pipe, path, "E-LORA-PARTS")


def test_patterns_of_a_header_are_not_evaluated(pipe, tmp_path):
    """As regular expressions these would take for ever."""
    path = tmp_path / "x.safetensors"
    said = {"unet.lora_alpha": 3, "unet.alpha_pattern": {"(.*)*" * 20 + "$": 9.0}}
    save_file(
        tiny_lora.new_diffusers(pipe.components).tensors, path, metadata={"lora_adapter_metadata": json.dumps(said)}
    )
    pipe.load_lora_weights(path)


def test_a_file_that_fits_in_part_says_so(pipe):
    tensors = kohya(pipe)
    more = {f"lora_unet_elsewhere_{i}.lora_up.weight": torch.ones(2, 2) for i in range(60)}
    with pytest.warns(VivantWarning, match=r"W-KEYS-UNMATCHED.*60 are unknown"):
        pipe.load_lora_weights({**tensors, **more})
    assert "60 are unknown (lora_unet_elsewhere_0" in pipe.notes[-1]


def test_the_part_of_a_text_encoder_that_is_not_there_is_left_aside(pipe):
    one = tiny_pia.pipeline(text_encoder=None, tokenizer=None)
    one.load_lora_weights(kohya(pipe))
    assert "were left aside" in one.notes[-1]


def test_alphas_of_the_old_call(pipe):
    written = tiny_lora.diffusers(pipe.components)
    alphas = {f"{part}.{name.removesuffix('.weight')}.alpha": 6.0 for part, name in written.deltas}
    own = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(written.tensors, network_alphas=alphas)
    part, name = next(iter(written.deltas))
    torch.testing.assert_close(pipe.unet.state_dict()[name], own[name] + 2 * written.deltas[part, name])


@pytest.mark.unchecked
def test_arguments_that_would_be_ignored_are_refused(pipe):
    refused(pipe, kohya(pipe), "E-ARG-VALUE.*hotswap", hotswap=True)
    pipe.unload_lora_weights()
    refused(pipe, kohya(pipe), "E-ARG-UNKNOWN.*prefix", prefix="unet")
    for name in ("before", "", 3):
        with pytest.raises(InputError, match="E-LORA-NAME"):
            pipe.load_lora_weights(kohya(pipe), adapter_name=name)
