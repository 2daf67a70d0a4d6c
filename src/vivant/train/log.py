"""What a run tells: a table of losses, sheets of samples, and curves for TensorBoard on request."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vivant.errors import MissingPackage


class Log:
    """`log.csv`: a line for every few updates, with the same columns from the first line to the last."""

    def __init__(self, folder: Path, first_step: int, tensorboard: bool):
        self._path = folder / "log.csv"
        self._columns: list[str] = []
        self._forget_after(first_step)
        self._board = _board(folder / "tensorboard", first_step) if tensorboard else None

    def _forget_after(self, step: int) -> None:
        """A run that is resumed writes again what came after its checkpoint."""
        if not self._path.is_file():
            return
        with self._path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        self._columns = rows[0] if rows else []
        kept = [row for row in rows[1:] if row and row[0].isdecimal() and int(row[0]) <= step]
        with self._path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self._columns, *kept] if self._columns else [])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line: the number of updates made, and the means since the line before."""
        row = {"step": step, **values}
        is_new = not self._columns
        self._columns = self._columns or list(row)
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(self._columns)
            writer.writerow([_short(row[name]) for name in self._columns])
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()


def _short(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _board(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackage(
            "E-TENSORBOARD",
            "TensorBoard is not installed.",
            "The recipe asks for its curves.",
            "pip install 'vivant[train]', or set tensorboard = false: log.csv is written all the same.",
        ) from error
    return SummaryWriter(str(folder), purge_step=first_step + 1)
