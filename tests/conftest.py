"""What every test starts from: no network, one thread, the same examples of hypothesis on every run."""

import os

# Before torch is imported. Small tensors gain nothing from threads, and threads that wait for each other on a busy
# machine take forty times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A tensor of a mapped file starts where the file has it. On processors without AVX-512, MKL rounds by the address, so
# that saved and loaded again were not the same to the bit; with this it does not.
os.environ.setdefault("MKL_CBWR", "AUTO")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

settings.register_profile("vivant", deadline=None, derandomize=True)
settings.load_profile("vivant")


def pytest_configure(config: pytest.Config) -> None:
    """A warning of ours that no test expects is an error.

    Said here and not in pyproject.toml, for there it would import the package before jaxtyping's hook can wrap it.
    """
    config.addinivalue_line("filterwarnings", "error::vivant.errors.VivantWarning")
