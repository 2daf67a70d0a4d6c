"""What clips of avatars are asked: the measure finds the right person, and can fail."""

import numpy as np
import pytest
import torch

import tiny
from vivant.evaluate.avatars import QUESTIONS, SHOWN, Judge, JudgeTask, answered, answers, identified, truth
from vivant.pocket.avatars import TRAITS, AvatarClips
from vivant.train.samples import Draws, collate

NUM = 60


@pytest.fixture(scope="module")
def clips():
    return [AvatarClips(NUM, 9, 16, split="held out").read(i, np.random.default_rng(0)) for i in range(NUM)]


def knowing(clips, doubt: float = 0.1) -> dict[str, torch.Tensor]:
    """What a judge would say who sees everything."""
    said = {}
    for name, options in QUESTIONS.items():
        wanted = torch.tensor([truth(clip)[name] for clip in clips])
        right = torch.nn.functional.one_hot(wanted, len(options)).float()
        said[name] = ((1 - doubt) * right + doubt / len(options)).log()
    return said


def test_who_sees_everything_finds_everybody(clips):
    said = knowing(clips)
    assert all(identified(said, [clip.avatar for clip in clips]))
    for name in SHOWN:
        assert all(answered(said, clips, name))


def test_who_sees_the_next_person_finds_nobody_s_own(clips):
    """The clips made of other people: the measure falls to chance or below."""
    others = [*clips[30:], *clips[:30]]
    assert sum(identified(knowing(others), [clip.avatar for clip in clips])) < 0.2 * NUM
    assert sum(answered(knowing(others), clips, "action")) < 0.5 * NUM


def test_who_sees_nothing_finds_nobody(clips):
    said = {name: torch.full((NUM, len(options)), -1.0) for name, options in QUESTIONS.items()}
    assert not any(identified(said, [clip.avatar for clip in clips]))


def test_one_trait_is_not_enough(clips):
    said = knowing(clips)
    for name in TRAITS:
        if name != "skin":
            said[name] = torch.zeros_like(said[name])
    assert sum(identified(said, [clip.avatar for clip in clips])) < 0.4 * NUM


def test_the_candidates_have_to_be_different_people(clips):
    with pytest.raises(ValueError, match="20 different"):
        identified(knowing(clips), [clip.avatar for clip in clips[:19]])
    with pytest.raises(ValueError, match="20 different"):
        identified(knowing(clips), [clips[0].avatar] * NUM)


def test_the_judge_learns_from_clips_and_says_probabilities():
    torch.manual_seed(0)
    judge, source = Judge(width=8), AvatarClips(8)
    task = JudgeTask(judge)
    batch = collate([{"n": i, **task.prepare(source.read(i, np.random.default_rng(i)), None)} for i in range(4)])
    values = task.losses(batch, Draws(0, range(4)), torch.float32)
    values["loss"].sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in task.weights.values())
    assert set(values) == {"loss", "traits", *SHOWN}
    adam, first = torch.optim.Adam(judge.parameters(), lr=2e-3), values["loss"].mean().item()
    for _ in range(15):
        adam.zero_grad()
        task.losses(batch, Draws(0, range(4)), torch.float32)["loss"].mean().backward()
        adam.step()
    last = task.losses(batch, Draws(0, range(4)), torch.float32)["loss"].mean().item()
    assert last < 0.8 * first
    said = answers(judge, batch["pixels"].numpy(), batch=3)
    assert said["action"].shape == (4, len(SHOWN["action"]))
    assert torch.allclose(said["skin"].exp().sum(1), torch.ones(4), atol=1e-5)


def test_a_judge_is_read_as_it_was_written(tmp_path):
    judge = tiny.fill(Judge())
    JudgeTask(judge).export(tmp_path)
    x = tiny.noise(1, 9, 3, 64, 64)
    assert torch.equal(judge(x)["hair"], Judge.read(tmp_path)(x)["hair"])
