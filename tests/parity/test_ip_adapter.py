"""IP-Adapters against diffusers': the same files, embeddings, projections, one evaluation, whole trajectories."""

import warnings

import diffusers
import pytest
import torch
from diffusers.image_processor import IPAdapterMaskProcessor

import tiny
import tiny_ip
import tiny_repo
from tolerances import TRAJECTORY, assert_parity, relative_l2
from vivant.denoise import State
from vivant.pia.conditioning import Conditioning, Guidance, reader
from vivant.pia.generate import predict
from vivant.pia.motion import MotionAdapter
from vivant.pia.picture_prompt import PicturePrompt, see
from vivant.pipelines.pia import PIAPipeline
from vivant.prompts import Prompts

pytestmark = [
    pytest.mark.filterwarnings("ignore::vivant.errors.VivantWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
F, H, W = tiny.FRAMES, 8 * tiny.HEIGHT, 8 * tiny.WIDTH
KINDS = ["plain", "plus", "full"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repositories")
    tiny_repo.write_base(folder / "base")
    tiny_repo.write_adapter(folder / "adapter")
    return tiny_ip.write(folder)


@pytest.fixture(scope="module")
def port(root):
    adapter = diffusers.MotionAdapter.from_pretrained(root / "adapter")
    pipe = diffusers.PIAPipeline.from_pretrained(root / "base", motion_adapter=adapter, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours(root):
    adapter = MotionAdapter.from_pretrained(root / "adapter")
    pipe = PIAPipeline.from_pretrained(root / "base", motion_adapter=adapter, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(root, *pipes, names=("plain.bin",), scale=None):
    for pipe in pipes:
        pipe.load_ip_adapter(str(root), subfolder="models", weight_name=list(names))
        if scale is not None:
            pipe.set_ip_adapter_scale(scale)


def run(pipe, seed: int = 3, **changes):
    given = {
        "image": torch.rand(1, 3, H, W, generator=torch.Generator().manual_seed(5)),
        "prompt": "a cat in a field",
        "negative_prompt": "dark, sketches",
        "num_frames": F,
        "height": H,
        "width": W,
        "num_inference_steps": 2,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(seed),
        "ip_adapter_image": tiny_ip.person(),
    }
    return pipe(**{**given, **changes}).frames


def check(port, ours, **changes):
    theirs = run(port, **changes)
    assert_parity(run(ours, **changes), theirs, TRAJECTORY)
    return theirs


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_and_projections(root, port, ours, kind):
    load(root, port, ours, names=[f"{kind}.safetensors"])
    pictures = [tiny_ip.person(1), tiny_ip.person(2, (50, 91))]
    positions = kind != "plain"
    for mine, theirs in zip(
        ours.encode_image(pictures, "cpu", 2, positions), port.encode_image(pictures, "cpu", 2, positions), strict=True
    ):
        if theirs.any():
            assert_parity(mine, theirs)
        else:
            assert torch.equal(mine, theirs)
    theirs = port.prepare_ip_adapter_image_embeds([pictures], None, "cpu", 3, True)
    mine = ours.prepare_ip_adapter_image_embeds([pictures], None, "cpu", 3, True)
    assert_parity(mine[0], theirs[0])
    assert_parity(ours._ip_adapters.adapters[0].tokens(mine[0]), port.unet.encoder_hid_proj(theirs)[0])
    again = ours.prepare_ip_adapter_image_embeds(None, mine, "cpu", 1, True)
    assert torch.equal(again[0], mine[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_frame", [False, True])
@torch.no_grad()
def test_one_evaluation_with_three_guidances(root, port, ours, kind, per_frame):
    """Two clips with pictures of their own; text for each clip or each frame; neither, negative and positive."""
    load(root, port, ours, names=[f"{kind}.bin"])
    ours.set_ip_adapter_scale(0.6)
    port.set_ip_adapter_scale(0.6)
    b, t = 2, 341
    rows = b * F if per_frame else b
    negative, positive = (tiny.noise(rows, tiny.TOKENS, tiny.TEXT_DIM, seed=s) for s in (1, 2))
    x = tiny.noise(b, 4, F, tiny.HEIGHT, tiny.WIDTH, seed=4)
    seen = tiny.noise(b, 5, F, tiny.HEIGHT, tiny.WIDTH, seed=5)
    sides = [] if kind == "plain" else [tiny_ip.POSITIONS]
    width = tiny_ip.PROJECTED if kind == "plain" else tiny_ip.HIDDEN
    halves = [tiny.noise(b, 3, *sides, width, seed=s) for s in (6, 7)]

    prompt = PicturePrompt(ours._ip_adapters.adapters[0], ours._ip_adapters.scales[0], halves[1], halves[0])
    pictures = see([prompt], ours.unet, b, (tiny.HEIGHT, tiny.WIDTH), ours.memory)
    prompts = Prompts(positive, negative, per_frame)
    state = State(0, x, conditioning=Conditioning(seen, prompts), guidance=Guidance(4.0, 1.5))
    mine = predict(ours.unet, x, t, state, reader(ours.unet, pictures)(prompts, 3))

    outputs = []
    for text, half, view in (
        (negative, halves[0], torch.zeros_like(seen)),
        (negative, halves[0], seen),
        (positive, halves[1], seen),
    ):
        text = text if per_frame else text.repeat_interleave(F, dim=0)
        given = torch.cat([x, view], dim=1)
        outputs.append(port.unet(given, t, text, added_cond_kwargs={"image_embeds": [half]}).sample)
    without, with_, prompted = outputs
    assert_parity(mine, without + 1.5 * (with_ - without) + 4.0 * (prompted - with_))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_trajectory_of_every_kind(root, port, ours, kind, guidance):
    load(root, port, ours, names=[f"{kind}.bin"], scale=0.8)
    theirs = check(port, ours, guidance_scale=guidance)
    ours.set_ip_adapter_scale(0.0)
    assert relative_l2(run(ours, guidance_scale=guidance), theirs) > 0.1


def test_names_of_files_say_nothing(root, port, ours, tmp_path):
    """A plus adapter under the name of a plain one, as a file of its own, without an image encoder beside it."""
    load(root, port, names=["plus.bin"])
    file = tmp_path / "ip-adapter_sd15.bin"
    file.write_bytes((root / "models" / "plus.bin").read_bytes())
    ours.load_ip_adapter(file, image_encoder_folder=None)
    check(port, ours)


@pytest.mark.parametrize(
    "scale",
    [
        [0.3, 0.9],
        [{"up": {"block_1": [0.0, 1.0, 0.4]}}, {"down": {"block_0": [0.0, 0.7]}, "mid": 0.5}],
        [{"up": 0.6, "mid": [0.2]}, {"down": [0.3, 0.8], "up": {"block_1": [0.5]}}],
        [0.0, {"mid": 1.2}],
    ],
)
def test_two_adapters_and_their_strengths(root, port, ours, scale):
    load(root, port, ours, names=["plain.bin", "plus.safetensors"], scale=scale)
    check(port, ours, ip_adapter_image=[tiny_ip.person(1), [tiny_ip.person(2), tiny_ip.person(3)]])


def masks(*seeds: int, height: int = H, width: int = W) -> torch.Tensor:
    """As the port's own processor makes them of pictures."""
    pictures = [tiny_ip.person(seed, (width, height)) for seed in seeds]
    made = IPAdapterMaskProcessor().preprocess(pictures, height=height, width=width)
    return made.reshape(1, len(seeds), height, width)


def test_masks_for_every_picture(root, port, ours):
    load(root, port, ours, names=["plain.bin", "plus.bin"], scale=[[0.9, 0.4], 0.7])
    pictures = [[tiny_ip.person(1), tiny_ip.person(2)], [tiny_ip.person(3), tiny_ip.person(4)]]
    given = {"ip_adapter_image": pictures, "cross_attention_kwargs": {"ip_adapter_masks": [masks(5, 6), masks(7, 8)]}}
    with_ = check(port, ours, **given)
    port.set_ip_adapter_scale([0.9, 0.7])
    ours.set_ip_adapter_scale([0.9, 0.7])
    assert relative_l2(check(port, ours, **given), with_) > 0.02
    given["cross_attention_kwargs"] = {"ip_adapter_masks": [masks(5, 6), None]}
    assert relative_l2(check(port, ours, **given), with_) > 0.02


def test_masks_in_the_older_form_and_by_blocks(root, port, ours):
    load(root, port, ours, names=["plain.bin", "full.bin"], scale=[{"up": 0.8, "down": {"block_0": [[0.5], 1.0]}}, 0.6])
    older = torch.cat([masks(5), masks(6)])
    pictures = [tiny_ip.person(1), tiny_ip.person(2)]
    check(port, ours, ip_adapter_image=pictures, cross_attention_kwargs={"ip_adapter_masks": older})


def test_embeddings_in_place_of_pictures(root, port, ours):
    load(root, port, ours, names=["plus.bin", "plain.bin"])
    pictures = [tiny_ip.person(1), tiny_ip.person(2)]
    ready = ours.prepare_ip_adapter_image_embeds(pictures, None, "cpu", 1, True)
    theirs = check(port, ours, ip_adapter_image=None, ip_adapter_image_embeds=ready)
    assert_parity(run(ours, ip_adapter_image=pictures), theirs, TRAJECTORY)


TWO = {
    "image": torch.rand(2, 3, H, W, generator=torch.Generator().manual_seed(5)),
    "prompt": ["a cat", "a field in the dark"],
    "negative_prompt": ["dark", "quality"],
    "latents": tiny.noise(2, 4, F, tiny.HEIGHT, tiny.WIDTH, seed=9),
}


def seeded() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (8, 9)]


def test_two_prompts_that_see_the_same_picture(root, port, ours):
    load(root, port, ours)
    theirs, mine = (run(pipe, **TWO, generator=seeded()) for pipe in (port, ours))
    assert_parity(mine, theirs, TRAJECTORY)


@pytest.mark.parametrize("kind", KINDS)
def test_two_prompts_with_pictures_of_their_own(root, port, ours, kind):
    """Every clip is what the port makes of its prompt and its picture alone."""
    load(root, port, ours, names=[f"{kind}.bin"])
    people = [tiny_ip.person(1), tiny_ip.person(2)]
    alone = []
    for i, generator in enumerate(seeded()):
        one = {name: value[i : i + 1] for name, value in TWO.items()}
        alone.append(run(port, **one, generator=generator, ip_adapter_image=people[i]))
    mine = run(ours, **TWO, generator=seeded(), ip_adapter_image=people)
    assert_parity(mine, torch.cat(alone), TRAJECTORY)
    swapped = run(ours, **TWO, generator=seeded(), ip_adapter_image=people[::-1])
    assert all(relative_l2(a, b) > 0.05 for a, b in zip(swapped, mine, strict=True))
    ready = ours.prepare_ip_adapter_image_embeds(people, None, "cpu", 1, True)
    given = run(ours, **TWO, generator=seeded(), ip_adapter_image=None, ip_adapter_image_embeds=ready)
    assert torch.equal(given, mine)


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_the_port_mixes_the_people_of_a_batch_and_we_do_not(root, port, ours, kind):
    """Given an embedding for each prompt, a clip of the port changes with the picture of the other prompt."""
    load(root, port, ours, names=[f"{kind}.bin"])
    clips = {}
    for other in (2, 3):
        people = [tiny_ip.person(1), tiny_ip.person(other)]
        ready = ours.prepare_ip_adapter_image_embeds(people, None, "cpu", 1, True)
        given = {**TWO, "ip_adapter_image": None, "ip_adapter_image_embeds": ready}
        clips[other] = [run(pipe, **given, generator=seeded())[0] for pipe in (port, ours)]
    (theirs, mine), (theirs_again, mine_again) = clips.values()
    assert relative_l2(theirs_again, theirs) > 0.05
    assert relative_l2(mine_again, mine) < 1e-5
    with pytest.raises(ValueError, match="must have same length"):
        run(port, **TWO, generator=seeded(), ip_adapter_image=[tiny_ip.person(1), tiny_ip.person(2)])


def test_several_clips_of_a_prompt_see_its_picture(root, port, ours):
    """The port makes one clip, whatever num_videos_per_prompt says; asked four times, it makes ours."""
    load(root, port, ours, names=["plus.bin"])
    latents = tiny.noise(4, 4, F, tiny.HEIGHT, tiny.WIDTH, seed=9)
    people = [tiny_ip.person(1), tiny_ip.person(2)]
    alone = []
    for i in range(4):
        one = {name: value[i // 2 : i // 2 + 1] for name, value in TWO.items()} | {"latents": latents[i : i + 1]}
        alone.append(run(port, **one, ip_adapter_image=people[i // 2], seed=i))
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    given = {**TWO, "latents": latents, "ip_adapter_image": people, "num_videos_per_prompt": 2}
    assert_parity(run(ours, **given, generator=generators), torch.cat(alone), TRAJECTORY)


@pytest.mark.parametrize(("size", "agrees"), [((48, 80), True), ((72, 120), False)])
def test_a_mask_lies_where_it_was_drawn(root, ours, size, agrees):
    """The port guesses height and width of a level from the number of its positions; we know them."""
    load(root, ours)
    mask = torch.zeros(1, *size)
    mask[:, : size[0] // 2, : size[1] // 2] = 1
    cells = [-(-side // 16) for side in size]
    known = torch.nn.functional.interpolate(mask[None], size=cells, mode="bicubic")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        theirs = IPAdapterMaskProcessor.downsample(mask, 1, cells[0] * cells[1], 1)[0]
    assert torch.allclose(theirs, known.reshape(-1, 1), atol=1e-6) == agrees
    adapter, scales = ours._ip_adapters.adapters[0], ours._ip_adapters.scales[0]
    prompt = PicturePrompt(adapter, scales, tiny.noise(1, 1, tiny_ip.PROJECTED), None, mask)
    seen = see([prompt], ours.unet, 1, (size[0] // 8, size[1] // 8), ours.memory)
    assert torch.equal(seen.positive[-1][0].mask, known.reshape(-1, 1))
