"""`vivant pull` as its own process, from a hub on this machine."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from commands import Ran
from hub_server import COMMIT, Hub, serving
from tiny import noise
from vivant.cli.screen import Code
from vivant.hub.converted import converted
from vivant.hub.pull import PARTS, RECORD
from vivant.hub.repo import Source, locate

REPO = "someone/ConsisID-small"
FACE = "face_encoder/models/antelopev2/glintr100.onnx"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
PARSER = "face_encoder/parsing_bisenet.pth"


class Canary:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickled(value: Any, folder: Path) -> bytes:
    torch.save(value, folder / "made.pt")
    data = (folder / "made.pt").read_bytes()
    (folder / "made.pt").unlink()
    return data


def tensors() -> dict[str, torch.Tensor]:
    """What is hard to store: views, aliases, other layouts, empty and half tensors."""
    whole = noise(6, 8)
    return {
        "whole": whole,
        "alias": whole,
        "part": whole[1:3],
        "turned": whole.T,
        "half": noise(3, 5).to(torch.bfloat16),
        "none": torch.zeros(0, 4),
        "count": torch.tensor(7),
    }


@pytest.fixture
def hub(tmp_path: Path) -> Generator[Hub]:
    files = {
        "README.md": b"# small\n",
        "model_index.json": b"{}",
        "transformer/config.json": b'{"a": 1}',
        WEIGHTS: save({"a": noise(200, 300)}),
        PARSER: pickled(tensors(), tmp_path),
        FACE: b"onnx" * 500,
        "everything.ckpt": b"not read by anything here",
    }
    with serving(Hub(REPO, files, {"license": "apache-2.0"})) as hub:
        yield hub


Pull = Callable[..., Ran]


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Of a process that has only this hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    kept = {key: value for key, value in kept.items() if not key.lower().endswith("_proxy")}
    return {**kept, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}


@pytest.fixture
def pull(environment: dict[str, str], tmp_path: Path) -> Pull:
    """Runs `vivant pull` without a terminal."""

    def run(*args: str, repo: str = REPO, **more: str) -> Ran:
        command = [sys.executable, "-m", "vivant.cli", "pull", repo, *args]
        place: dict[str, Any] = {"env": {**environment, **more}, "cwd": tmp_path, "stdin": subprocess.DEVNULL}
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **place)
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home" / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT


def fetched(folder: Path) -> set[str]:
    """The files in a folder that are not ours or the client's."""
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {name for name in files if not name.startswith((".cache", ".vivant"))}


def test_without_consent_it_says_what_it_would_fetch_and_fetches_nothing(pull: Pull, hub: Hub, tmp_path: Path):
    ran = pull()
    assert ran.code == Code.INPUT
    assert ran.out == ""
    listing, error = ran.err.split("Error [E-PULL-LICENCE]")
    for name in set(hub.files) - {"everything.ckpt"}:
        assert name in listing
    assert f"{REPO}: apache-2.0" in listing
    assert "transformer: the CogVideoX licence" in listing
    assert "face_encoder/models/antelopev2: antelopev2: for non-commercial research only" in listing
    assert "Left out: 1 files" in listing
    assert "--accept-licence" in error
    assert (hub.sent("GET"), hub.sent("HEAD")) == ([], [])
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    assert not list(tmp_path.rglob(RECORD))


def test_with_consent_everything_is_there_and_asked_for_once(pull: Pull, hub: Hub, folder: Path):
    ran = pull("--accept-licence")
    assert (ran.code, ran.out.strip()) == (Code.OK, str(folder)), ran.err
    due = set(hub.files) - {"everything.ckpt"}
    assert fetched(folder) == due | {"face_encoder/parsing_bisenet.safetensors"}
    assert all((folder / name).read_bytes() == hub.files[name] for name in due)
    assert sorted(hub.sent()) == sorted(due)

    hub.requests.clear()
    again = pull()
    assert (again.code, again.out) == (Code.OK, ran.out), "the consent was not remembered"
    assert "0 files fetched, 6 verified, 0 converted" in again.err
    assert (hub.sent("GET"), hub.sent("HEAD")) == ([], [])

    cached = Source(REPO, "transformer", cache_dir=folder.parents[2], local_files_only=True)
    assert locate(cached, ["config.json"]) == folder / "transformer", "not found by the name of its revision"


def test_other_licences_are_asked_for_anew(pull: Pull, hub: Hub):
    assert pull("--accept-licence", "--only", "README.md").code == Code.OK
    assert pull("--only", "README.md").code == Code.OK
    assert "E-PULL-LICENCE" in pull("--only", "face_encoder/*").err
    hub.card = {"license": "other", "license_name": "my\nlicence", "license_link": "https://example.com/terms"}
    ran = pull("--only", "README.md")
    assert "E-PULL-LICENCE" in ran.err
    assert f"{REPO}: my licence (https://example.com/terms)" in ran.err


@pytest.mark.parametrize(("answer", "code"), [("y", Code.OK), ("n", Code.INPUT), ("", Code.INPUT)])
def test_on_a_terminal_it_asks(answer: str, code: Code, environment: dict[str, str], hub: Hub, tmp_path: Path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vivant.cli", "pull", REPO, "--to", "here"]
    place: dict[str, Any] = {"env": environment, "cwd": tmp_path, "stdin": theirs}
    os.write(ours, f"{answer}\n".encode())
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **place)
    os.close(ours)
    os.close(theirs)
    assert ran.returncode == code, ran.stderr
    assert ran.stderr.index("the CogVideoX licence") < ran.stderr.index("Do you accept the licences")
    assert bool(hub.sent()) == (tmp_path / "here").exists() == (code == Code.OK)


def test_pickles_become_safetensors_to_the_bit(pull: Pull, hub: Hub, folder: Path):
    assert pull("--accept-licence").code == Code.OK
    link = folder / PARSER
    found = load_file(converted(link))
    assert converted(link).suffix == ".safetensors"
    assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
        name: (value.dtype, value.shape) for name, value in tensors().items()
    }
    assert all(torch.equal(found[name], value) for name, value in tensors().items())
    assert not converted(link).is_symlink()
    blobs = {path.name for path in (folder.parents[1] / "blobs").iterdir()}
    assert blobs == {hub.etag(name) for name in hub.files if name != "everything.ckpt"}, "the cache holds other blobs"
    assert link.read_bytes() == hub.files[PARSER]


def test_a_pickle_that_runs_something_is_not_run_and_not_kept(pull: Pull, hub: Hub, folder: Path, tmp_path: Path):
    canary = tmp_path / "canary"
    hub.files[PARSER] = pickled({"a": noise(30, 30), "b": Canary(canary)}, tmp_path)
    for place, where in (((), folder), (("--to", "here"), tmp_path / "here")):
        ran = pull("--accept-licence", *place)
        assert (ran.code, "E-WEIGHTS-PICKLE" in ran.err) == (Code.LOAD, True), ran.err
        assert not canary.exists()
        assert fetched(where) == set(hub.files) - {"everything.ckpt", PARSER}
    assert hub.etag(PARSER) not in {path.name for path in (folder.parents[1] / "blobs").iterdir()}
    (tmp_path / "made.pt").write_bytes(hub.files[PARSER])
    torch.load(tmp_path / "made.pt", weights_only=False)
    assert canary.exists(), "the pickle would have run nothing"


def test_a_cut_connection_goes_on_where_it_was(pull: Pull, hub: Hub, folder: Path):
    hub.files[WEIGHTS] = os.urandom(24 * 2**20)
    hub.cut[WEIGHTS] = 15 * 2**20
    ran = pull("--accept-licence")
    assert ran.code == Code.OK, ran.err
    ranges = [wanted for kind, path, wanted in hub.requests if kind == "GET" and path.endswith(WEIGHTS)]
    assert ranges == [None, f"bytes={15 * 2**20}-"]
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Start:
    """Starts `vivant pull` and does not wait for it."""

    def begin(*args: str, **more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vivant.cli", "pull", REPO, "--accept-licence", *args]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env={**environment, **more}, cwd=tmp_path, text=True, **pipes)

    return begin


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("place", [(), ("--to", "here")])
def test_a_killed_process_is_gone_on_with_in_the_middle_of_the_file(
    start: Start, pull: Pull, hub: Hub, folder: Path, tmp_path: Path, place: tuple[str, ...]
):
    size, where = len(hub.files[WEIGHTS]), tmp_path / "here" if place else folder
    root = where if place else folder.parents[1]
    part = root / PARTS / f"{hub.etag(WEIGHTS)}.part"
    hub.slow.add(WEIGHTS)
    process = start(*place)
    until(lambda: part.exists() and part.stat().st_size >= size // 2)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert part.read_bytes() == hub.files[WEIGHTS][: size // 2]
    assert fetched(where) == set(hub.files) - {"everything.ckpt", WEIGHTS}

    hub.slow.clear()
    hub.requests.clear()
    hub.sent_bytes.clear()
    ran = pull("--json", *place)
    assert ran.code == Code.OK, ran.out
    asked = [(kind, wanted) for kind, path, wanted in hub.requests if not path.startswith("/api/")]
    assert asked == [("GET", f"bytes={size // 2}-")]
    assert hub.sent_bytes == {WEIGHTS: size - size // 2}
    assert (ran.json["to_fetch"], ran.json["warnings"]) == (size - size // 2, [])
    assert (where / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert not (root / PARTS).exists()


@pytest.mark.parametrize("place", [(), ("--to", "here")])
def test_two_at_once_fetch_every_file_once(
    start: Start, hub: Hub, folder: Path, tmp_path: Path, place: tuple[str, ...]
):
    where = tmp_path / "here" if place else folder
    hub.slow.add(WEIGHTS)
    first = start(*place, HF_HUB_DOWNLOAD_TIMEOUT="60")
    until(lambda: WEIGHTS in hub.sent())
    second = start(*place)
    assert second.stderr is not None
    while "[W-PULL-WAITS]" not in (line := second.stderr.readline()):
        assert line, "it did not wait"
    hub.released.set()
    for process in (first, second):
        _, err = process.communicate(timeout=60)
        assert process.returncode == Code.OK, err
        assert "W-PULL-WAITS" not in err
    assert sorted(hub.sent()) == sorted(set(hub.files) - {"everything.ckpt"})
    assert all((where / name).read_bytes() == hub.files[name] for name in fetched(where) if name in hub.files)
    assert not ((where if place else folder.parents[1]) / PARTS).exists()


def test_ctrl_c_leaves_whole_files_and_the_next_run_goes_on(
    start: Start, pull: Pull, hub: Hub, folder: Path, tmp_path: Path
):
    hub.slow.add(WEIGHTS)
    process = start("--json")
    until(lambda: WEIGHTS in hub.sent())
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == Code.CANCELLED, err
    assert json.loads(out)["error"]["code"] == "E-CANCELLED"
    before = fetched(folder)
    assert before == set(hub.files) - {"everything.ckpt", WEIGHTS}
    assert all((folder / name).read_bytes() == hub.files[name] for name in before)
    assert not list((tmp_path / "home").rglob("*.incomplete"))

    hub.slow.clear()
    hub.requests.clear()
    ran = pull()
    assert ran.code == Code.OK, ran.err
    assert hub.sent() == [WEIGHTS]
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


@pytest.mark.parametrize("name", [WEIGHTS, "transformer/config.json"])
@pytest.mark.parametrize("place", [(), ("--to", "here")])
def test_a_flipped_byte_is_found_and_the_file_removed(
    pull: Pull, hub: Hub, folder: Path, tmp_path: Path, name: str, place: tuple[str, ...]
):
    hub.damaged.add(name)
    ran = pull("--accept-licence", *place)
    where = tmp_path / "here" if place else folder
    assert (ran.code, "E-PULL-HASH" in ran.err) == (Code.LOAD, True), ran.err
    assert name in ran.err.split("E-PULL-HASH")[1]
    assert not os.path.lexists(where / name)
    blobs = folder.parents[1] / "blobs"
    assert not (blobs / hub.etag(name)).exists()
    assert not list(where.rglob("parsing_bisenet.safetensors")), "read before it was verified"

    hub.damaged.clear()
    assert pull(*place).code == Code.OK
    assert (where / name).read_bytes() == hub.files[name]


def test_a_hostile_name_is_refused_before_anything_is_written(pull: Pull, hub: Hub, tmp_path: Path):
    hub.files["../../outside.txt"] = b"mine now"
    before = set(tmp_path.rglob("*"))
    ran = pull("--accept-licence", "--to", "a/b")
    assert (ran.code, "E-PULL-NAME" in ran.err) == (Code.LOAD, True), ran.err
    assert hub.sent() == []
    assert {path for path in set(tmp_path.rglob("*")) - before if "home" not in path.parts} == set()


def test_json_is_one_object_and_a_dry_run_fetches_nothing(pull: Pull, hub: Hub, tmp_path: Path):
    dry = pull("--dry-run", "--json", "--to", "here")
    assert (dry.code, dry.err) == (Code.OK, "")
    assert (hub.sent("GET"), hub.sent("HEAD"), (tmp_path / "here").exists()) == ([], [], False)
    due = {name: len(data) for name, data in hub.files.items() if name != "everything.ckpt"}
    assert {file["name"]: file["size"] for file in dry.json["files"]} == due
    assert [file["name"] for file in dry.json["left_out"]] == ["everything.ckpt"]
    assert dry.json["size"] == dry.json["to_fetch"] == sum(due.values())
    assert dry.json["to_convert"] == len(hub.files[PARSER])
    assert dry.json["licences"][0] == {"part": REPO, "terms": "apache-2.0", "link": ""}
    assert (dry.json["commit"], dry.json["fetched"]) == (COMMIT, [])
    assert "README.md" in pull("--dry-run").out

    ran = pull("--json", "--accept-licence", "--to", "here")
    assert ran.code == Code.OK
    assert set(ran.json["fetched"]) == set(due)
    assert ran.json["converted"] == ["face_encoder/parsing_bisenet.safetensors"]
    assert fetched(tmp_path / "here") == set(due) | set(ran.json["converted"])
    refused = pull("--json")
    assert refused.json["error"]["code"] == "E-PULL-LICENCE"


def test_only_what_is_asked_for(pull: Pull, tmp_path: Path):
    ran = pull("--accept-licence", "--to", "here", "--only", "transformer/*", "--only", "*.ckpt", "--dry-run", "--json")
    assert [file["name"] for file in ran.json["files"]] == ["everything.ckpt", "transformer/config.json", WEIGHTS]
    assert "E-PULL-ONLY" in pull("--only", "vae/*").err


def test_a_terminal_sees_how_far_it_is(pull: Pull):
    ran = pull("--accept-licence", FORCE_COLOR="1", NO_COLOR="1", COLUMNS="140")  # rich's word for a terminal
    assert ran.code == Code.OK
    for doing in ("Fetching", "Comparing", "Converting"):
        assert doing in ran.err, ran.err


def test_files_of_others_are_not_replaced(pull: Pull, hub: Hub, tmp_path: Path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "README.md").write_text("my notes")
    ran = pull("--accept-licence", "--to", "here")
    assert (ran.code, "E-OUTPUT-EXISTS" in ran.err) == (Code.OUTPUT, True)
    assert (tmp_path / "here" / "README.md").read_text() == "my notes"
    (tmp_path / "here" / RECORD).write_text('{"someone/else": []}')
    assert "E-OUTPUT-EXISTS" in pull("--accept-licence", "--to", "here").err
    (tmp_path / "here" / "README.md").write_bytes(hub.files["README.md"])
    assert pull("--accept-licence", "--to", "here").code == Code.OK
    assert set(json.loads((tmp_path / "here" / RECORD).read_text())) == {"someone/else", REPO}


@pytest.mark.parametrize(
    ("args", "more", "code"),
    [
        (("--offline",), {}, "E-PULL-OFFLINE"),
        ((), {"HF_HUB_OFFLINE": "1"}, "E-PULL-OFFLINE"),
        (("--revision", "nowhere"), {}, "E-REPO-REVISION"),
        (("--revision", "../x"), {}, "E-REPO-PATH"),
        (("--variant", "fp16"), {}, "E-WEIGHTS-VARIANT"),
        (("--to", "here", "--cache-dir", "there"), {}, "E-PULL-TWICE"),
        ((), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "E-REPO-UNREACHABLE"),
    ],
)
def test_what_cannot_be_pulled_is_refused(pull: Pull, args: tuple[str, ...], more: dict[str, str], code: str):
    ran = pull("--accept-licence", "--json", *args, **more)
    assert (ran.code != Code.OK, ran.json["error"]["code"]) == (True, code)


def test_an_unknown_repository(pull: Pull):
    ran = pull(repo="nobody/nothing")
    assert (ran.code, "E-REPO-NOTFOUND" in ran.err) == (Code.LOAD, True)
    assert "E-REPO-PATH" in pull(repo="a/b/c").err
