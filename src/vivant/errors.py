"""Every error and warning of vivant: what happened, why, what to do, and a code that does not change.

The codes are listed in docs/errors.md; a test keeps that list and the code in step.
"""

import warnings


class VivantError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        code: stable identifier such as ``"E-IMAGE-EMPTY"``.
        what: what happened, one sentence.
        why: the reason, or an empty string.
        fix: what the caller can do, or an empty string.
    """

    def __init__(self, code: str, what: str, why: str = "", fix: str = ""):
        self.code, self.what, self.why, self.fix = code, what, why, fix
        super().__init__(" ".join(part for part in (f"[{code}] {what}", why, fix) if part))

    def __reduce__(self):
        return type(self), (self.code, self.what, self.why, self.fix)


class InputError(VivantError, ValueError):
    """An argument, picture, prompt or setting cannot be used."""


class LoadError(VivantError, OSError):
    """A file, folder or repository cannot be read as what it should be."""

    __str__ = Exception.__str__  # OSError would print its arguments as (errno, text)


class MissingPackage(VivantError, ImportError):
    """An optional package is needed for this call and is not installed."""


class OutputError(VivantError, RuntimeError):
    """The result is not something that may be handed out (NaN, black, unwritable)."""


class Cancelled(VivantError):
    """The caller asked to stop; nothing was decoded or written."""


class VivantWarning(UserWarning):
    """A warning with a stable code: ``str(w)`` starts with ``[W-…]``."""


def warn(code: str, text: str, *, stacklevel: int = 2) -> str:
    """Issue a VivantWarning and return its text, so that the caller can also put it into a report."""
    message = f"[{code}] {text}"
    warnings.warn(VivantWarning(message), stacklevel=stacklevel + 1)
    return message
