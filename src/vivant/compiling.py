"""What is said where torch's compiler cannot work."""

from collections.abc import Generator
from contextlib import contextmanager

from vivant.errors import MissingPackage


@contextmanager
def compiling() -> Generator[None]:
    """Around what compiles, and around the first call of what was compiled, where torch finds out as a rule.

    Raises:
        MissingPackage: E-COMPILE where torch cannot compile.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise refusal(error) from error
        raise


def refusal(error: Exception) -> MissingPackage:
    """E-COMPILE, for what torch says."""
    return MissingPackage(
        "E-COMPILE",
        f"torch cannot compile here: {str(error).splitlines()[0]}",
        "Compiling needs a C++ compiler and a platform that torch supports.",
        "Install a C++ compiler, or do without compiling: the result is the same, more slowly.",
    )
