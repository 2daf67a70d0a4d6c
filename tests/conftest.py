"""What every test starts from: no network, two threads, the same examples of hypothesis on every run."""

import os

# Before torch is imported: its threads are set once, and small tensors on many threads are slow.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

settings.register_profile("vivant", deadline=None, derandomize=True)
settings.load_profile("vivant")
