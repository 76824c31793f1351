"""The grid and the memory on the device: growing, observing and querying 512 x 1024 panoramas, as a caller waits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import evoworld
from benchmarks.gpu.context import Context, named
from benchmarks.gpu.scene import Room, hall
from benchmarks.harness import Check, Contestant, Row
from evoworld.geometry import Panorama, SparseGrid
from evoworld.world import Memory

HEIGHT, CHANNELS = 512, 16
FRAMES = 10
WARM_UP = 2  # frames observed and queried before the clock runs
OBSERVE_TARGET_MS, QUERY_TARGET_MS = 0.5, 0.5
WRONG_DEPTH, WRONG_SHARE = 0.01, 1e-3  # pixels whose depth is off by more than a hundredth: at most so many


@dataclass(frozen=True)
class Shot:
    """One panorama, as `Memory.observe` takes it."""

    features: Tensor  # [H, W, C]
    depth: Tensor  # [H, W]
    pose: Tensor  # [4, 4]
    camera: Panorama
    points: Tensor  # [R, 3]


def run(context: Context) -> None:
    """Adds rows and targets for the grid, then for the memory."""
    room = hall(context.tiny)
    frames = 3 if context.tiny else 5 if context.quick else FRAMES
    shots = [shoot(context, room, index) for index in range(WARM_UP + frames)]
    grow(context, room, shots)
    remember(context, room, shots)


def shoot(context: Context, room: Room, index: int) -> Shot:
    height = context.height(HEIGHT)
    camera = Panorama(height, 2 * height)
    origins, directions = room.rays(camera, index)
    depth = room.depth(origins, directions, noise_seed=index)
    draw = torch.Generator().manual_seed(index)
    features = torch.rand(height, camera.width, CHANNELS, generator=draw)
    points = torch.addcmul(origins, directions, depth[:, None])
    tensors = [t.to(context.device.name) for t in (features, depth.view(height, -1), room.pose(index))]
    return Shot(*tensors, camera, points.to(context.device.name))


def grow(context: Context, room: Room, shots: list[Shot]) -> None:
    """`SparseGrid` from the points of a panorama, and a merge that finds nothing new."""
    case = f"SparseGrid, {shots[0].points.shape[0]:,} points"
    truth = SparseGrid.from_points(shots[0].points.cpu(), room.voxel_size)
    check = Check({"bricks": truth.brick_coordinates}, 0.0)
    grids = {id(shot): SparseGrid.from_points(shot.points, room.voxel_size) for shot in shots}
    backends = [b for b in context.backends if evoworld.ops.available("sparse_grid")[b] is None]

    def build(shot: Shot, backend: str) -> SparseGrid:
        with evoworld.backend(backend):
            return SparseGrid.from_points(shot.points, room.voxel_size)

    def merge(shot: Shot, backend: str) -> SparseGrid:
        with evoworld.backend(backend):
            grids[id(shot)].merge(shot.points)
        return grids[id(shot)]

    def bricks(grid: SparseGrid) -> dict[str, Tensor]:
        return named(["bricks"], [grid.brick_coordinates])

    contestants = []
    for backend in (*backends, "reference"):
        contestants += [
            Contestant(f"{backend}, from points", lambda shot, b=backend: build(shot, b), bricks, note="wall clock"),
            Contestant(f"{backend}, nothing new", lambda shot, b=backend: merge(shot, b), bricks, note="wall clock"),
        ]
    ours = [contestant.name for contestant in contestants]
    context.compare(case, contestants, shots, check, ours, wall=True)


def remember(context: Context, room: Room, shots: list[Shot]) -> None:
    """Observe frame after frame into a growing memory, and query it from the frame that comes next."""
    case = f"Memory {HEIGHT}x{2 * HEIGHT}, C = {CHANNELS}"
    wrong = disagreement(context, room, shots)
    measured = {}
    for clock_name in ("wall", "device"):
        clock = context.device.wall if clock_name == "wall" else context.device.clock
        note = "as a caller waits" if clock_name == "wall" else "by the device's clock"
        observe = Row(case, f"observe, {clock_name}", note=f"{note}; growth and carving included", refused=wrong)
        query = Row(case, f"query, {clock_name}", note=note, refused=wrong)
        for warm_up in (True, False) if not wrong else ():
            memory = Memory(room.voxel_size, CHANNELS, context.device.name)
            chosen = shots[: WARM_UP + 1] if warm_up else shots
            observing, looking = partial(take, memory), partial(look, memory)
            for shot, following in pairwise(chosen):
                spent = clock(observing, shot), clock(looking, following)
                if not warm_up:
                    observe.seconds.append(spent[0])
                    query.seconds.append(spent[1])
        measured[clock_name] = observe.median, query.median
        context.findings.rows += [observe, query]
    if wrong:
        context.findings.failures.append(f"{case}: {wrong}")
    for what, index, limit in (("observe", 0, OBSERVE_TARGET_MS), ("query", 1, QUERY_TARGET_MS)):
        note = f"{measured['device'][index] * 1e3:.2f} ms by the device's clock"
        context.target(f"{case}: {what}", measured["wall"][index] * 1e3, limit, False, "ms", note)


def disagreement(context: Context, room: Room, shots: list[Shot]) -> str:
    """How a memory on the device differs from one on the CPU that saw the same; empty where it does not."""
    views: list[Any] = []
    for device in (context.device.name, "cpu"):
        memory = Memory(room.voxel_size, CHANNELS, device)
        for shot in shots[:2]:
            memory.observe(shot.features.to(device), shot.depth.to(device), shot.pose.to(device), shot.camera)
        views.append(memory.query(shots[2].camera, shots[2].pose.to(device)))
    found, truth = views
    off = (found.depth.cpu() - truth.depth).abs() > WRONG_DEPTH * truth.depth.clamp(min=1e-3)
    off |= ((found.features.cpu() - truth.features).abs() > WRONG_DEPTH).any(-1)
    share = off.double().mean().item()
    return "" if share <= WRONG_SHARE else f"{100 * share:.2f} % of the pixels differ from a memory on the CPU"


def take(memory: Memory, shot: Shot) -> None:
    memory.observe(shot.features, shot.depth, shot.pose, shot.camera)


def look(memory: Memory, shot: Shot) -> Any:
    return memory.query(shot.camera, shot.pose)
