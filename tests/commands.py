"""What the tests of the command line share: how a command is run, and with which small models."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

BASE_ID, ADAPTER_ID, CONSISID_ID = "someone/base", "someone/adapter", "someone/consisid"
SMALL = ["--size", "64x48", "--frames", "5", "--steps", "2", "--seed", "7", "--dtype", "float32"]


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on standard output."""
        return json.loads(self.out)


Vivant = Callable[..., Ran]
