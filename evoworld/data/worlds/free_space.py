"""Where a head may be: a grid of floor, opened room by room and closed where furniture stands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import max_pool2d

_CELL = 0.1  # metres
_MARGIN = 0.3  # metres between a head and what it must not touch


@dataclass
class FreeSpace:
    """A grid of cells of floor."""

    origin: tuple[float, float]  # metres, the corner of cell (0, 0)
    open_cells: torch.Tensor  # [X, Y] bool

    @classmethod
    def over(cls, low: tuple[float, float], high: tuple[float, float]) -> FreeSpace:
        size = [math.ceil((h - l) / _CELL) for l, h in zip(low, high)]  # noqa: E741
        return cls(low, torch.zeros(size, dtype=torch.bool))

    def open(self, rectangle: tuple[float, float, float, float]) -> None:
        self.open_cells[self._cells(rectangle)] = True

    def close(self, rectangle: tuple[float, float, float, float]) -> None:
        self.open_cells[self._cells(rectangle)] = False

    def finish(self) -> tuple[torch.Tensor, tuple[float, float], float]:
        """(free cells [X, Y], origin, metres of a cell): the largest space away from what is closed."""
        closed = (~self.open_cells).float()[None, None]
        reach = round(_MARGIN / _CELL)
        near = max_pool2d(closed, 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0
        near[:reach], near[-reach:], near[:, :reach], near[:, -reach:] = True, True, True, True
        return _largest_space(~near), self.origin, _CELL

    def _cells(self, rectangle: tuple[float, float, float, float]) -> tuple[slice, slice]:
        x0, y0, x1, y1 = rectangle
        low = [round((v - o) / _CELL) for v, o in zip((x0, y0), self.origin)]
        high = [round((v - o) / _CELL) for v, o in zip((x1, y1), self.origin)]
        return tuple(slice(max(l, 0), max(h, 0)) for l, h in zip(low, high))  # noqa: E741


def _largest_space(free: torch.Tensor) -> torch.Tensor:  # [X, Y] bool -> [X, Y] bool
    """The most cells that one can walk between."""
    rest = {tuple(cell) for cell in free.nonzero().tolist()}
    largest: list[tuple[int, int]] = []
    while rest:
        space = [rest.pop()]
        for x, y in space:
            around = {(x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)} & rest
            rest -= around
            space += around
        largest = max(largest, space, key=len)
    kept = torch.zeros_like(free)
    if largest:
        kept[tuple(torch.tensor(largest).T)] = True
    return kept
