"""The cache of huggingface_hub as it lies on the disk: what is written here, the client itself reads.

``models--ORGANISATION--NAME/`` holds ``blobs/HASH``, the contents; ``snapshots/COMMIT/PATH``, links to them; and
``refs/REVISION``, text files with a commit. ``.locks/`` beside it holds a lock for every blob that is written.
"""

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Generator
from pathlib import Path

from vivant.errors import warn
from vivant.hub.download import writing
from vivant.media.atomic import replacing

PATIENCE = 2.0
"""Seconds to wait for another process before saying so."""


@contextlib.contextmanager
def alone(lock: Path, name: str) -> Generator[None]:
    """Have no other process fetch the same file: wait until it is done.

    Args:
        lock: a file; where the system has no real locks, it is one by being there.
        name: for the warning.

    Warns:
        W-PULL-WAITS after a while.

    Raises:
        OutputError: E-OUTPUT-WRITE.
    """
    from huggingface_hub.utils import WeakFileLock

    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
    text = f"Another process fetches {name}, and this one waits. If there is none, remove {lock}."
    notice = threading.Timer(PATIENCE, warn, ("W-PULL-WAITS", text))
    notice.daemon = True
    notice.start()
    try:
        with WeakFileLock(lock):
            notice.cancel()
            yield
    finally:
        notice.cancel()


def show(blob: Path, path: Path, *, is_new: bool) -> None:
    """Show a blob as a commit's file: by a relative link.

    Where there are no links, a new blob becomes the file, and one that other commits may have too is copied.

    Raises:
        OutputError: E-PULL-DISK, E-OUTPUT-WRITE.
    """
    from huggingface_hub import constants

    temporary = path.with_name(f".vivant-{secrets.token_hex(6)}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not _link(blob, temporary, allowed=not getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False)):
                (blob.replace if is_new else lambda to: shutil.copyfile(blob, to))(temporary)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _link(blob: Path, path: Path, *, allowed: bool) -> bool:
    """Whether a link could be made."""
    if not allowed:
        return False
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except (OSError, NotImplementedError):
        return False
    return True


def name_commit(root: Path, revision: str, commit: str) -> None:
    """Let a branch or tag be found without a connection.

    Raises:
        OutputError: E-PULL-DISK, E-OUTPUT-WRITE.
    """
    reference = root / "refs" / revision
    with writing(reference):
        if reference.is_file() and reference.read_text(encoding="utf-8") == commit:
            return  # so that a cache in which all is said already may be one that cannot be written to
        reference.parent.mkdir(parents=True, exist_ok=True)
    with replacing(reference, overwrite=True) as temporary:
        temporary.write_text(commit, encoding="utf-8")
