"""Walks through procedural worlds: straight, curved, closed loops, out and back, and looking around."""

from __future__ import annotations

import heapq
import math
from itertools import pairwise
from random import Random

import torch

from ..walk import level_poses
from .scene import World

LEVEL_WALKS = ("straight", "curve", "loop", "out_and_back")  # of one yaw
WALKS = (*LEVEL_WALKS, "look_around")
_TRIES = {"straight": 60, "curve": 4, "loop": 6, "out_and_back": 4}
_PAIRS = 40  # of places that a loop is chosen from
_FINE = 0.2  # cells: how finely lines are checked for what stands in the way
_MOST_LEGS = 300  # of a way, where there is little space and many frames
_NEIGHBOURS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]

Cell = tuple[int, int]
Place = tuple[float, float]  # in cells, whole numbers in their middles


def make_walk(
    world: World,
    kind: str,
    num_frames: int,
    seed: int,
    step: float = 0.2,
) -> torch.Tensor:  # [T, 4, 4]
    """Level camera-to-world poses of a walk through free space, the same for the same seed.

    Args:
        world: where to walk.
        kind: of `WALKS`. ``loop`` ends where it began; ``out_and_back`` returns over its own steps.
        num_frames: T, at least 1.
        seed: of the way, the height of the camera and where it looks.
        step: metres between frames, about; less where there is not as much space, and loops close with equal steps.

    Raises:
        ValueError: for another kind, no frames, or a step that is not positive.

    Example:
        >>> from evoworld.data.worlds import make_apartment
        >>> make_walk(make_apartment(0), "loop", 5, seed=1).shape
        torch.Size([5, 4, 4])
    """
    if kind not in WALKS:
        raise ValueError(f"kind: expected one of {', '.join(WALKS)}, got {kind!r}")
    if num_frames < 1:
        raise ValueError(f"num_frames: expected at least 1, got {num_frames}")
    if not step > 0:
        raise ValueError(f"step: expected metres > 0, got {step}")
    random = Random(f"{world.seed} {kind} {seed}")
    free = {tuple(cell) for cell in world.free.nonzero().tolist()}
    turn = num_frames // 2 if kind == "out_and_back" else num_frames - 1  # the frame that is farthest along the way
    wanted = step * turn / world.free_cell
    places = torch.tensor(_best_way(random, free, kind, wanted), dtype=torch.float64)
    places = (places + 0.5) * world.free_cell + torch.tensor(world.free_origin, dtype=torch.float64)
    frame = torch.arange(num_frames, dtype=torch.float64)
    share = torch.minimum(frame, 2 * turn - frame) / max(turn, 1)
    positions = _along(places, share, None if kind == "loop" else wanted * world.free_cell)
    height = torch.full((num_frames, 1), random.uniform(1.25, 1.65), dtype=torch.float64)
    yaw = random.uniform(-math.pi, math.pi) + torch.zeros(num_frames, dtype=torch.float64)
    if kind == "look_around":
        yaw = yaw + torch.linspace(0, random.choice((-2, 2)) * math.pi, num_frames, dtype=torch.float64)
    return level_poses(torch.cat((positions, height), 1), yaw).float()


def _best_way(random: Random, free: set[Cell], kind: str, wanted: float) -> list[Place]:
    """A way of about as many cells as wanted: loops as wide as can be, others the first that is long enough."""
    cells = sorted(free)
    if kind == "look_around":
        return [random.choice(cells)]
    make = {"straight": _line, "loop": _loop}.get(kind, _curve)
    ways = []
    for _ in range(_TRIES[kind]):
        ways.append(make(random, free, cells, wanted))
        if kind != "loop" and _length(ways[-1]) >= wanted:
            break
    if kind != "loop":
        return max(ways, key=_length)
    return max(ways, key=lambda way: 3 * _area(way) ** 0.5 - abs(_length(way) - wanted))


def _line(random: Random, free: set[Cell], cells: list[Cell], wanted: float) -> list[Place]:
    """As far as one can go straight on."""
    start, angle = random.choice(cells), random.uniform(-math.pi, math.pi)
    way = [start]
    for i in range(1, math.ceil(wanted / _FINE) + 1):
        place = (start[0] + i * _FINE * math.cos(angle), start[1] + i * _FINE * math.sin(angle))
        if not _is_free(free, place):
            break
        way.append(place)
    return [way[0], way[-1]]


def _curve(random: Random, free: set[Cell], cells: list[Cell], wanted: float) -> list[Place]:
    """From place to place, to one that lies ahead rather than behind, until it is long enough."""
    way = [random.choice(cells)]
    for _ in range(_MOST_LEGS):
        if _length(way) > 1.1 * wanted:  # rounding makes it shorter
            break
        before, here = way[-2:] if len(way) > 1 else (way[0], way[0])
        target = max(random.choices(cells, k=8), key=lambda cell: _cosine(before, here, cell))
        way += _pulled(_shortest(free, here, target), free)[1:]
    return _rounded(way, free)


def _loop(random: Random, free: set[Cell], cells: list[Cell], wanted: float) -> list[Place]:
    """By two other places home: those that span the widest triangle of about the length wanted."""
    start = random.choice(cells)
    near = [cell for cell in cells if math.dist(start, cell) <= 0.45 * wanted]
    first, second = max(
        ([random.choice(near), random.choice(near)] for _ in range(_PAIRS)),
        key=lambda pair: _area([start, *pair]) - wanted * abs(_length([start, *pair, start]) - 0.95 * wanted),
    )
    legs = [_pulled(_shortest(free, a, b), free) for a, b in pairwise([start, first, second, start])]
    return _rounded([start, *(place for leg in legs for place in leg[1:])], free)


def _cosine(a: Cell, b: Cell, c: Cell) -> float:
    """Of the turn at b; 0 where there is none."""
    product = (b[0] - a[0]) * (c[0] - b[0]) + (b[1] - a[1]) * (c[1] - b[1])
    return product / max(math.dist(a, b) * math.dist(b, c), 1e-9)


def _area(way: list[Place]) -> float:
    """Of the floor within a closed way."""
    return abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(way, [*way[1:], way[0]], strict=True))) / 2


def _shortest(free: set[Cell], start: Cell, target: Cell) -> list[Cell]:
    """A shortest way over free cells (A*)."""
    came = {start: start}
    cost = {start: 0.0}
    queue = [(0.0, start)]
    while queue:
        _, cell = heapq.heappop(queue)
        if cell == target:
            break
        for i, j in _NEIGHBOURS:
            following = (cell[0] + i, cell[1] + j)
            total = cost[cell] + math.hypot(i, j)
            if following in free and total < cost.get(following, math.inf):
                cost[following], came[following] = total, cell
                heapq.heappush(queue, (total + math.dist(following, target), following))
    way = [target]
    while way[-1] != start:
        way.append(came[way[-1]])
    return way[::-1]


def _pulled(way: list[Cell], free: set[Cell]) -> list[Place]:
    """The corners of a way that is pulled straight where nothing stands between."""
    corners, i = [way[0]], 0
    while i < len(way) - 1:
        i = next((k for k in range(len(way) - 1, i + 1, -1) if _is_clear(free, way[i], way[k])), i + 1)
        corners.append(way[i])
    return corners


def _rounded(points: list[Place], free: set[Cell]) -> list[Place]:
    """A way with its corners cut, and cut again (Chaikin), by a few cells at most and only where that is free."""
    for _ in range(3):
        cut = [points[0]]
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            a, b = (_between(corner, p, min(0.25, 4 / max(math.dist(corner, p), 1e-9))) for p in (before, after))
            cut += [a, b] if _is_clear(free, a, b) else [corner]
        points = [*cut, points[-1]]
    return points


def _between(a, b, share):
    return tuple((1 - share) * x + share * y for x, y in zip(a, b))


def _is_clear(free: set[Cell], a: Place, b: Place) -> bool:
    count = max(1, math.ceil(math.dist(a, b) / _FINE))
    return all(_is_free(free, _between(a, b, i / count)) for i in range(count + 1))


def _is_free(free: set[Cell], place: Place) -> bool:
    return (round(place[0]), round(place[1])) in free


def _length(way: list[Place]) -> float:
    return sum(math.dist(a, b) for a, b in pairwise(way))


def _along(
    places: torch.Tensor,  # [P, 2] metres
    share: torch.Tensor,  # [T] 0..1
    length: float | None,  # metres
) -> torch.Tensor:  # [T, 2]
    """Places at shares of a line, or of its first metres where it is longer than `length`."""
    if len(places) < 2:
        return places[:1].expand(len(share), 2)
    legs = (places[1:] - places[:-1]).norm(dim=-1)
    reached = torch.cat((legs.new_zeros(1), legs.cumsum(0)))
    whole = float(reached[-1])
    distance = share * (whole if length is None else min(length, whole))
    leg = torch.searchsorted(reached, distance, right=True).sub(1).clamp(0, len(legs) - 1)
    within = ((distance - reached[leg]) / legs[leg].clamp_min(1e-9)).clamp(0, 1)
    return torch.lerp(places[leg], places[leg + 1], within[:, None])
