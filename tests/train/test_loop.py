"""The loop: a batch is a batch however it is cut, and a run goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tolerances import relative_l2
from train.world import Squares, settings, vae_task
from vivant.errors import InputError, LoadError, OutputError
from vivant.train.checkpoint import checkpoints
from vivant.train.log import read_log
from vivant.train.loop import checkpoint_blocks, gradients, optimiser, train
from vivant.train.processes import Processes
from vivant.train.samples import batches, index_of, parts_of
from vivant.train.settings import Settings, learning_rate
from vivant.vae.image import ResnetBlock

HERE = Path(__file__).parent
PATHS = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}


def trained(folder: Path, **changes) -> dict[str, Tensor]:
    """The weights at the end of a short run."""
    task = vae_task()
    train(task, Squares(), settings(**changes), folder)
    return {name: p.detach().clone() for name, p in task.weights.items()}


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Relative distance of all tensors together."""
    return relative_l2(torch.cat([t.flatten() for t in one.values()]), torch.cat([t.flatten() for t in other.values()]))


# ------------------------------------------------------------------------------------------------ batches


def gradient(**changes) -> dict[str, Tensor]:
    """The gradient of the first step."""
    task, numbers = vae_task(), settings(steps=1, **changes)
    parts = list(batches(Squares(), task.prepare, numbers, 0))
    gradients(task, parts, numbers, torch.float32, Processes())
    return {name: p.grad for name, p in task.weights.items() if p.grad is not None}


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_parts_of_a_batch_make_the_gradient_of_the_batch(micro_batch):
    """4 does not divide 6: a mean of means would be another gradient."""
    whole, cut = gradient(), gradient(micro_batch=micro_batch)
    assert distance(gradient(seed=6), whole) > 0.01
    assert distance(cut, whole) < 1e-5


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain = trained(tmp_path / "a")
    task = vae_task()
    checkpoint_blocks(task.vae, (ResnetBlock,))
    train(task, Squares(), settings(), tmp_path / "b")
    assert distance({name: p.detach() for name, p in task.weights.items()}, plain) < 1e-6


def test_every_epoch_shows_every_clip_once_in_an_order_of_its_own():
    epochs = [[index_of(n, 20, seed=3) for n in range(20 * e, 20 * (e + 1))] for e in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_samples_of_a_step(world):
    for step in range(3):
        seen = [
            n for rank in range(world) for part in parts_of(step, settings(micro_batch=2), rank, world) for n in part
        ]
        assert sorted(seen) == list(range(6 * step, 6 * step + 6))


def test_reading_processes_see_what_the_run_itself_would_see():
    source, task = Squares(), vae_task()
    alone = list(batches(source, task.prepare, settings(steps=2), 0))
    ahead = list(batches(source, task.prepare, settings(steps=2, workers=2), 0))
    assert len(alone) == len(ahead) == 2
    assert all(
        torch.equal(a["pixels"], b["pixels"]) and torch.equal(a["n"], b["n"]) for a, b in zip(alone, ahead, strict=True)
    )


# ------------------------------------------------------------------------------------------------- resume


def run_apart(folder: Path, steps: int, *more: str, kill_at: int | None = None) -> None:
    """The run in a process of its own, killed without warning after a step."""
    command = [sys.executable, str(HERE / "killed.py"), str(folder), str(steps), *more]
    with subprocess.Popen(command, env=QUIET, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if kill_at is not None and int(line) == kill_at:
                process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
                break
        process.stdout.read()
    assert kill_at is not None or process.returncode == 0


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    run_apart(tmp_path / "whole", 11)
    run_apart(tmp_path / "killed", 11, kill_at=7)
    assert [step for step, _ in checkpoints(tmp_path / "killed" / "checkpoints")] == [4]
    run_apart(tmp_path / "killed", 11, "resume")
    for name in ("weights", "average", "mean", "variance"):
        files = [tmp_path / run / "checkpoints" / "00000011" / f"{name}.safetensors" for run in ("whole", "killed")]
        one, other = map(load_file, files)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    logs = [read_log(tmp_path / run) for run in ("whole", "killed")]
    for log in logs:
        for row in log:
            del row["seconds"]
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[0]] == list(range(1, 12))


def test_a_run_is_not_written_over(tmp_path):
    trained(tmp_path, steps=1)
    with pytest.raises(InputError, match="E-TRAIN-EXISTS"):
        trained(tmp_path, steps=2)


@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"batch": 5}, {"seed": 6}, {"decay": "cosine"}])
def test_going_on_with_other_numbers_is_refused_by_name(tmp_path, change):
    trained(tmp_path, steps=1)
    with pytest.raises(InputError, match=f"E-TRAIN-RESUME.*{next(iter(change))}"):
        train(vae_task(), Squares(), settings(steps=2, **change), tmp_path, resume=True)


def test_going_on_with_another_recipe_is_refused(tmp_path):
    train(vae_task(), Squares(), settings(steps=1), tmp_path, recipe={"data": "a"})
    with pytest.raises(InputError, match=r"E-TRAIN-RESUME.*data"):
        train(vae_task(), Squares(), settings(steps=2), tmp_path, recipe={"data": "b"}, resume=True)


def test_a_damaged_checkpoint_is_named(tmp_path):
    trained(tmp_path, steps=1)
    file = tmp_path / "checkpoints" / "00000001" / "mean.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(LoadError, match="E-WEIGHTS-BROKEN"):
        train(vae_task(), Squares(), settings(steps=2), tmp_path, resume=True)


def test_only_the_newest_checkpoints_are_kept_and_half_written_ones_are_none(tmp_path):
    (tmp_path / "checkpoints" / ".00000009.abc").mkdir(parents=True)
    trained(tmp_path, checkpoint_every=1, keep=3)
    assert [step for step, _ in checkpoints(tmp_path / "checkpoints")] == [4, 5, 6]


# ------------------------------------------------------------------------------------------- several processes


def test_two_processes_learn_what_one_learns(tmp_path):
    """5 samples do not divide among 2: a mean over processes would be another loss."""
    from vivant.train.loop import train as alone

    alone(vae_task(), Squares(), settings(batch=5), tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(HERE / "shared.py"), str(tmp_path / "two")], env=QUIET, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    one, two = ([row["loss"] for row in read_log(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == len(two) == 6
    assert max(one) - min(one) > 0.02
    assert two == pytest.approx(one, rel=1e-3)


# ------------------------------------------------------------------------------------------------- numbers


def test_the_average_is_its_formula_and_what_is_exported(tmp_path):
    task, weights = vae_task(), []
    name = next(iter(task.weights))
    average = task.weights[name].detach().clone()
    train(
        task,
        Squares(),
        settings(ema=0.5),
        tmp_path,
        on_step=lambda at: weights.append(task.weights[name].detach().clone()),
    )
    for step, value in enumerate(weights):
        memory = min(0.5, (1 + step) / (10 + step))
        average = memory * average + (1 - memory) * value
    exported = load_file(tmp_path / "export" / "diffusion_pytorch_model.safetensors")[name]
    assert torch.allclose(exported, average, atol=1e-6)
    assert not torch.allclose(exported, weights[-1], atol=1e-4)
    assert torch.equal(task.weights[name], weights[-1])


def test_learning_rates():
    risen = [learning_rate(settings(learning_rate=1.0, warmup=3), step) for step in range(5)]
    assert risen == [0.25, 0.5, 0.75, 1.0, 1.0]
    falling = [learning_rate(settings(learning_rate=1.0, decay="cosine", steps=8), step) for step in range(8)]
    assert falling[0] == 1.0
    assert falling[4] == pytest.approx(0.5)
    assert all(a > b > 0 for a, b in pairwise(falling))


def test_biases_and_norms_are_not_pulled_to_zero():
    task = vae_task()
    decays = {
        id(p): group["weight_decay"] for group in optimiser(task, settings()).param_groups for p in group["params"]
    }
    assert {(p.ndim > 1, decays[id(p)]) for p in task.weights.values()} == {(True, 0.01), (False, 0.0)}


def test_long_gradients_are_cut(tmp_path):
    """With AdamW a cut of all gradients alike shows only where they differ in length from step to step."""
    free, cut = trained(tmp_path / "a", clip_norm=0), trained(tmp_path / "b", clip_norm=0.01)
    assert distance(free, cut) > 1e-3
    assert all(row["gradient"] > 0.01 for row in read_log(tmp_path / "b"))


def test_a_broken_loss_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    task = vae_task()

    def poison(at):
        if at.step == 2:
            with torch.no_grad():
                next(iter(task.weights.values())).fill_(float("nan"))

    with pytest.raises(OutputError, match=r"E-TRAIN-NAN.*step 3"):
        train(task, Squares(), settings(checkpoint_every=1), tmp_path, on_step=poison)
    state = load_file(checkpoints(tmp_path / "checkpoints")[-1][1] / "weights.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "change",
    [{"steps": 0}, {"batch": -1}, {"ema": 1.0}, {"micro_batch": 7}, {"decay": "linear"}, {"precision": "float16"}],
)
def test_numbers_that_make_no_run_are_refused(change):
    with pytest.raises(InputError, match=f"E-TRAIN-SETTING.*{next(iter(change))}"):
        settings(**change)


def test_what_may_change_when_a_run_goes_on():
    assert settings().differences(settings(steps=9, workers=2, micro_batch=3)) == ()
    assert settings(decay="cosine").differences(settings(decay="cosine", steps=9)) == ("steps",)
    assert Settings(steps=1, batch=1).differences(Settings(steps=1, batch=1, beta2=0.9)) == ("beta2",)


def test_tensorboard_is_asked_for_only_where_it_is_wanted(tmp_path, monkeypatch):
    from vivant.errors import MissingPackage

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackage, match="E-TENSORBOARD"):
        trained(tmp_path / "a", steps=1, tensorboard=True)
    trained(tmp_path / "b", steps=1)
