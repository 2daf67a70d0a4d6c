"""What PIA's training shows to the network, piece by piece, against its formulas."""

import copy

import pytest
import torch

import tiny
import tiny_pia
from vivant.errors import InputError
from vivant.pia.motion import MotionAdapter
from vivant.pia.unet import UNetMotionModel
from vivant.train.affinity import coefficients
from vivant.train.base import Repository
from vivant.train.diffusion import Noise, add_noise, draw_timesteps, eps_loss, signal, weight
from vivant.train.pia import ChosenPositions, PiaLoss, PiaTask, condition, new_adapter, which_frames
from vivant.train.samples import Draws

B, F, H, W = 3, 5, 6, 10
TABLE = torch.tensor([[0.0, 0.0], [1.0, 30.0], [2.0, 40.0], [3.0, 50.0], [4.0, 60.0]]).numpy()


def parts() -> Repository:
    """A small base of its own."""
    pipe = tiny_pia.pipeline()
    own = (copy.deepcopy(part) for part in (pipe.vae, pipe.text_encoder))  # a task changes how they compute
    return Repository(*own, pipe.tokenizer, copy.deepcopy(tiny_pia.base()))


def task(**loss) -> PiaTask:
    """PIA training whose modules do something already."""
    return PiaTask(parts(), tiny.fill(copy.deepcopy(tiny_pia.adapter())), PiaLoss(**loss), TABLE, (), F)


def batch(num: int = B) -> dict:
    """Stored latents without deviation, so that nothing but the task draws."""
    pairs = 25 * tiny.noise(num, F, F, seed=4).abs()
    return {
        "n": torch.arange(num),
        "mean": tiny.noise(num, F, 4, H, W, seed=2),
        "deviation": torch.zeros(num, F, 4, H, W),
        "differences": pairs,
        "caption": ("a cat", "cat in a field", "walking")[:num],
    }


def seen(task: PiaTask, monkeypatch: pytest.MonkeyPatch, num: int = B, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Input, timesteps and text keys of the network in one evaluation, and the losses."""
    caught = []

    def predict(self, x, timesteps, text):
        caught.extend((x, timesteps, text.mid[0][0].keys))
        return torch.zeros_like(x[:, :4])

    monkeypatch.setattr(UNetMotionModel, "predict", predict)
    losses = task.losses(batch(num), Draws(seed, range(num)), torch.float32)
    return (*caught, losses["loss"])


def test_the_network_sees_noise_mask_and_picture(monkeypatch):
    inputs, timesteps, _, loss = seen(task(drop_picture=0.0), monkeypatch)
    x0 = batch()["mean"].transpose(1, 2)
    draws = Draws(0, range(B))
    draws.normal((F, 4, H, W))  # of the latents
    frames = draws.integers(F)
    for _ in ("picture", "caption"):
        draws.uniform()
    assert torch.equal(draws.integers(1000), timesteps)
    eps = draws.normal((4, F, H, W))
    abar = signal()[timesteps].view(-1, 1, 1, 1, 1)
    assert torch.allclose(inputs[:, :4], abar.sqrt() * x0 + (1 - abar).sqrt() * eps, atol=1e-6)
    affinity = coefficients(batch()["differences"], frames, torch.from_numpy(TABLE))
    for b in range(B):
        for f in range(F):
            assert torch.allclose(inputs[b, 4, f], affinity[b, f].expand(H, W))
            assert torch.equal(inputs[b, 5:, f], x0[b, :, frames[b]])
    assert affinity.std() > 0.05
    assert torch.allclose(loss, eps.square().flatten(1).mean(1))  # the stand-in predicts zero


def test_a_fifth_of_the_clips_show_no_picture_and_a_tenth_no_caption(monkeypatch):
    learner = task()
    without_picture = without_text = 0
    empty = learner.unet.read_text(tiny_pia.pipeline().encode_prompt("")[0]).mid[0][0].keys
    for seed in range(100):
        inputs, _, keys, _ = seen(learner, monkeypatch, seed=seed)
        without_picture += int((inputs[:, 4:].flatten(1) == 0).all(1).sum())
        without_text += int(torch.isclose(keys, empty, atol=1e-6).flatten(1).all(1).sum())
    assert 40 < without_picture < 80  # 60 of 300
    assert 15 < without_text < 47  # 30 of 300


def test_mask_and_picture_are_dropped_together():
    x0 = tiny.noise(B, 4, F, H, W)
    still = x0[torch.arange(B), :, torch.tensor([0, 2, 4])]
    picture = condition(still, torch.full((B, F), 0.5), torch.tensor([True, False, True]))
    assert picture.shape == (B, 5, F, H, W)
    assert picture[1].abs().max() == 0
    assert (picture[0, 0] == 0.5).all()
    assert torch.equal(picture[2, 1:, 3], x0[2, :, 4])


def test_only_motion_and_the_input_learn():
    learner = task()
    names = set(learner.weights)
    assert {"conv_in.weight", "conv_in.bias"} < names
    assert all(".motion_modules." in name or name.startswith("conv_in.") for name in names)
    before = {name: p.detach().clone() for name, p in learner.unet.named_parameters()}
    learner.losses(batch(), Draws(0, range(B)), torch.float32)["loss"].sum().backward()
    torch.optim.SGD(list(learner.weights.values()), lr=0.1).step()
    changed = {name for name, p in learner.unet.named_parameters() if not torch.equal(p, before[name])}
    assert changed == names - {name for name in names if learner.weights[name].grad is None}
    assert len(changed) > 0.9 * len(names)
    assert all(
        torch.equal(p, q) for p, q in zip(learner.parts.unet.parameters(), tiny_pia.base().parameters(), strict=True)
    )


def test_the_part_of_the_input_that_every_base_brings_can_be_kept():
    learner = task(conv_in="picture")
    assert "conv_in.bias" not in learner.weights
    before = learner.unet.conv_in.weight.detach().clone()
    learner.losses(batch(), Draws(0, range(B)), torch.float32)["loss"].sum().backward()
    torch.optim.AdamW(list(learner.weights.values()), lr=0.1, weight_decay=0.5).step()  # decay moves all that it sees
    assert torch.equal(learner.unet.conv_in.weight[:, :4], before[:, :4])
    assert (learner.unet.conv_in.weight[:, 4:] != before[:, 4:]).float().mean() > 0.9


def test_the_first_frame_can_be_the_picture(monkeypatch):
    inputs, *_ = seen(task(drop_picture=0.0, first=1.0), monkeypatch)
    x0 = batch()["mean"]
    assert (inputs[:, 4, 0] == 1).all()
    assert torch.equal(inputs[:, 5:, 2], x0[:, 0])


def test_a_window_of_each_clip_can_be_shown(monkeypatch):
    """Its frames stand beside each other in the clip, begin where the draw says, and are compared with each other."""
    inputs, timesteps, _, loss = seen(task(drop_picture=0.0, first=1.0, window=3), monkeypatch)
    assert inputs.shape == (B, 9, 3, H, W)
    draws = Draws(0, range(B))
    draws.normal((F, 4, H, W))
    draws.integers(3)
    for _ in ("picture", "caption"):
        draws.uniform()
    assert torch.equal(draws.integers(1000), timesteps)
    eps = draws.normal((4, 3, H, W))
    draws.uniform()
    begin = draws.integers(F - 3 + 1)
    abar = signal()[timesteps].view(-1, 1, 1, 1, 1)
    x0 = torch.stack([clip[i : i + 3] for clip, i in zip(batch()["mean"], begin, strict=True)]).transpose(1, 2)
    assert torch.allclose(inputs[:, :4], abar.sqrt() * x0 + (1 - abar).sqrt() * eps, atol=1e-6)
    assert torch.equal(inputs[:, 5:, 2], x0[:, :, 0])
    pairs = torch.stack([p[i : i + 3, i : i + 3] for p, i in zip(batch()["differences"], begin, strict=True)])
    affinity = coefficients(pairs, torch.zeros(B, dtype=torch.long), torch.from_numpy(TABLE))
    assert torch.allclose(inputs[:, 4, :, 0, 0], affinity)
    assert (loss > 0.5).all()
    assert {int(i) for seed in range(9) for i in _begins(seed)} == {0, 1, 2}


def _begins(seed: int) -> torch.Tensor:
    draws = Draws(seed, range(B))
    draws.normal((F, 4, H, W))
    return draws.integers(3)


def test_some_frames_of_each_clip_can_be_shown(monkeypatch):
    """The picture's and random others, in order, each with its own affinity."""
    learner = task(drop_picture=0.0, frames=3)
    x0, chosen = batch()["mean"], set()
    for seed in range(9):
        inputs, *_ = seen(learner, monkeypatch, seed=seed)
        places = learner.places.of_clips
        assert inputs.shape == (B, 9, 3, H, W)
        assert (places.diff(dim=1) > 0).all()
        draws = Draws(seed, range(B))
        draws.normal((F, 4, H, W))
        cond_frames = draws.integers(F)
        assert (places == cond_frames[:, None]).any(1).all()
        chosen |= {tuple(row) for row in places.tolist()}
        affinity = coefficients(batch()["differences"], cond_frames, torch.from_numpy(TABLE))
        for b in range(B):
            assert torch.equal(inputs[b, 4, :, 0, 0], affinity[b, places[b]])
            assert torch.equal(inputs[b, 5:, 1], x0[b, cond_frames[b]])
    assert len(chosen) > 7  # of the ten ways to choose three of five


def test_shown_frames_are_those_of_the_clip(monkeypatch):
    """With hardly any noise the network sees their latents."""
    monkeypatch.setattr("vivant.train.pia.draw_timesteps", lambda draws, noise: draws.integers(1))
    learner = task(frames=2)
    inputs, *_ = seen(learner, monkeypatch)
    for b, places in enumerate(learner.places.of_clips):
        close = torch.cdist(inputs[b, :4].transpose(0, 1).flatten(1), batch()["mean"][b].flatten(1))
        assert torch.equal(close.argmin(1), places)


def test_shown_frames_stand_at_their_own_positions():
    """Frames 0, 2, 3 of a clip are to the motion modules what they are in the whole clip, not frames 0, 1, 2."""
    learner = task()
    layer = next(m for m in learner.unet.modules() if isinstance(m, ChosenPositions))
    table, x = layer.pe[0], tiny.noise(4, 3, layer.pe.shape[-1], seed=5)
    learner.places.of_clips = torch.tensor([[0, 2, 3], [1, 2, 4]])
    expected = x + torch.stack([table[[0, 2, 3]]] * 2 + [table[[1, 2, 4]]] * 2)  # two positions of each picture
    assert torch.equal(layer(x), expected)
    learner.places.of_clips = None
    assert torch.equal(layer(x), x + table[:3])


def test_more_frames_than_there_are_are_refused():
    for loss in ({"window": F + 1}, {"frames": F + 1}, {"window": 3, "frames": 4}):
        with pytest.raises(InputError, match="E-TRAIN-SETTING"):
            task(**loss).losses(batch(), Draws(0, range(B)), torch.float32)


def test_gradient_checkpointing_keeps_the_positions():
    """What is computed again in the backward pass stands where it stood."""
    grads = []
    for checkpointing in (False, True):
        adapter = tiny.fill(copy.deepcopy(tiny_pia.adapter()))
        learner = PiaTask(parts(), adapter, PiaLoss(frames=2), TABLE, (), F, gradient_checkpointing=checkpointing)
        learner.losses(batch(), Draws(1, range(B)), torch.float32)["loss"].sum().backward()
        grads.append(torch.cat([w.grad.flatten() for w in learner.weights.values() if w.grad is not None]))
    assert torch.allclose(*grads, atol=1e-6 * grads[0].abs().max())


def test_loops_go_there_and_back():
    there, loop = which_frames(torch.tensor([0, 3]), torch.tensor([False, True]), 8).tolist()
    assert there == list(range(8))
    assert loop == [3, 5, 7, 9, 9, 7, 5, 3]


def test_it_learns_with_the_numerics_of_the_original():
    assert task().unet.numerics == "original"


def test_new_modules_change_nothing():
    base = tiny_pia.base()
    new = new_adapter(base.settings, seed=1, motion_num_attention_heads=4)
    unet = UNetMotionModel.from_unet2d(base, new, numerics="diffusers")
    x, text = tiny.noise(1, 9, 2, H, W), tiny.noise(1, tiny.TOKENS, tiny.TEXT_DIM, seed=1)
    with torch.no_grad():
        clip = unet(x, 500, text).sample
        stills = [base(x[:, :4, f], 500, text).sample for f in range(2)]
    assert torch.allclose(clip, torch.stack(stills, dim=2), atol=1e-5)
    weights = [p for p in new.parameters() if p.abs().max() > 0]
    assert len(weights) > 20


def test_what_is_exported_is_what_was_trained(tmp_path):
    learner = task()
    with torch.no_grad():
        for p in learner.weights.values():
            p.add_(0.01)
    learner.export(tmp_path)
    read = MotionAdapter.from_pretrained(tmp_path)
    again = UNetMotionModel.from_unet2d(tiny_pia.base(), read, numerics="original", conv_in="adapter")
    x, text = tiny.noise(1, 9, F, H, W), tiny.noise(1, tiny.TOKENS, tiny.TEXT_DIM, seed=1)
    with torch.no_grad():
        assert torch.equal(again(x, 500, text).sample, learner.unet(x, 500, text).sample)


# ------------------------------------------------------------------------------------------------------- noise


def test_noise_is_added_as_the_samplers_take_it_away():
    x0, eps, t = tiny.noise(2, 4, 3, 5, 6), tiny.noise(2, 4, 3, 5, 6, seed=1), torch.tensor([10, 990])
    abar = signal()
    noisy = add_noise(x0, eps, t, abar)
    for i in range(2):
        a = abar[t[i]].item()
        assert torch.allclose(noisy[i], a**0.5 * x0[i] + (1 - a) ** 0.5 * eps[i], atol=1e-6)
    assert abar[-1] < 0.002  # the linear schedule
    assert abar[500].item() == pytest.approx(0.161, abs=0.001)


def test_weights_of_noise_levels():
    abar = torch.tensor([0.9, 0.5, 0.1])
    t = torch.arange(3)
    assert weight(t, abar, Noise()).tolist() == [1, 1, 1]
    assert weight(t, abar, Noise(snr_limit=5)).tolist() == pytest.approx([5 / 9, 1, 1])
    assert weight(t, abar, Noise(high=1)).tolist() == pytest.approx([10 / 9, 2, 10])
    assert weight(t, abar, Noise(high=0.5, snr_limit=5)).tolist() == pytest.approx(
        [5 / 9 * (10 / 9) ** 0.5, 2**0.5, 10**0.5]
    )


def test_the_error_of_the_velocity_is_what_its_weight_says():
    x0, eps, wrong = (tiny.noise(2, 4, 3, 5, 6, seed=seed) for seed in range(3))
    abar, t = signal(), torch.tensor([200, 900])
    a, s = abar[t].sqrt().view(-1, 1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1, 1)
    noisy = add_noise(x0, eps, t, abar)
    v, predicted = a * eps - s * x0, a * wrong - s * (noisy - s * wrong) / a
    expected = (predicted - v).square().flatten(1).mean(1)
    assert torch.allclose(eps_loss(wrong, eps, weight(t, abar, Noise(high=1))), expected, rtol=1e-4)


def test_high_noise_can_come_more_often():
    draws = Draws(3, range(4000))
    t = draw_timesteps(draws, Noise(skew=2.0))
    assert 0 <= t.min() < 50
    assert t.max() < 1000
    assert (t >= 750).float().mean().item() == pytest.approx(0.5, abs=0.03)  # T (1 - u^2) > 0.75 T for u < 1/2
    assert torch.equal(draw_timesteps(Draws(3, range(5)), Noise()), Draws(3, range(5)).integers(1000))


def test_a_loss_is_the_mean_of_its_own_sample():
    predicted, eps = tiny.noise(2, 4, 3, 5, 6), tiny.noise(2, 4, 3, 5, 6, seed=1)
    loss = eps_loss(predicted, eps, torch.tensor([1.0, 0.25]))
    assert loss[1].item() == pytest.approx(0.25 * (predicted[1] - eps[1]).square().mean().item(), rel=1e-5)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "values", [{"drop_picture": 1.2}, {"drop_text": -0.1}, {"conv_in": "none"}, {"window": 1}, {"frames": 1}]
)
def test_losses_that_make_no_sense_are_refused(values):
    with pytest.raises(InputError, match="E-TRAIN-SETTING"):
        PiaLoss(**values)
    with pytest.raises(InputError, match="E-TRAIN-SETTING"):
        Noise(offset=-1)
    with pytest.raises(InputError, match="E-TRAIN-SETTING"):
        Noise(high=-0.5)
    with pytest.raises(InputError, match="E-TRAIN-SETTING"):
        Noise(skew=0.5)
