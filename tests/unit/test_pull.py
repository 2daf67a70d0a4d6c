"""Planning what to pull, and what is refused before anything is written; conversion of pickles."""

import dataclasses
import functools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hub_server import COMMIT, Hub, blob_hash, serving
from tiny import noise
from vivant.cli import main
from vivant.cli.screen import Code
from vivant.errors import LoadError, OutputError, VivantError
from vivant.hub import cache, pull
from vivant.hub.converted import converted, write_converted
from vivant.hub.pull import Entry, Licence, Plan

REPO = "someone/small"


def plan_of(folder: Path, *entries: Entry, **more: Any) -> Plan:
    fixed: dict[str, Any] = {"revision": None, "commit": COMMIT, "left_out": (), "cache_dir": None}
    licences = (Licence(REPO, "mit"),)
    return Plan(repo=REPO, entries=entries, licences=licences, folder=folder, root=folder, **{**fixed, **more})


def entry(name: str, size: int = 10) -> Entry:
    return Entry(name, size, None, "0" * 40)


# Names


@pytest.mark.parametrize(
    "name",
    [
        *("../a", "a/../../b", "/etc/passwd", "a//b", "./a", "a/.", "..", "", "a/"),
        *("C:/a", "c:a", "a\\b", "\\\\host\\share\\a", "..\\a", "a:stream"),
        *("a\0b", "a\nb", "a\x1b[2J", "a\u202eb", "a/b./c", "a ", "NUL", "x/con.txt", "Com1.bin"),
        *(".cache/huggingface/x", ".Cache/x", "a/.vivant-1.safetensors", pull.RECORD, "a" * 1001),
        *(f"{pull.PARTS}/x.part", "a/.Vivant-x/b"),
    ],
)
def test_a_hostile_name_is_refused(name: str):
    with pytest.raises(LoadError) as caught:
        pull.check_names(["config.json", name])
    assert caught.value.code == "E-PULL-NAME"


@pytest.mark.parametrize("names", [["a", "a"], ["a", "a/b"], ["a/b/c", "a-", "a/b"]])
def test_a_file_in_the_place_of_another_is_refused(names: list[str]):
    with pytest.raises(LoadError, match="E-PULL-NAME"):
        pull.check_names(names)


def test_usual_names_are_fine():
    pull.check_names([".gitattributes", "a/b.c-d_e/f.json", "..a", "a..b", "été.txt", "with space.png", "console.txt"])


# Choice


NAMES = [
    *(".gitattributes", "README.md", "model_index.json", "everything.safetensors", "everything.ckpt"),
    *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"),
    *("unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/pytorch_model.bin", "text_encoder/flax.msgpack"),
    *("safety_checker/model.safetensors", "face_encoder/a.pt", "face_encoder/b.pth", "face_encoder/b.safetensors"),
    *("face_encoder/models/antelopev2/1k3d68.onnx", "optimizer.bin", "training_args.bin"),
]
ALWAYS = [
    *("README.md", "face_encoder/a.pt", "face_encoder/b.safetensors", "face_encoder/models/antelopev2/1k3d68.onnx"),
    *("model_index.json", "text_encoder/pytorch_model.bin", "unet/config.json"),
]


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_what_is_read_is_fetched_in_one_form(variant: str | None):
    weights = f"unet/diffusion_pytorch_model.{variant + '.' if variant else ''}safetensors"
    assert sorted(pull.choose(NAMES, variant, (), REPO)) == sorted([*ALWAYS, weights])


def test_a_checkpoint_alone_is_fetched():
    assert pull.choose(["README.md", "dreamy.safetensors"], None, (), REPO) == ["README.md", "dreamy.safetensors"]


def test_terms_of_parts_join_those_of_the_card():
    found = pull.licences("BestWishYsh/ConsisID-preview", ["transformer/config.json"], None)
    assert [licence.terms for licence in found] == ["not stated", "the CogVideoX licence"]
    found = pull.licences("someone/faces", ["face_encoder/models/antelopev2/a.onnx", "transformer/x"], None)
    assert [(licence.part, licence.terms) for licence in found[1:]] == [
        ("face_encoder/models/antelopev2", "antelopev2: for non-commercial research only")
    ]


# Plans


class Made(NamedTuple):
    """A plan of a repository on a server."""

    hub: Hub
    plan: Callable[..., Plan]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Makes plans while the client of the hub, which read its settings when it was imported, asks our server."""
    import huggingface_hub
    from huggingface_hub import constants

    with serving(Hub(REPO, {"README.md": b"#", "a.bin": b"x" * 2000})) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        real = huggingface_hub.HfApi
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: real(endpoint=hub.endpoint, token=False))
        at_server = functools.partial(huggingface_hub.hf_hub_url, endpoint=hub.endpoint)
        monkeypatch.setattr(huggingface_hub, "hf_hub_url", at_server)
        yield Made(hub, lambda **more: pull.make_plan(REPO, **{"cache_dir": tmp_path, **more}))


def test_a_plan_holds_sizes_hashes_and_places(made: Made, tmp_path: Path):
    plan = made.plan(revision="main")
    assert plan.entries == (
        Entry("README.md", 1, None, blob_hash(b"#")),
        Entry("a.bin", 2000, made.hub.etag("a.bin"), None),
    )
    assert (plan.size, plan.fetch_size, plan.convert_size) == (2001, 2001, 2000)
    assert plan.folder == tmp_path / "models--someone--small" / "snapshots" / COMMIT
    assert plan.licences == (Licence(REPO, "not stated"),)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("sha",), "../../x"),
        (("sha",), None),
        (("siblings", 0, "size"), None),
        (("siblings", 0, "size"), -1),
        (("siblings", 0, "blobId"), "../../../x"),
        (("siblings", 0, "blobId"), None),
        (("siblings", 1, "lfs", "sha256"), "/tmp/x"),
        (("siblings", 1, "lfs", "sha256"), None),
    ],
)
def test_what_could_not_be_verified_is_refused(made: Made, where: tuple[Any, ...], value: Any):
    def changed(answer: Any) -> Any:
        inner = answer
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = value
        return answer

    made.hub.answer = changed
    with pytest.raises(LoadError) as caught:
        made.plan()
    assert caught.value.code == "E-PULL-META"


def test_every_byte_is_counted_once(made: Made, tmp_path: Path):
    made.hub.files["a.bin"] = os.urandom(24 * 2**20)
    made.hub.cut["a.bin"] = 15 * 2**20
    plan = made.plan(to=tmp_path / "here", cache_dir=None)
    due = {"README.md": 1, "a.bin": 24 * 2**20}
    for step, names in ((pull.fetch, due), (pull.verify, due), (pull.convert, {})):
        counted: dict[str, int] = {}

        def count(name: str, more: int, counted: dict[str, int] = counted) -> None:
            counted[name] = counted.get(name, 0) + more

        if step is pull.convert:  # what this file holds is no pickle
            with pytest.raises(LoadError):
                step(plan, count)
        else:
            step(plan, count)
        assert counted == names, step


def test_the_command_asks_for_space_before_consent(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4000))
    assert main(["pull", REPO, "--to", str(tmp_path / "here"), "--json", "--accept-licence"]) == Code.OUTPUT
    error = json.loads(capfd.readouterr().out)["error"]
    assert error["code"] == "E-PULL-DISK"
    assert "4,001 bytes" in error["what"]
    assert "4,000 are free" in error["what"]
    assert (made.hub.sent("HEAD"), made.hub.sent("GET"), list(tmp_path.iterdir())) == ([], [], [])


def test_short_names_are_ids():
    assert all("/" in repo for repo in pull.SHORT_NAMES.values())
    assert pull.SHORT_NAMES["pia"] == "openmmlab/PIA-condition-adapter"


# Fetching


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_what_an_earlier_run_left_is_not_to_be_fetched(made: Made, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    plan = made.plan()
    big = plan.entries[1]
    plan.part(big).parent.mkdir(parents=True)
    for left, due in ((1500, 501), (2000, 1), (2001, 2001)):
        plan.part(big).write_bytes(b"x" * left)
        assert made.plan().fetch_size == due, "what is longer than the file is of no use"
    plan.part(big).write_bytes(b"x" * 1500)
    assert main(["pull", REPO, "--cache-dir", str(tmp_path), "--dry-run"]) == Code.OK
    assert "a.bin (1.5 KiB at hand)" in capfd.readouterr().out
    assert pull.fetch(made.plan()) == ["README.md", "a.bin"]
    assert ("GET", f"/{REPO}/resolve/{COMMIT}/a.bin", "bytes=1500-") in made.hub.requests


@pytest.mark.parametrize("links", [True, False])
def test_the_hubs_client_finds_what_is_in_its_cache(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
):
    from huggingface_hub import constants, hf_hub_download, scan_cache_dir, snapshot_download

    if not links:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True, raising=False)
    made.hub.files["a/same.bin"] = made.hub.files["a.bin"]
    plan = made.plan(revision="main")
    pull.fetch(plan)
    pull.name_revision(plan)
    for revision in ("main", COMMIT):
        place: dict[str, Any] = {"revision": revision, "cache_dir": tmp_path, "local_files_only": True}
        assert Path(snapshot_download(REPO, **place)) == plan.folder
        for name, data in made.hub.files.items():
            found = Path(hf_hub_download(REPO, name, **place))
            assert (found, found.read_bytes()) == (plan.folder / name, data)
            assert found.is_symlink() == links
            assert not links or not os.readlink(found).startswith("/"), "a cache that is moved would break"
    scanned = scan_cache_dir(tmp_path)
    (repo,) = scanned.repos
    assert (scanned.warnings, repo.nb_files, repo.refs.keys()) == ([], 2 if links else 3, {"main"})
    root = plan.root
    assert files_of(root) - files_of(root / "blobs") >= {"refs/main", f"snapshots/{COMMIT}/a/same.bin"}
    assert files_of(root / "blobs") == ({entry.hash for entry in plan.entries} if links else set())
    assert not (root / pull.PARTS).exists()


@pytest.mark.parametrize("links", [True, False])
def test_content_that_another_commit_has_is_shown_not_fetched(made: Made, monkeypatch: pytest.MonkeyPatch, links: bool):
    from huggingface_hub import constants

    plan = made.plan()
    blobs = plan.root / "blobs"
    blobs.mkdir(parents=True)
    (blobs / made.hub.etag("a.bin")).write_bytes(made.hub.files["a.bin"])
    (blobs / made.hub.etag("README.md")).write_bytes(b"cut short")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not links, raising=False)
    assert pull.fetch(plan) == ["README.md"]
    assert (made.hub.sent(), (plan.folder / "a.bin").is_symlink()) == (["README.md"], links)
    assert (blobs / made.hub.etag("a.bin")).read_bytes() == made.hub.files["a.bin"], "others may show it too"
    pull.verify(plan)


def test_a_folder_of_its_own_takes_from_the_cache_what_is_intact(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = made.plan()
    pull.fetch(cached)
    (cached.folder / "a.bin").write_bytes(b"?" * 2000)
    made.hub.requests.clear()
    plan = made.plan(to=tmp_path / "here", cache_dir=None)
    assert pull.fetch(plan) == ["README.md", "a.bin"]
    assert made.hub.sent() == ["a.bin"]
    assert files_of(tmp_path / "here") == {"README.md", "a.bin"}
    pull.verify(plan)


def test_a_file_stays_until_the_new_one_is_complete(made: Made, tmp_path: Path):
    plan = made.plan(to=tmp_path / "here", cache_dir=None)
    pull.accept(plan)
    (plan.folder / "a.bin").write_bytes(b"of an older commit")
    made.hub.damaged.add("a.bin")
    with pytest.raises(LoadError, match="E-PULL-HASH"):
        pull.fetch(plan)
    assert (plan.folder / "a.bin").read_bytes() == b"of an older commit"
    made.hub.damaged.clear()
    assert pull.fetch(plan) == ["a.bin"]
    assert files_of(plan.folder) == {pull.RECORD, "README.md", "a.bin"}


def test_what_was_begun_of_a_file_that_changed_is_not_gone_on_with(made: Made):
    plan = made.plan()
    left = [plan.part(plan.entries[1]), plan.root / "blobs" / f"{plan.entries[1].hash}.1.incomplete"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    made.hub.files["a.bin"] = b"y" * 2000
    new = made.plan()
    pull.fetch(new)
    assert (new.folder / "a.bin").read_bytes() == b"y" * 2000
    assert made.hub.sent_bytes["a.bin"] == 2000
    assert [path.read_bytes() for path in left] == [b"x" * 1000] * 2, "they are for others to go on with"


def test_the_name_of_a_revision_follows_it(tmp_path: Path):
    name = tmp_path / "refs" / "pr" / "1"
    for commit in ("1" * 40, COMMIT):
        cache.name_commit(tmp_path, "pr/1", commit)
        assert name.read_text() == commit
    before = name.stat().st_ino
    cache.name_commit(tmp_path, "pr/1", COMMIT)
    assert (name.stat().st_ino, list(name.parent.iterdir())) == (before, [name])
    with pytest.raises(OutputError, match="E-OUTPUT-WRITE"):
        cache.name_commit(tmp_path, "pr/1/2", COMMIT)


def test_waiting_for_another_process_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(cache, "PATIENCE", 0.05)
    monkeypatch.setattr(cache, "warn", lambda code, text: said.append((code, text)))
    lock = tmp_path / "locks" / "a.lock"
    with cache.alone(lock, "a.bin"):
        time.sleep(0.2)
        assert said == []
        waiting = threading.Thread(target=lambda: cache.alone(lock, "a.bin").__enter__(), daemon=True)
        waiting.start()
        time.sleep(0.4)
    waiting.join(20)
    ((code, text),) = said
    assert (code, "a.bin" in text, str(lock) in text) == ("W-PULL-WAITS", True, True)


# Space


@pytest.mark.parametrize(("free", "fits"), [(29, False), (30, True)])
def test_the_disk_has_to_hold_files_and_conversions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
):
    asked: list[Path] = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    plan = plan_of(tmp_path / "not" / "yet", entry("a.pt"), entry("b.json"))
    if fits:
        pull.check_space(plan)
    else:
        with pytest.raises(OutputError) as caught:
            pull.check_space(plan)
        assert caught.value.code == "E-PULL-DISK"
        assert "30 bytes" in caught.value.what
        assert "29 are free" in caught.value.what
    assert asked == [tmp_path]


def test_what_is_at_hand_needs_no_space(tmp_path: Path):
    (tmp_path / "b.json").write_bytes(b"x" * 10)
    (tmp_path / "c.json").write_bytes(b"x" * 9)
    plan = plan_of(tmp_path, entry("b.json"), entry("c.json"))
    assert (plan.size, plan.fetch_size) == (20, 10)


# Consent


def test_consent_is_for_the_same_terms_of_the_same_repository(tmp_path: Path):
    plan = plan_of(tmp_path / "new", entry("a"))
    assert not pull.is_accepted(plan)
    pull.accept(plan)
    assert pull.is_accepted(plan)
    more = dataclasses.replace(plan, licences=(*plan.licences, Licence("part", "other")))
    assert not pull.is_accepted(more)
    assert not pull.is_accepted(dataclasses.replace(plan, repo="someone/else"))
    pull.accept(more)
    assert pull.is_accepted(plan)
    for text in ("", "[]", "{", '{"someone/small": 3}', '{"someone/small": [["someone/small", "gpl"]]}'):
        (plan.root / pull.RECORD).write_text(text)
        assert not pull.is_accepted(plan), text


# Conversion


def pickle_at(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def test_the_converted_file_is_read_if_it_is_not_older(tmp_path: Path):
    path = pickle_at(tmp_path / "a.pth", {"a": noise(3, 5)})
    assert converted(path) == path
    target = write_converted(path)
    assert target == tmp_path / "a.safetensors" == converted(path) == converted(str(path))
    assert write_converted(path) is None
    later = target.stat().st_mtime + 10
    os.utime(path, (later, later))
    assert converted(path) == path
    assert write_converted(path) == target
    os.utime(path, (0, 0))
    path.unlink()
    assert converted(path) == target
    assert converted(tmp_path / "x.onnx") == tmp_path / "x.onnx"
    assert {child.name for child in tmp_path.iterdir()} == {"a.safetensors"}


@pytest.mark.parametrize("is_zip", [True, False])
def test_conversion_keeps_every_value(tmp_path: Path, is_zip: bool):
    whole = noise(6, 8)
    state = {"view": whole[1:3], "whole": whole, "alias": whole, "turned": whole.T, "every other": whole[:, ::2]}
    state |= {"half": noise(3).half(), "flag": torch.tensor([True, False]), "none": torch.zeros(0, 2)}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    target = write_converted(tmp_path / "a.pt")
    assert target is not None
    found = load_file(target)
    assert found.keys() == state.keys()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in state.items())
    with safe_open(target, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("nest", ["state_dict", "model", "module"])
def test_tensors_beside_the_state_of_a_training_come_to_the_top(tmp_path: Path, nest: str):
    path = pickle_at(tmp_path / "a.ckpt", {"epoch": 3, nest: {"a": noise(3, 5)}, "lr": [0.1]})
    found = load_file(str(write_converted(path)))
    assert found.keys() == {"a"}
    assert torch.equal(found["a"], noise(3, 5))


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = pickle_at(tmp_path / "a.pt", {"a": noise(3, 5)})

    def full(tensors: Any, file: Path, **more: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OutputError, match="E-WEIGHTS-WRITE"):
        write_converted(path)
    assert [child.name for child in tmp_path.iterdir()] == ["a.pt"]


def test_nothing_is_written_through_a_link(tmp_path: Path):
    """In the hub's cache a link leads to a file that is named by its content."""
    blob = tmp_path / "blob"
    save_file({"b": noise(2)}, blob)
    before = blob.read_bytes()
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    pickle_at(tmp_path / "other", {"a": noise(3)})
    os.utime(blob, (0, 0))
    (snapshot / "a.pt").symlink_to(tmp_path / "other")
    (snapshot / "a.safetensors").symlink_to(blob)
    assert write_converted(snapshot / "a.pt") is None
    assert blob.read_bytes() == before
    (snapshot / "a.safetensors").unlink()
    assert write_converted(snapshot / "a.pt") == snapshot / "a.safetensors"
    assert sorted(child.name for child in tmp_path.iterdir()) == ["blob", "other", "snapshot"]


def test_two_pickles_of_one_name_are_left_as_they_are(tmp_path: Path):
    plan = plan_of(tmp_path, entry("a.pt"), entry("a.pth"), entry("b.pt"), entry("b.safetensors"), entry("c.ckpt"))
    assert [found.name for found in plan.pickles] == ["c.ckpt"]


@pytest.mark.parametrize("value", [{"state_dict": {"a": 3}}, [noise(2)], {"a": 1}, b"text", b""])
def test_what_is_no_table_of_tensors_is_removed(tmp_path: Path, value: Any):
    path = tmp_path / "a.ckpt"
    path.write_bytes(value) if isinstance(value, bytes) else torch.save(value, path)
    with pytest.raises(VivantError, match=r"E-WEIGHTS-(PICKLE|BROKEN)"):
        pull.convert(plan_of(tmp_path, entry("a.ckpt")))
    assert list(tmp_path.iterdir()) == []
