"""What a run writes down while it trains: a line of JSON now and then, and TensorBoard's files if asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from evoworld.world.atomic import atomic_path

LINES = "log.jsonl"


class RunLog:
    """The log of a run in its folder.

    Args:
        folder: of the run.
        tensorboard: write TensorBoard's files, too.
        total: steps done; what an earlier process wrote of later ones is dropped, as it will be done again.

    Raises:
        ModuleNotFoundError: TensorBoard is wanted and not installed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> RunLog(folder).write(total=3, stage="flow", loss=0.5)
        >>> (folder / "log.jsonl").read_text()
        '{"total": 3, "stage": "flow", "loss": 0.5}\\n'
    """

    def __init__(self, folder: Path, tensorboard: bool = False, total: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LINES
        if self.path.is_file():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _total(line) <= total]
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=total + 1)

    def write(self, total: int, stage: str, **values: Any) -> None:
        """Adds a line; numbers among the values are curves in TensorBoard, by the stage's name."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"total": total, "stage": stage} | values) + "\n")
        for name, value in values.items() if self._board else ():
            if isinstance(value, (int, float)):
                self._board.add_scalar(f"{stage}/{name}", value, total)

    def image(self, total: int, stage: str, image: Tensor) -> None:  # [H, W, 3]
        """Adds a preview, if TensorBoard is written."""
        if self._board:
            self._board.add_image(f"{stage}/preview", image, total, dataformats="HWC")

    def close(self) -> None:
        if self._board:
            self._board.close()


def _total(line: str) -> float:
    """The step of a line; lines that were not finished count as later than all."""
    try:
        return json.loads(line)["total"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
