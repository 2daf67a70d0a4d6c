"""One file from the hub: what is asked for, what is kept, what is refused."""

import errno
import hashlib
import random
from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.utils
import pytest
import requests

from hub_server import COMMIT, Hub, blob_hash, serving
from vivant.errors import VivantError, VivantWarning
from vivant.hub import download as downloads
from vivant.hub.download import Entry, download

REPO, NAME = "someone/small", "a/big.safetensors"
DATA = random.Random(0).randbytes(300_007)
OTHER = random.Random(1).randbytes(len(DATA))
HALF = 2 * 65_536  # of a cut connection requests loses what is no whole piece of 64 KiB


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(downloads, "_LONGEST_PAUSE", 0)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(Hub(REPO, {NAME: DATA, "small.json": b"{}", "none": b""})) as hub:
        yield hub


def entry(name: str, data: bytes = DATA) -> Entry:
    if len(data) > 1000:
        return Entry(name, len(data), hashlib.sha256(data).hexdigest(), None)
    return Entry(name, len(data), None, blob_hash(data))


class Fetching:
    """A part in a folder of its own, and what was counted."""

    def __init__(self, hub: Hub, folder: Path):
        self.hub, self.path, self.count = hub, folder / "parts" / f"{'0' * 64}.part", 0
        self.lost = 0

    def left(self, data: bytes, etag: str | None = None) -> "Fetching":
        """What an earlier process left."""
        self.path.parent.mkdir()
        self.path.write_bytes(data)
        if etag is not None:
            self.path.with_suffix(".etag").write_text(f'"{etag}"')
        return self

    def counted(self, name: str, more: int) -> None:
        self.count += more
        self.lost = max(self.lost, self.count - self.path.stat().st_size)

    def run(self, name: str = NAME, data: bytes = DATA) -> bytes:
        self.count = self.lost = 0
        download(entry(name, data), self.hub.address(name), self.path, REPO, self.counted)
        assert self.count == len(data)
        assert self.lost == 0, "what is counted would die with the process"
        return self.path.read_bytes()

    def refused(self, code: str) -> VivantError:
        with pytest.raises(VivantError) as caught:
            self.run()
        assert caught.value.code == code, caught.value
        return caught.value

    @property
    def ranges(self) -> list[str | None]:
        return [wanted for _, _, wanted in self.hub.requests]


@pytest.fixture
def fetching(hub: Hub, tmp_path: Path) -> Fetching:
    return Fetching(hub, tmp_path)


# Going on


@pytest.mark.parametrize(("name", "data"), [(NAME, DATA), ("small.json", b"{}"), ("none", b"")])
def test_a_file_is_fetched_whole_and_asked_for_once(fetching: Fetching, name: str, data: bytes):
    assert fetching.run(name, data) == data
    assert fetching.ranges == ([None] if data else [])


@pytest.mark.parametrize("etag", [None, "", hashlib.sha256(DATA).hexdigest(), 'strange"\r\nX-Injected: 1'])
def test_only_the_rest_of_a_part_is_asked_for(fetching: Fetching, etag: str | None):
    assert fetching.left(DATA[:HALF], etag).run() == DATA
    assert fetching.ranges == [f"bytes={HALF}-"]
    assert fetching.hub.sent_bytes[NAME] == len(DATA) - HALF


def test_a_part_that_is_whole_needs_no_server(fetching: Fetching):
    assert fetching.left(DATA).run() == DATA
    assert fetching.hub.requests == []


def test_a_cut_connection_goes_on_where_it_was(fetching: Fetching):
    fetching.hub.cut[NAME] = HALF
    assert fetching.run() == DATA
    assert fetching.ranges == [None, f"bytes={HALF}-"]


def test_bytes_of_two_files_are_not_put_together(fetching: Fetching):
    fetching.hub.etags[NAME] = "now"
    with pytest.warns(VivantWarning, match=r"W-PULL-ANEW.*changed at the server"):
        assert fetching.left(OTHER[:HALF], "before").run() == DATA
    assert fetching.ranges == [f"bytes={HALF}-"], "If-Range spares the second question"


def test_a_server_that_does_not_know_if_range(fetching: Fetching, monkeypatch: pytest.MonkeyPatch):
    fetching.left(OTHER[:HALF], "before").hub.etags[NAME] = "now"
    real: Any = downloads._request  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(downloads, "_request", lambda url, headers: real(url, {**headers, "If-Range": '"now"'}))
    with pytest.warns(VivantWarning, match=r"W-PULL-ANEW.*changed at the server"):
        assert fetching.run() == DATA
    assert fetching.ranges == [f"bytes={HALF}-", None]


def test_a_server_that_sends_only_whole_files(fetching: Fetching):
    fetching.hub.whole.add(NAME)
    with pytest.warns(VivantWarning, match=r"W-PULL-ANEW.*the rest of a file alone"):
        assert fetching.left(DATA[:HALF]).run() == DATA


def test_a_part_that_is_longer_than_the_file(fetching: Fetching):
    with pytest.warns(VivantWarning, match=r"W-PULL-ANEW.*longer than the file"):
        assert fetching.left(DATA + b"x").run() == DATA


def test_a_server_may_send_more_than_the_file(fetching: Fetching):
    """Without a length nobody can tell beforehand; nothing is written beyond the size."""
    fetching.hub.heads[NAME] = {"Content-Length": ""}
    fetching.hub.files[NAME] = DATA + b"more"
    assert fetching.run() == DATA


def test_what_does_not_get_on_is_given_up(fetching: Fetching):
    fetching.hub.short[NAME] = HALF
    fetching.hub.whole.add(NAME)
    caught = pytest.raises(Exception, match=r"(?i)incomplete|closed|peer")
    with pytest.warns(VivantWarning, match="W-PULL-ANEW"), caught:
        fetching.run()
    assert len(fetching.ranges) == downloads.TRIES + 1
    assert fetching.path.read_bytes() == DATA[:HALF]
    assert fetching.path.with_suffix(".etag").read_text() == f'"{fetching.hub.etag(NAME)}"'


def test_a_short_answer_without_a_length_is_not_taken_for_all(fetching: Fetching):
    fetching.hub.heads[NAME] = {"Content-Length": ""}
    fetching.hub.cut[NAME] = HALF
    assert fetching.run() == DATA
    assert fetching.ranges == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize(("status", "asked"), [(503, 2), (429, 2), (204, 2), (404, 1), (403, 1)])
def test_what_may_pass_is_asked_for_again(fetching: Fetching, status: int, asked: int):
    fetching.hub.refused[NAME] = [status]
    with nullcontext() if asked == 2 else pytest.raises(Exception, match=str(status)):
        fetching.run()
    assert len(fetching.hub.requests) == asked


# What is refused


def test_another_hash_is_said_and_removed(fetching: Fetching):
    fetching.hub.damaged.add(NAME)
    error = fetching.left(DATA[:HALF], "x").refused("E-PULL-HASH")
    assert NAME in error.what
    assert REPO in error.what
    assert list(fetching.path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("left", "heads", "whole"),
    [
        (0, {"Content-Length": "7"}, True),
        (HALF, {"Content-Length": "7"}, True),
        (HALF, {"Content-Range": f"bytes {HALF}-8/9"}, False),
        (0, {"X-Linked-ETag": f'"{"0" * 64}"'}, False),
        (HALF, {"X-Linked-ETag": f'"{"0" * 64}"'}, False),
    ],
)
def test_another_file_than_the_listed_one(fetching: Fetching, left: int, heads: dict[str, str], whole: bool):
    fetching.hub.heads[NAME] = heads
    fetching.hub.whole |= {NAME} if whole else set()
    fetching.left(DATA[:left]).refused("E-PULL-CHANGED")
    assert fetching.path.read_bytes() == DATA[:left], "what may be good was thrown away"


def test_a_file_that_became_shorter(fetching: Fetching):
    fetching.hub.files[NAME] = DATA[:HALF]
    fetching.left(DATA[:HALF]).refused("E-PULL-CHANGED")
    assert fetching.path.read_bytes() == DATA[:HALF]


def test_another_range_than_the_one_asked_for(fetching: Fetching):
    fetching.hub.heads[NAME] = {"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}
    with pytest.raises(ConnectionError, match=f"byte {HALF} was asked for"):
        fetching.left(DATA[:HALF]).run()
    assert fetching.path.read_bytes() == DATA[:HALF]


class Full:
    """A file on a disk that has room for so many bytes."""

    def __init__(self, file: Any, room: int):
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        written = self.file.write(data[: self.room])
        self.room -= written
        if written < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_keeps_what_it_holds(fetching: Fetching, monkeypatch: pytest.MonkeyPatch):
    real: Any = Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        file = real(path, mode, *args, **more)
        return Full(file, HALF) if mode == "r+b" else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        fetching.refused("E-PULL-DISK")
    assert fetching.path.read_bytes() == DATA[:HALF]
    assert fetching.run() == DATA
    assert fetching.ranges == [None, f"bytes={HALF}-"]


def test_a_place_that_cannot_be_written_to(fetching: Fetching):
    fetching.path.parent.write_text("a file")
    fetching.refused("E-OUTPUT-WRITE")
    assert fetching.hub.requests == []


# Redirects


@pytest.fixture(params=["httpx", "requests"])
def session(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of the newest client, and of those before 1.0."""
    if request.param == "requests":
        monkeypatch.setattr(huggingface_hub.utils, "get_session", requests.Session)


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("left", [0, HALF])
def test_the_token_is_for_the_hub_alone(fetching: Fetching, left: int):
    hub = fetching.hub
    hub.moved[NAME] = hub.elsewhere(NAME)
    assert fetching.left(DATA[:left]).run() == DATA
    assert hub.tokens == [("127.0.0.1", "Bearer hf_secret"), ("localhost", None)]
    assert fetching.ranges == [f"bytes={left}-" if left else None] * 2
    assert hub.sent_bytes[NAME] == len(DATA) - left


def test_the_token_stays_on_the_hubs_own_redirects_and_does_not_come_back(fetching: Fetching):
    hub = fetching.hub
    hub.moved[NAME] = f"/{REPO}/resolve/{COMMIT}/second"
    hub.files["second"] = hub.files["third"] = DATA
    assert fetching.run() == DATA
    assert hub.tokens == [("127.0.0.1", "Bearer hf_secret")] * 2

    hub.moved["second"] = hub.elsewhere(f"../{REPO}/resolve/{COMMIT}/third")
    hub.moved["third"] = f"{hub.endpoint}/elsewhere/{NAME}"
    hub.tokens.clear()
    fetching.path.unlink()
    assert fetching.run() == DATA
    assert hub.tokens == [("127.0.0.1", "Bearer hf_secret")] * 2 + [("localhost", None), ("127.0.0.1", None)]


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://localhost/a", "data:,x", "itself"])
def test_redirects_that_are_not_followed(fetching: Fetching, location: str):
    fetching.hub.moved[NAME] = fetching.hub.address(NAME) if location == "itself" else location
    fetching.left(DATA[:HALF]).refused("E-PULL-REDIRECT")
    assert fetching.path.read_bytes() == DATA[:HALF]


def test_no_network_is_said_at_once(fetching: Fetching, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub.errors import OfflineModeIsEnabled

    asked: list[str] = []

    def stream(method: str, url: str, **more: Any) -> Any:
        asked.append(url)
        raise OfflineModeIsEnabled

    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: SimpleNamespace(stream=stream))
    with pytest.raises(OfflineModeIsEnabled):
        fetching.run()
    assert len(asked) == 1
