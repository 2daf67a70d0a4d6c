"""Writing so that a failure leaves nothing behind and harms nothing that was there."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Generator
from pathlib import Path

from vivant.errors import OutputError, VivantError


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse an output path before the work, not after it.

    Raises:
        OutputError: E-OUTPUT-EXISTS, E-OUTPUT-FOLDER when the folder is missing or not a folder, or E-OUTPUT-WRITE
            for a name that the system cannot hold.
    """
    with naming(path):
        if not path.parent.is_dir():
            raise OutputError("E-OUTPUT-FOLDER", f"There is no folder {path.parent}.", "", "Create it first.")
        if path.is_dir():
            raise OutputError("E-OUTPUT-EXISTS", f"{path} is a folder.", "", "Choose another name.")
        if path.exists() and not overwrite:
            raise OutputError(
                "E-OUTPUT-EXISTS", f"{path} exists already.", "", "Choose another name, or allow overwriting."
            )


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Generator[Path, None, None]:
    """Give a temporary name in the same folder; rename it to `path` when the block ends well, else remove it.

    Raises:
        OutputError: as `check_target`, and E-OUTPUT-WRITE when the system refuses (rights, space, a vanished folder).
    """
    path = Path(os.path.realpath(path))  # a link is written through, not replaced
    check_target(path, overwrite=overwrite)
    temporary = _beside(path, path.suffix)
    with naming(path):
        try:
            yield temporary
            check_target(path, overwrite=overwrite)  # another process may have been faster
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):  # it may never have come to be; why not is what the caller is told
                temporary.unlink()


@contextlib.contextmanager
def replacing_folder(path: Path, *, overwrite: bool, ours: str) -> Generator[Path, None, None]:
    """As `replacing` for a folder. One that exists is replaced only if every file in it matches the pattern `ours`.

    Raises:
        OutputError: E-OUTPUT-EXISTS, E-OUTPUT-FOLDER, E-OUTPUT-WRITE.
    """
    path = Path(os.path.realpath(path))
    check_folder(path, overwrite=overwrite, ours=ours)
    temporary, old = _beside(path), _beside(path)
    with naming(path):
        try:
            temporary.mkdir()
            yield temporary
            check_folder(path, overwrite=overwrite, ours=ours)
            if path.exists():
                path.rename(old)
            try:
                temporary.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if os.path.exists(path):
                shutil.rmtree(old, ignore_errors=True)


def check_folder(path: Path, *, overwrite: bool, ours: str) -> None:
    """Refuse a folder that cannot be created or that holds anything but an earlier clip of ours."""
    with naming(path):
        if not path.exists():
            return check_target(path, overwrite=overwrite)
        if not path.is_dir():
            raise OutputError("E-OUTPUT-EXISTS", f"{path} is a file.", "", "Choose another name.")
        held = list(path.iterdir())
    foreign = [entry.name for entry in held if not entry.match(ours)]
    if foreign:
        raise OutputError("E-OUTPUT-EXISTS", f"The folder {path} holds other files: {foreign[0]}, for one.")
    if held and not overwrite:
        raise OutputError("E-OUTPUT-EXISTS", f"The folder {path} holds a clip already.", "", "Allow overwriting.")
    return None


def _beside(path: Path, suffix: str = "") -> Path:
    """A free hidden name in the folder of `path`, short whatever that is called.

    Not mkstemp, whose files only their owner can read.
    """
    return path.with_name(f".vivant-{secrets.token_hex(6)}{suffix}")


@contextlib.contextmanager
def naming(path: Path) -> Generator[None, None, None]:
    """What the system refuses, as an error that names the path."""
    try:
        yield
    except VivantError:  # some of ours are OSErrors too, and say more
        raise
    except OSError as error:
        raise OutputError(
            "E-OUTPUT-WRITE", f"{path} cannot be written.", f"{type(error).__name__}: {error}."
        ) from error
