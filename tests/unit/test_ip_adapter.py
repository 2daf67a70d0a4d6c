"""Picture prompts of a pipeline: what is loaded and let go, what is refused, what a run computes of them."""

import copy

import pytest
import torch
from safetensors.torch import save_file

import tiny
import tiny_ip
import tiny_pia
import tiny_repo
from tiny_pia import picture, run
from vivant.errors import InputError, LoadError, VivantWarning
from vivant.pia.ip_adapter import ImageProjection, IPAdapter, places
from vivant.pia.ip_scale import scales_at
from vivant.pia.layers import Attention
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNetMotionModel
from vivant.pia.windows import Windows
from vivant.pipelines.pia import PIAPipeline
from vivant.pipelines.picture_prompts import rows
from vivant.placement import MemoryPolicy, active
from vivant.vision import CLIPImageProcessor


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny_ip.write(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def pipe():
    """A pipeline with a network of its own."""
    unet = UNetMotionModel.from_unet2d(tiny_pia.base(), tiny_pia.adapter())
    return tiny_pia.pipeline(unet=unet)


def load(pipe, root, *names: str):
    pipe.load_ip_adapter(root, subfolder="models", weight_name=list(names or ["plain.bin"]))
    return pipe


def people(*seeds: int):
    return [tiny_ip.person(seed) for seed in seeds]


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


# Loading


@pytest.mark.parametrize("kind", ["plain", "plus", "full"])
def test_all_ways_to_name_a_file(pipe, root, kind, tmp_path):
    wanted = tiny_ip.state(kind)
    models = root / "models"
    flat, nested = tiny_ip.state(kind), tiny_ip.nested(tiny_ip.state(kind))
    for source, options in (
        (root, {"subfolder": "models", "weight_name": f"{kind}.bin"}),
        (str(root), {"subfolder": ["models"], "weight_name": [f"{kind}.safetensors"]}),
        (models / f"{kind}.safetensors", {}),
        (root, {"weight_name": f"models/{kind}.bin", "image_encoder_folder": "models/image_encoder"}),
        ([flat], {"image_encoder_folder": None}),
        (nested, {"image_encoder_folder": None}),
    ):
        pipe.unload_ip_adapter()
        pipe.load_ip_adapter(source, **options)
        (adapter,) = pipe._ip_adapters.adapters
        assert adapter.kind == kind
        assert same(adapter.state_dict(), wanted)
        assert (pipe.image_encoder is None) == (options.get("image_encoder_folder", "") is None)
        assert pipe.feature_extractor == CLIPImageProcessor(*[224 if pipe.image_encoder is None else tiny_ip.SIDE] * 2)
        assert not any(p.requires_grad for p in adapter.parameters())


def test_a_hub_repository(pipe, root, tmp_path):
    tiny_repo.into_cache(tmp_path, "someone/IP-Adapter", root)
    where = {"cache_dir": tmp_path, "local_files_only": True}
    pipe.load_ip_adapter("someone/IP-Adapter", "models", "plus.safetensors", "models/image_encoder", **where)
    assert [adapter.kind for adapter in pipe._ip_adapters.adapters] == ["plus"]
    assert pipe.image_encoder.config.hidden_size == tiny_ip.HIDDEN


def test_loading_and_unloading_leave_no_trace(pipe, root):
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    plain = run(pipe)
    parts, attributes = dict(pipe.components), set(vars(pipe.unet))
    modules = [name for name, _ in pipe.unet.named_modules()]
    load(pipe, root, "plain.bin", "plus.bin")
    seen = run(pipe, ip_adapter_image=people(1, 2))
    assert not torch.allclose(seen, plain, atol=0.05)
    assert same(pipe.unet.state_dict(), before)
    pipe.unload_ip_adapter()
    assert pipe.components == parts
    assert (set(vars(pipe.unet)), [name for name, _ in pipe.unet.named_modules()]) == (attributes, modules)
    assert same(pipe.unet.state_dict(), before)
    assert torch.equal(run(pipe), plain)
    pipe.unload_ip_adapter()


def test_an_encoder_that_was_there_before_stays(root):
    encoder, processor = tiny_ip.encoder(), CLIPImageProcessor(tiny_ip.SIDE, tiny_ip.SIDE)
    pipe = load(tiny_pia.pipeline(image_encoder=encoder, feature_extractor=processor), root)
    assert (pipe.image_encoder, pipe.feature_extractor) == (encoder, processor)
    load(pipe, root, "plus.bin")
    pipe.unload_ip_adapter()
    assert (pipe.image_encoder, pipe.feature_extractor) == (encoder, processor)


def test_a_second_loading_replaces_the_first(pipe, root):
    load(pipe, root, "plain.bin", "plus.bin").set_ip_adapter_scale([0.2, 0.3])
    load(pipe, root, "full.safetensors")
    assert [adapter.kind for adapter in pipe._ip_adapters.adapters] == ["full"]
    assert pipe._ip_adapters.scales == ((1.0,) * 6,)
    pipe.unload_ip_adapter()
    assert pipe.image_encoder is None


def test_a_transformers_processor_is_used(root):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size=tiny_ip.SIDE, crop_size=tiny_ip.SIDE)
    theirs = load(tiny_pia.pipeline(feature_extractor=processor), root)
    assert theirs.feature_extractor is processor
    ours = load(tiny_pia.pipeline(), root)
    given = {"ip_adapter_image": people(1)}
    assert torch.equal(run(theirs, **given), run(ours, **given))
    pixels = processor(people(1), return_tensors="pt").pixel_values
    assert torch.equal(run(ours, ip_adapter_image=pixels), run(ours, **given))


def face_id():
    return {"image_proj.proj.0.weight": torch.ones(8, 4), "image_proj.norm.weight": torch.ones(5)}


def of_xl():
    return {"ip_adapter.1.to_k_ip.weight": torch.ones(640, 2048), "image_proj.proj.weight": torch.ones(8192, 1280)}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda s: of_xl(), r"E-FILE-FAMILY.*Stable Diffusion XL"),
        (lambda s: {**s, **face_id()}, r"E-IP-ADAPTER-FACEID"),
        (lambda s: {**s, "ip_adapter.0.to_q_lora.down.weight": torch.ones(4, 16)}, r"E-IP-ADAPTER-FACEID"),
        (lambda s: {**s, "image_proj.perceiver_resampler.proj_in.weight": torch.ones(4, 5)}, r"E-IP-ADAPTER-FACEID"),
        (lambda s: {"lora_unet_x.lora_up.weight": torch.ones(4, 5)}, r"E-FILE-KIND.*load_lora_weights"),
        (lambda s: {"something": torch.ones(4, 5, 6)}, r"E-IP-ADAPTER-FILE.*no image_proj.latents"),
        (lambda s: {k: v for k, v in s.items() if "image_proj" not in k}, r"E-IP-ADAPTER-FILE"),
        (lambda s: {**s, "image_proj.proj.weight": torch.ones(7)}, r"E-IP-ADAPTER-FILE.*\[7\]"),
        (lambda s: {**s, "ip_adapter.99.to_k_ip.weight": torch.ones(4, 5)}, r"E-KEYS-MISMATCH.*1 unexpected"),
        (lambda s: {k: v for k, v in s.items() if ".7." not in k}, r"E-KEYS-MISMATCH.*2 missing"),
        (lambda s: {**s, "ip_adapter.3.to_k_ip.weight": torch.ones(24, 20)}, r"E-KEYS-MISMATCH.*wrong shape"),
        (lambda s: {**s, "image_proj.norm.bias": torch.full((20,), torch.nan)}, r"E-IP-ADAPTER-FILE.*no numbers"),
        (lambda s: {**s, "image_proj.norm.bias": torch.ones(20, dtype=torch.int64)}, r"E-IP-ADAPTER-FILE.*no numbers"),
        (
            lambda s: {**tiny_ip.state("plus"), "image_proj.layers.0.0.to_q.weight": torch.ones(50, 28)},
            r"E-IP-ADAPTER-FILE.*50 channels",
        ),
    ],
)
def test_files_that_are_no_adapter_of_ours(pipe, root, tmp_path, change, code):
    load(pipe, root, "plus.bin").set_ip_adapter_scale(0.4)
    before, parts = pipe._ip_adapters, dict(pipe.components)
    save_file(change(tiny_ip.state("plain")), tmp_path / "x.safetensors")
    file = tmp_path / "x.safetensors"
    for source in ([root / "models" / "plain.bin", file], file, change(tiny_ip.state("plain"))):
        with pytest.raises(LoadError, match=code):
            pipe.load_ip_adapter(source)
    assert pipe._ip_adapters is before
    assert pipe.components == parts


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"weight_name": "nothing.bin"}, "E-FILE-MISSING"),
        ({"weight_name": None}, "E-FILE-NAME"),
        ({"weight_name": ["plain.bin", "plus.bin"], "subfolder": ["models"] * 3}, "E-IP-ADAPTER-LIST"),
        ({"image_encoder_folder": "encoder"}, r"E-IP-ADAPTER-ENCODER.*no image encoder in models/encoder"),
        ({"force_download": True}, "E-ARG-VALUE"),
        ({"adapter_name": "x"}, "E-ARG-UNKNOWN"),
        ({"pretrained_model_name_or_path_or_dict": tiny_ip.state("plain")}, r"E-IP-ADAPTER-ENCODER.*dictionary"),
    ],
)
def test_arguments_that_lead_nowhere(pipe, root, given, code):
    parts = dict(pipe.components)
    whole = {"pretrained_model_name_or_path_or_dict": root, "subfolder": "models", "weight_name": "plain.bin"}
    with pytest.raises((LoadError, InputError), match=code):
        pipe.load_ip_adapter(**{**whole, **given})
    assert pipe.components == parts
    assert pipe._ip_adapters.adapters == ()


def test_an_encoder_of_another_width_is_refused(root):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 24, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4}
    other = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, image_size=42, patch_size=14, projection_dim=18))
    pipe = tiny_pia.pipeline(image_encoder=other)
    for name, widths in (("plain.bin", "26 channels.*gives 18"), ("plus.bin", "36 channels.*gives 24")):
        with pytest.raises(InputError, match=rf"E-IP-ADAPTER-ENCODER.*{widths}"):
            load(pipe, root, name)
    pipe.image_encoder = None
    load(pipe, root).image_encoder = other
    with pytest.raises(InputError, match="E-IP-ADAPTER-ENCODER"):
        run(pipe, ip_adapter_image=people(1))


def test_the_published_numbering():
    """Which attention of the full-size network each tensor of the published files belongs to, by its channels."""
    with torch.device("meta"):
        unet = UNetMotionModel()
    channels = [320, 320, 640, 640, 1280, 1280] + [1280] * 3 + [640] * 3 + [320] * 3 + [1280]
    assert [place.num_channels for place in places(unet)] == channels
    assert [place.level for place in places(unet)] == [0, 0, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1, 0, 0, 0, 3]
    with torch.device("meta"):
        adapter = IPAdapter(ImageProjection(1024, 4, 768), 768, channels)
    shapes = {name: tuple(value.shape) for name, value in adapter.state_dict().items()}
    assert len(shapes) == 4 + 2 * 16
    assert shapes["image_proj.proj.weight"] == (3072, 1024)
    assert shapes["ip_adapter.13.to_v_ip.weight"] == (1280, 768)
    assert shapes["ip_adapter.19.to_k_ip.weight"] == (640, 768)
    assert shapes["ip_adapter.31.to_k_ip.weight"] == (1280, 768)


# What a call is given


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, r"E-IP-ADAPTER\].*no picture for it"),
        ({"ip_adapter_image": people(1), "ip_adapter_image_embeds": [torch.ones(2, 1, 26)]}, r"E-IP-ADAPTER\].*Both"),
        ({"ip_adapter_image": people(1, 2, 3)}, "E-IP-ADAPTER-IMAGES.*3 rows"),
        ({"ip_adapter_image": [people(1), people(2, 3)]}, r"E-IP-ADAPTER-IMAGES.*rows of \[1, 2\]"),
        ({"ip_adapter_image": []}, "E-IP-ADAPTER-IMAGES"),
        ({"ip_adapter_image": [[]]}, "E-IP-ADAPTER-IMAGES"),
        ({"ip_adapter_image": torch.rand(1, 3, 48, 80)}, r"E-IP-ADAPTER-IMAGES.*\[3, 48, 80\]"),
        ({"ip_adapter_image": torch.ones(1, 3, 42, 42, dtype=torch.uint8)}, "E-IP-ADAPTER-IMAGES.*uint8"),
        ({"ip_adapter_image": "nobody.png"}, "E-IMAGE-MISSING"),
        ({"ip_adapter_image_embeds": [torch.ones(2, 1, 26)] * 2}, "E-IP-ADAPTER-EMBEDS.*2 tensors"),
        ({"ip_adapter_image_embeds": [torch.ones(2, 26)]}, "E-IP-ADAPTER-EMBEDS"),
        ({"ip_adapter_image_embeds": [torch.ones(2, 1, 27)]}, "E-IP-ADAPTER-EMBEDS.*26 channels"),
        ({"ip_adapter_image_embeds": [torch.ones(3, 1, 26)]}, "E-IP-ADAPTER-EMBEDS.*3 rows"),
        ({"ip_adapter_image_embeds": [torch.ones(6, 1, 26)]}, "E-IP-ADAPTER-EMBEDS.*6 rows"),
        ({"ip_adapter_image_embeds": [torch.ones(2, 0, 26)]}, "E-IP-ADAPTER-EMBEDS"),
        ({"ip_adapter_image_embeds": ["x"]}, "E-IP-ADAPTER-EMBEDS.*str"),
        ({"masks": [torch.ones(1, 1, 6, 10)] * 2}, "E-IP-ADAPTER-MASK.*2 entries"),
        ({"masks": [torch.ones(1, 2, 6, 10)]}, r"E-IP-ADAPTER-MASK.*\[1, 1, h, w\]"),
        ({"masks": [torch.ones(6, 10)]}, "E-IP-ADAPTER-MASK"),
        ({"masks": torch.ones(6, 10)}, "E-IP-ADAPTER-MASK"),
        ({"masks": "all"}, "E-IP-ADAPTER-MASK.*str"),
        ({"masks": [torch.full((1, 1, 6, 10), 1.5)]}, "E-IP-ADAPTER-MASK.*0 to 1"),
        ({"masks": [torch.full((1, 1, 6, 10), torch.nan)]}, "E-IP-ADAPTER-MASK.*0 to 1"),
        ({"cross_attention_kwargs": {"ip_adapter_mask": []}}, "E-CROSS-ATTENTION"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(pipe, root, monkeypatch, changes, code):
    load(pipe, root)
    given = {"image": picture(num=2), "prompt": ["a cat", "a field"], **changes}
    if "masks" in changes:
        given |= {"ip_adapter_image": people(1), "cross_attention_kwargs": {"ip_adapter_masks": given.pop("masks")}}
    for part in (pipe.vae, pipe.text_encoder, pipe.image_encoder):
        monkeypatch.setattr(part, "forward", None)
    monkeypatch.setattr("vivant.pipelines.pia.generate", None)
    with pytest.raises(InputError, match=code):
        run(pipe, **given)


def test_pictures_need_an_adapter(pipe):
    masks = {"ip_adapter_masks": [torch.ones(1, 1, 6, 10)]}
    for given in ({"ip_adapter_image": people(1)}, {"ip_adapter_image_embeds": []}, {"cross_attention_kwargs": masks}):
        with pytest.raises(InputError, match=r"E-IP-ADAPTER\].*none is loaded"):
            run(pipe, **given)
    with pytest.raises(InputError, match=r"E-IP-ADAPTER\].*set_ip_adapter_scale"):
        pipe.set_ip_adapter_scale(0.5)
    with pytest.raises(InputError, match=r"E-IP-ADAPTER\].*prepare_ip"):
        pipe.prepare_ip_adapter_image_embeds(people(1), None)
    with pytest.raises(InputError, match="E-IP-ADAPTER-ENCODER"):
        pipe.encode_image(people(1))


def test_embeddings_do_without_an_encoder(pipe, root):
    ready = load(pipe, root).prepare_ip_adapter_image_embeds(people(1), None)
    wanted = run(pipe, ip_adapter_image=people(1))
    pipe.unload_ip_adapter()
    pipe.load_ip_adapter(root, "models", "plain.bin", image_encoder_folder=None)
    assert pipe.image_encoder is None
    assert torch.equal(run(pipe, ip_adapter_image_embeds=ready), wanted)
    with pytest.raises(InputError, match="E-IP-ADAPTER-ENCODER"):
        run(pipe, ip_adapter_image=people(1))
    without = {"guidance_scale": 1.0, "negative_prompt": None}
    with pytest.raises(InputError, match=r"E-IP-ADAPTER-EMBEDS.*guidance is off"):
        run(pipe, ip_adapter_image_embeds=ready, **without)
    alone = run(pipe, ip_adapter_image_embeds=[ready[0][1:]], **without)
    assert not torch.allclose(alone, wanted, atol=0.05)


def test_a_network_that_was_exchanged(pipe, root):
    load(pipe, root)
    other = tiny.fill(UNetMotionModel.from_config({**pipe.unet.config, "block_out_channels": (16, 32)}))
    pipe.unet = other
    with pytest.raises(InputError, match="E-IP-ADAPTER-FIT"):
        run(pipe, ip_adapter_image=people(1))


@pytest.mark.parametrize(
    ("image", "num_adapters", "batch", "wanted"),
    [
        ("a", 1, 3, [[["a"]]]),
        (["a"], 1, 3, [[["a"]]]),
        ([["a", "b"]], 1, 3, [[["a", "b"]]]),
        (["a", "b"], 1, 2, [[["a"], ["b"]]]),
        ([["a", "b"], ["c", "d"]], 1, 2, [[["a", "b"], ["c", "d"]]]),
        ([[["a"], ["b"]]], 1, 2, [[["a"], ["b"]]]),
        (["a", "b"], 2, 2, [[["a"]], [["b"]]]),
        (["a", ["b", "c"]], 2, 1, [[["a"]], [["b", "c"]]]),
        ([[["a"], ["b"]], "c"], 2, 2, [[["a"], ["b"]], [["c"]]]),
        ([[["a"], ["b"], ["c"]]], 1, None, [[["a"], ["b"], ["c"]]]),
    ],
)
def test_rows_of_pictures(image, num_adapters, batch, wanted):
    assert rows(image, num_adapters, batch) == wanted


def test_tensors_with_a_batch_axis_are_several_pictures():
    a, b = torch.rand(2, 3, 4, 5)
    ((row,),) = rows(torch.stack([a, b]), 1, 7)
    assert len(row) == 2
    assert torch.equal(row[0], a)
    assert torch.equal(row[1], b)


# Strengths


def test_strengths_by_block(pipe):
    at = places(pipe.unet)
    assert [(place.name, place.level) for place in at] == [
        *((f"down_blocks.0.attentions.{i}", 0) for i in (0, 1)),
        *((f"up_blocks.1.attentions.{i}", 0) for i in (0, 1, 2)),
        ("mid_block.attentions.0", 1),
    ]
    assert [place.num_channels for place in at] == list(tiny_ip.CHANNELS)
    assert scales_at(2, at) == (2.0,) * 6
    assert scales_at([0.5, 1], at) == ((0.5, 1.0),) * 6
    given = {"down": [0.1, [0.2, 0.3]], "up": {"block_1": [0.4, 0.5, 0.6]}, "mid": 0.7}
    assert scales_at(given, at) == (0.1, (0.2, 0.3), 0.4, 0.5, 0.6, 0.7)
    assert scales_at({"up": 0.5}, at) == (0.0, 0.0, 0.5, 0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    "scale",
    [
        *("strong", None, True, float("nan"), [], [[]], [0.1, 0.2, 0.3], {"side": 1.0}, {"up": {"block_0": 1.0}}),
        *({"down": [1.0, 2.0, 3.0]}, {"mid": [0.1, 0.2]}, {"up": {"block_1": [0.1, 0.2]}}, {"mid": {"block_0": 1.0}}),
    ],
)
def test_strengths_that_fit_nothing(pipe, root, scale):
    load(pipe, root, "plain.bin", "plus.bin").set_ip_adapter_scale(0.5)
    before = pipe._ip_adapters
    given = scale if isinstance(scale, list) else [scale, 1.0]
    with pytest.raises(InputError, match="E-IP-ADAPTER-SCALE"):
        pipe.set_ip_adapter_scale(given)
    assert pipe._ip_adapters is before


def test_strengths_for_single_pictures_need_masks(pipe, root):
    load(pipe, root).set_ip_adapter_scale([[0.5, 0.6]])
    with pytest.raises(InputError, match=r"E-IP-ADAPTER-SCALE.*Without masks"):
        run(pipe, ip_adapter_image=[people(1, 2)])
    mask = {"ip_adapter_masks": [torch.ones(1, 3, 6, 10)]}
    with pytest.raises(InputError, match=r"E-IP-ADAPTER-SCALE.*2 strengths.*3 pictures"):
        run(pipe, ip_adapter_image=[people(1, 2, 3)], cross_attention_kwargs=mask)


def test_one_number_is_for_all_adapters_and_zero_is_none(pipe, root):
    plain = run(pipe)
    load(pipe, root, "plain.bin", "plus.bin").set_ip_adapter_scale(0.0)
    assert pipe._ip_adapters.scales == ((0.0,) * 6,) * 2
    assert torch.equal(run(pipe, ip_adapter_image=people(1, 2)), plain)


# A run


def count(monkeypatch) -> list[str]:
    """Every projection to keys and values of pictures, and every reading of the text."""
    calls: list[str] = []
    forward, project = IPAdapter.forward, Attention.project
    monkeypatch.setattr(IPAdapter, "forward", lambda self, embeds: calls.append("picture") or forward(self, embeds))
    monkeypatch.setattr(
        Attention, "project", lambda self, text, per_frame: calls.append("text") or project(self, text, per_frame)
    )
    return calls


def test_pictures_are_read_once_for_a_run(pipe, root, monkeypatch):
    """Twice here, for the positive and the negative half; whatever FreeInit and callbacks do in between."""
    load(pipe, root, "plain.bin", "plus.bin")
    calls = count(monkeypatch)
    pipe.enable_free_init(num_iters=2)

    def change(pipe, step, t, tensors):
        return {"prompt_embeds": tensors["prompt_embeds"] * 0.9}

    shown = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    run(pipe, ip_adapter_image=people(1, 2), num_inference_steps=3, **shown)
    assert calls.count("picture") == 4
    assert calls.count("text") == 6 * 6


def test_all_windows_of_a_clip_read_the_same_keys(pipe, root, monkeypatch):
    load(pipe, root)
    given = {"num_frames": 5, "windows": Windows(length=3, stride=2), "num_inference_steps": 2}
    plain = run(pipe, **given, ip_adapter_image=people(2))
    calls = count(monkeypatch)
    seen = run(pipe, **given, ip_adapter_image=people(1))
    assert calls.count("picture") == 2
    gaps = (seen - plain).transpose(1, 2).flatten(2).norm(dim=2) / plain.transpose(1, 2).flatten(2).norm(dim=2)
    assert gaps.min() > 0.02


def test_guidance_switched_off_on_the_way(pipe, root, monkeypatch):
    """The positive half goes on alone, and is not read again."""
    load(pipe, root)
    calls = count(monkeypatch)

    def off(pipe, step, t, tensors):
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[1]}

    shown = {"callback_on_step_end": off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    clip = run(pipe, ip_adapter_image=people(1), num_inference_steps=3, **shown)
    assert torch.isfinite(clip).all()
    assert calls.count("picture") == 2


def test_clips_of_a_batch_see_their_own_picture_only(root):
    """In both numerics, with and without guidance by the picture: another picture changes its own clips and no more."""
    for numerics, image_guidance in (("original", None), ("original", 1.5), ("diffusers", 1.5)):
        pipe = load(tiny_pia.pipeline(unet=tiny_pia.unet(numerics)), root, "plain.bin")
        given = {
            "prompt": ["a cat", "a field"],
            "num_videos_per_prompt": 2,
            "image_guidance_scale": image_guidance,
            "num_inference_steps": 1,
        }
        first, other = (run(pipe, **given, ip_adapter_image=people(1, seed)) for seed in (2, 3))
        assert torch.allclose(first[:2], other[:2], atol=1e-5)
        gaps = (first[2:] - other[2:]).flatten(1).norm(dim=1) / first[2:].flatten(1).norm(dim=1)
        assert gaps.min() > 0.02


def test_masks_keep_a_picture_where_it_belongs(pipe, root):
    """One step of a network whose only path between positions is attention could not be told from the whole; here
    the left half of a mask changes the left of the clip more than the right."""
    load(pipe, root)
    mask = torch.zeros(1, 1, tiny_pia.HEIGHT, tiny_pia.WIDTH)
    mask[..., : tiny_pia.WIDTH // 2] = 1
    plain = run(pipe, ip_adapter_image=people(1), cross_attention_kwargs={"ip_adapter_masks": [mask * 0]})
    pipe.set_ip_adapter_scale(0.0)
    assert torch.allclose(run(pipe, ip_adapter_image=people(1)), plain, atol=1e-6)
    pipe.set_ip_adapter_scale(1.0)
    left = run(pipe, ip_adapter_image=people(1), cross_attention_kwargs={"scale": 1.0, "ip_adapter_masks": [mask]})
    change = (left - plain).abs().mean(dim=(0, 1, 2, 3))
    assert change[:4].mean() > 1.5 * change[6:].mean()
    with pytest.warns(VivantWarning, match="W-IP-ADAPTER-MASK.*80 x 24 is stretched to a clip of 80 x 48"):
        run(pipe, ip_adapter_image=people(1), cross_attention_kwargs={"ip_adapter_masks": [mask[:, :, ::2]]})


def test_data_types_follow_the_pipeline(root):
    pipe = load(copy.deepcopy(tiny_pia.pipeline()), root, "plus.bin")  # its parts are shared with other tests
    wanted = run(pipe, ip_adapter_image=people(1))
    pipe.to(torch.bfloat16)
    (adapter,) = pipe._ip_adapters.adapters
    assert {p.dtype for p in adapter.parameters()} == {torch.bfloat16}
    assert pipe.image_encoder.dtype == torch.bfloat16
    half = run(pipe, ip_adapter_image=people(1)).float()
    assert float((half - wanted).norm() / wanted.norm()) < 0.05
    load(pipe, root, "plain.safetensors")
    assert pipe._ip_adapters.adapters[0].dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*W-OFFLOAD-CPU")
@pytest.mark.parametrize("residency", ["component", "layer"])
def test_every_residency_gives_the_same_bits(root, residency):
    pipe = load(tiny_pia.pipeline(), root, "plus.bin", "plain.safetensors")
    wanted = run(pipe, ip_adapter_image=people(1, 2))
    enable = pipe.enable_model_cpu_offload if residency == "component" else pipe.enable_sequential_cpu_offload
    enable(device="cpu")
    for _ in range(2):
        assert torch.equal(run(pipe, ip_adapter_image=people(1, 2)), wanted)


@pytest.mark.parametrize("kind", ["plain", "plus", "full"])
def test_layers_of_an_adapter_are_where_they_compute(pipe, root, kind):
    """`meta` stands for an accelerator."""
    load(pipe, root, f"{kind}.bin")
    (adapter,) = pipe._ip_adapters.adapters
    shape = (2, 1, tiny_ip.PROJECTED) if kind == "plain" else (2, 1, tiny_ip.POSITIONS, tiny_ip.HIDDEN)
    with active(adapter, MemoryPolicy("meta", residency="layer")) as there:
        assert {keys.device.type for keys, _ in there(torch.ones(shape, device="meta"))} == {"meta"}
    assert {p.device.type for p in adapter.parameters()} == {"cpu"}


# Repositories


def test_a_repository_with_an_image_encoder(root, tmp_path):
    base, adapter = tiny_repo.write_base(tmp_path / "base"), tiny_repo.write_adapter(tmp_path / "adapter")
    pipe = PIAPipeline.from_pretrained(base, motion_adapter=MotionAdapter.from_pretrained(adapter))
    assert pipe.feature_extractor == CLIPImageProcessor()
    assert pipe.image_encoder is None
    pipe.feature_extractor = None
    load(pipe, root)
    pipe.set_progress_bar_config(disable=True)
    wanted = run(pipe, ip_adapter_image=people(1))
    pipe.save_pretrained(tmp_path / "saved")
    again = PIAPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert again.notes == []
    assert same(again.image_encoder.state_dict(), pipe.image_encoder.state_dict())
    assert again.feature_extractor == CLIPImageProcessor(tiny_ip.SIDE, tiny_ip.SIDE)
    assert same(again.unet.state_dict(), pipe.unet.state_dict())
    again.load_ip_adapter(root / "models" / "plain.bin", image_encoder_folder=None)
    assert torch.equal(run(again, ip_adapter_image=people(1)), wanted)
    shared = PIAPipeline.from_pipe(again)
    assert shared._ip_adapters.adapters == ()
    assert shared.image_encoder is again.image_encoder
