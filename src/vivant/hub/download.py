"""One file from the hub, in a part that outlives the process: a later one goes on with it where it stopped.

huggingface_hub begins a file anew in every process: a lock that a file system only pretends to hold could let two of
them spoil one part. Here a part is named by the hash of what it becomes, is written at its own offsets, and is compared
with that hash before it gets the file's name. So nothing worse than a second download can come of such a lock.
"""

import contextlib
import errno
import hashlib
import re
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from vivant.errors import LoadError, OutputError, VivantError, warn
from vivant.media.atomic import naming

TRIES = 5
"""Times that a connection may bring nothing new before we give up."""
_LONGEST_PAUSE = 8
_PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses of a server that may soon answer otherwise."""
_REDIRECTS, _MAX_REDIRECTS = (301, 302, 303, 307, 308), 10
_DEFAULT_PORTS = {"http": 80, "https": 443}
_VALIDATOR = re.compile(r'"[\x21\x23-\x7e]{1,200}"')  # a strong one: it stands for bytes, not for meaning
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_CHUNK = 4 * 1024 * 1024

Progress = Callable[[str, int], None]
"""Called with a file's name and the number of its bytes that were dealt with since the last call.

The number is negative where bytes have to be fetched once more.
"""


def unseen(name: str, count: int) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Entry:
    """One file of a repository.

    Attributes:
        name: path inside the repository.
        size: in bytes.
        sha256: of its content, for large files.
        blob: git's hash of it, for the others.
    """

    name: str
    size: int
    sha256: str | None
    blob: str | None

    @property
    def hash(self) -> str:
        """By which the hub, and its cache, know the content."""
        return self.sha256 or self.blob or ""

    def digest(self) -> Any:
        """The beginning of a computation of `hash`."""
        return hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


def is_intact(path: Path, entry: Entry, progress: Progress = unseen) -> bool:
    """Whether a file has the size and the hash that the hub gives."""
    if path.stat().st_size != entry.size:
        return False
    digest = entry.digest()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress(entry.name, len(chunk))
    return digest.hexdigest() == entry.hash


def damaged(entry: Entry, repo: str) -> LoadError:
    """For a file that has another hash; the caller removes it."""
    return LoadError(
        "E-PULL-HASH",
        f"{entry.name} is not the file that {repo} lists: its hash differs.",
        "It was damaged on its way or on the disk, or exchanged. It was removed.",
        "Pull again; if that does not help, check HF_ENDPOINT and any proxy.",
    )


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
    """What the disk refuses, as an error that names the path.

    Raises:
        OutputError: E-PULL-DISK when the disk is full, E-OUTPUT-WRITE.
    """
    with naming(path):
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
                raise
            raise OutputError(
                "E-PULL-DISK",
                f"The disk of {path} is full.",
                "What was fetched is kept.",
                "Make space and pull again: it goes on from there.",
            ) from error


def download(entry: Entry, url: str, path: Path, repo: str, progress: Progress = unseen) -> None:
    """Bring the part at `path` to the file's full length, going on with what it holds, and compare its hash.

    No other process may write the part meanwhile. Where nothing can be fetched the part stays as it is.

    Args:
        entry: what it shall become.
        url: address at the hub; redirects are followed, without the token where they lead to another host.
        path: the part, whether it exists or not. Beside it lies the server's ETag, so that bytes of two files that a
            server had under one address are not put together.
        repo: for messages.
        progress: told of the bytes that are there already too.

    Raises:
        LoadError: E-PULL-HASH when the whole has another hash (it is removed), E-PULL-CHANGED when the server offers
            another file, E-PULL-REDIRECT.
        OutputError: E-PULL-DISK, E-OUTPUT-WRITE.
        Exception: of the hub's client, when the server cannot be reached or refuses.
    """
    part = _Part(path, entry, progress)
    try:
        part.read()
        _receive_all(part, url, repo)
    finally:
        part.close()
    if part.digest.hexdigest() != entry.hash:
        remove_part(path)
        raise damaged(entry, repo)


def remove_part(path: Path) -> None:
    """Remove what is left of a part."""
    with writing(path):
        for file in (path, _validator_of(path)):
            file.unlink(missing_ok=True)


def _validator_of(path: Path) -> Path:
    return path.with_suffix(".etag")


class _Part:
    """The beginning of a file on the disk, open for more of it.

    Attributes:
        size: bytes that are there.
        furthest: the most that there ever were.
        digest: over them.
    """

    def __init__(self, path: Path, entry: Entry, progress: Progress):
        self.path, self.entry, self._progress = path, entry, progress
        self.size = self.furthest = 0
        self.digest = entry.digest()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._file = path.open("r+b")

    def read(self) -> None:
        """Take what an earlier process left."""
        with writing(self.path):
            left = self.path.stat().st_size
            while left <= self.entry.size and (chunk := self._file.read(_CHUNK)):
                self._count(chunk)
        if left > self.entry.size:
            self.restart("The part is longer than the file.")

    def add(self, chunk: bytes) -> None:
        """Append what came; nothing beyond the file's size."""
        chunk = chunk[: self.entry.size - self.size]
        with writing(self.path):
            self._file.write(chunk)
            self._file.flush()  # to the system, where it outlives this process
        self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.size += len(chunk)
        self.furthest = max(self.furthest, self.size)
        self._progress(self.entry.name, len(chunk))

    def restart(self, why: str) -> None:
        """Begin anew.

        Warns:
            W-PULL-ANEW.
        """
        with writing(self.path):
            self._file.seek(0)
            self._file.truncate()
        self._progress(self.entry.name, -self.size)
        self.size, self.digest = 0, self.entry.digest()
        warn("W-PULL-ANEW", f"{self.entry.name} is fetched from its beginning. {why}")

    def close(self) -> None:
        with writing(self.path):
            self._file.close()

    @property
    def validator(self) -> str | None:
        """The ETag under which the bytes came; None if the server gave none that stands for bytes."""
        try:
            text = _validator_of(self.path).read_text(encoding="ascii")
        except (OSError, ValueError):
            return None
        return text if _VALIDATOR.fullmatch(text) else None

    @validator.setter
    def validator(self, text: str | None) -> None:
        with writing(self.path):
            _validator_of(self.path).write_text(text if text and _VALIDATOR.fullmatch(text) else "", encoding="ascii")


def _receive_all(part: _Part, url: str, repo: str) -> None:
    """Ask until everything is there, or until nothing more comes.

    A connection that brings a byte counts as none that failed only if the byte is new: a server that always breaks off
    in the middle and then begins anew would keep us for ever.
    """
    tries = 0
    while part.size < part.entry.size:
        before, failure = part.furthest, None
        try:
            _receive(part, url, repo)
        except Exception as error:  # every version of the client has its own for a broken connection
            if not _is_passing(error):
                raise
            failure = error
        if part.size < part.entry.size:
            tries = 0 if part.furthest > before else tries + 1
            if tries == TRIES:
                raise failure or ConnectionError(f"{part.entry.size} bytes were due, and {part.size} came")
            time.sleep(min(2**tries, _LONGEST_PAUSE))


def _is_passing(error: Exception) -> bool:
    """Whether to ask again."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in _PASSING
    return not isinstance(error, (VivantError, OfflineModeIsEnabled))


def _receive(part: _Part, url: str, repo: str) -> None:
    """Add what one answer brings."""
    from huggingface_hub.utils import build_hf_headers

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.validator:
            headers["If-Range"] = part.validator
    with _answer(url, headers, part.entry, repo) as (response, chunks):
        if _begins_at_end(part, response, repo):
            for chunk in chunks:
                part.add(chunk)
                if part.size == part.entry.size:
                    break


def _begins_at_end(part: _Part, response: Any, repo: str) -> bool:
    """Whether an answer goes on where the part ends, which for an answer with the whole file is cut to nothing."""
    entry, status, etag = part.entry, response.status_code, response.headers.get("ETag")
    is_plain = response.headers.get("Content-Encoding", "identity") == "identity"
    has_changed = bool(part.size and etag and part.validator) and etag != part.validator
    if status == 206 and is_plain:
        stated = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if stated and stated[2] not in ("*", str(entry.size)):
            raise _changed(entry, repo, f"It has {stated[2]} bytes, and {entry.size} are listed.")
        if stated is None or int(stated[1]) != part.size:
            raise ConnectionError(f"byte {part.size} was asked for, and the server sent others")
        if has_changed:  # although If-Range asked for the whole file in this case
            part.restart("It changed at the server since its first part was fetched.")
            return False
    elif status == 200:
        length = response.headers.get("Content-Length")
        if is_plain and length is not None and length != str(entry.size):
            raise _changed(entry, repo, f"It has {length} bytes, and {entry.size} are listed.")
        if part.size:
            part.restart(
                "It changed at the server since its first part was fetched."
                if has_changed
                else "The server does not send the rest of a file alone."
            )
    elif status == 416:
        raise _changed(entry, repo, f"It has no byte {part.size}, and {entry.size} bytes are listed.")
    else:
        raise ConnectionError(f"the server answered {status}")
    if part.size == 0:
        part.validator = etag
    return True


def _changed(entry: Entry, repo: str, why: str) -> LoadError:
    return LoadError(
        "E-PULL-CHANGED",
        f"The server offers another file as {entry.name} than {repo} lists.",
        f"{why} What was fetched before is kept.",
        "Pull again; if that does not help, check HF_ENDPOINT and any proxy.",
    )


@contextlib.contextmanager
def _answer(url: str, headers: dict[str, str], entry: Entry, repo: str) -> Generator[tuple[Any, Iterator[bytes]]]:
    """The answer at the end of all redirects, and its content. The token goes to the host of `url` alone."""
    from huggingface_hub.utils import hf_raise_for_status

    for _ in range(_MAX_REDIRECTS):
        with _request(url, headers) as (response, chunks):
            if response.status_code != 416:  # nothing lies beyond the part: an answer about the file
                hf_raise_for_status(response)
            linked = response.headers.get("X-Linked-ETag", "").strip('"')
            if entry.sha256 and re.fullmatch(r"[0-9a-f]{64}", linked) and linked != entry.sha256:
                raise _changed(entry, repo, f"Its hash is said to be {linked}.")
            if response.status_code not in _REDIRECTS:
                yield response, chunks
                return
            target = urljoin(url, response.headers.get("Location", ""))
        if urlsplit(target).scheme not in _DEFAULT_PORTS:
            raise _redirect(entry, "It leads to an address that is neither http nor https.")
        if _origin(target) != _origin(url):  # once away, it does not come back either
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        url = target
    raise _redirect(entry, "There is no end to them.")


def _redirect(entry: Entry, why: str) -> LoadError:
    return LoadError(
        "E-PULL-REDIRECT",
        f"The redirects of the server for {entry.name} are not followed.",
        why,
        "Check HF_ENDPOINT and any proxy.",
    )


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)


@contextlib.contextmanager
def _request(url: str, headers: dict[str, str]) -> Generator[tuple[Any, Iterator[bytes]]]:
    """One answer and its content as it comes, through the session of the hub's client: with its proxies and trust."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if isinstance(session.stream, bool):  # a setting of requests, before huggingface_hub 1.0; of httpx a method
        with session.get(url, headers=headers, timeout=timeout, allow_redirects=False, stream=True) as response:
            yield response, response.iter_content(64 * 1024)
    else:
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=False) as response:
            yield response, response.iter_bytes()
