"""volume_render on a capture's fused grid: absolute time, backward against forward, and Open3D's ray_cast."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness import Check, Contestant, Row, Target, compare, ratio
from benchmarks.inputs import CHANNELS, VOXEL_SIZE, World
from benchmarks.work import March, bytes_of_render, count_samples
from evoworld import ops, reference
from evoworld.evaluation import depth_metrics
from evoworld.geometry import Panorama, Pinhole, make_pose

HEIGHT = 256
STEP = VOXEL_SIZE / 2
NEAR = 0.05
NUM_POSES = 4
# Rays on which the reference is run: it holds all samples of a ray.
CHECKED_RAYS = 512
TOLERANCE = 1e-3
MILLISECONDS_TARGET, BACKWARD_TARGET, OPEN3D_TARGET = 80.0, 2.0, 1.5
# Open3D's surface is another one than the grid's: it must merely see the same room.
OPEN3D_ABS_REL = 0.05
# name -> whether the rays get gradients too
BACKWARD = {"backward, features and density": False, "backward, rays too": True}
OPEN3D_CASES = PANORAMA, SAME_RAYS = "evoworld, panorama", "evoworld, same rays"


def run(world: World, repeats: int, missing: list[str]) -> tuple[list[Row], list[Target]]:
    """Rows and targets on one world; the camera rotates through poses of its frames, which themselves were observed."""
    indices = [round((i + 0.5) * len(world.frames) / NUM_POSES) % len(world.frames) for i in range(NUM_POSES)]
    case = f"volume_render {HEIGHT}x{2 * HEIGHT}"
    ours = compare_directions(case, world, indices, repeats)
    milliseconds = ours["evoworld"].median * 1e3
    targets = [Target(f"{case} forward", milliseconds, MILLISECONDS_TARGET, False, "ms")]
    for name in BACKWARD:
        slowdown = ratio(ours, name, "evoworld")
        targets.append(Target(f"{case}: {name} / forward", slowdown, BACKWARD_TARGET, False))
    cast = compare_open3d(f"{case} and Open3D", world, indices, repeats, missing)
    for name in OPEN3D_CASES:
        slowdown = ratio(cast, name, "Open3D ray_cast")
        note = "Open3D: first hit, depth alone"
        targets.append(Target(f"{case} forward: {name} / Open3D ray_cast", slowdown, OPEN3D_TARGET, False, note=note))
    return [*ours.values(), *cast.values()], targets


def render(world: World, origins: Tensor, directions: Tensor, features=None, density=None, op=ops.volume_render):
    """Any implementation of the op, on the world's grid."""
    features = world.features if features is None else features
    density = world.density if density is None else density
    return op(features, density, origins, directions, world.grid, NEAR, world.far, STEP)


@dataclass
class Prepared:
    """Rays, and graphs whose backward is timed alone."""

    world: World
    rays: Sequence[Tensor]  # origins [R, 3], directions [R, 3]

    @cached_property
    def graphs(self) -> dict[str, Any]:
        return {name: self.record(with_rays, ops.volume_render) for name, with_rays in BACKWARD.items()}

    def record(self, with_rays: bool, op):
        """(outputs, leaves, gradients of the outputs) of a forward."""
        leaves = [t.detach().clone().requires_grad_() for t in (self.world.features, self.world.density)]
        rays = [t.detach().clone().requires_grad_(with_rays) for t in self.rays]
        outputs = render(self.world, *rays, *leaves, op=op)
        generator = torch.Generator().manual_seed(0)
        d_outputs = [torch.randn(t.shape, generator=generator) for t in outputs]
        return outputs, [*leaves, *(rays if with_rays else [])], d_outputs


def compare_directions(case: str, world: World, indices: Sequence[int], repeats: int) -> dict[str, Row]:
    """Forward and backward in one interleaved run; the reference, which holds all samples, checks some of the rays."""
    camera = Panorama(HEIGHT, 2 * HEIGHT)
    inputs = [Prepared(world, [t.contiguous() for t in camera.rays(world.frames[i].camera_to_world)]) for i in indices]
    chosen = torch.linspace(0, camera.num_rays - 1, CHECKED_RAYS).long()
    few = Prepared(world, [t[chosen] for t in inputs[0].rays])
    read, flops = _floor(world, *few.rays, camera.num_rays)
    note = f"forward; checked on {CHECKED_RAYS} rays"
    forward = Contestant(
        "evoworld",
        lambda given: render(world, *given.rays),
        lambda found: {name: tensor[chosen] for name, tensor in _named(found).items()},
        read,
        flops,
        note,
    )
    contestants = [forward]
    checks = {"evoworld": Check(_named(render(world, *few.rays, op=reference.volume_render)), TOLERANCE)}
    for name, with_rays in BACKWARD.items():
        expected = _gradients(few.record(with_rays, reference.volume_render))
        checks[name] = Check(_named_gradients(expected), TOLERANCE)
        found = _named_gradients(_gradients(few.graphs[name]))
        backward = Contestant(
            name, lambda given, n=name: _gradients(given.graphs[n]), lambda _, f=found: f, read, 2 * flops
        )
        contestants.append(backward)
    for given in inputs:
        _ = given.graphs
    return compare(case, contestants, inputs, checks, repeats)


def compare_open3d(case: str, world: World, indices: Sequence[int], repeats: int, missing: list[str]):
    """Open3D casts a pinhole view; ours renders the same rays, and a whole panorama of as many."""
    peer = peers.load("open3d_raycast", missing)
    if peer is None:
        return {}
    surfaces = peer.SurfaceGrid(world.frames, VOXEL_SIZE, world.far)
    view: Pinhole = peer.VIEW
    panorama = Panorama(HEIGHT, 2 * HEIGHT)
    inputs, truths = [], []
    for turn, index in enumerate(indices):
        frame = world.frames[index]
        yaw = _yaw(turn * math.pi / 2)
        pose = frame.camera_to_world @ yaw
        truths.append(_view_depth(frame, view, yaw))
        blocks = surfaces.blocks_in_view(truths[-1], view, pose)
        rays = [tuple(t.contiguous() for t in camera.rays(pose)) for camera in (view, panorama)]
        inputs.append((pose, blocks, *rays))

    def sees_the_room(depth: Tensor) -> dict[str, Tensor]:
        wrong = depth_metrics(depth, truths[0]).abs_rel > OPEN3D_ABS_REL
        return {"wrong": torch.tensor(float(wrong))}

    def as_depth(found) -> Tensor:
        depth = found[1] / found[2].clamp(min=torch.finfo(torch.float32).tiny)
        return view.depth_from_range(depth.view(view.height, view.width))

    cast = Contestant(
        "Open3D ray_cast",
        lambda given: surfaces.cast(view, given[0], given[1]),
        lambda found: sees_the_room(peer.depth_of(found)),
        note="first hit, depth alone",
    )
    same = Contestant(SAME_RAYS, lambda given: render(world, *given[2]), lambda found: sees_the_room(as_depth(found)))
    whole = Contestant(PANORAMA, lambda given: render(world, *given[3]), lambda _: {"wrong": torch.zeros(())})
    return compare(case, [whole, cast, same], inputs, Check({"wrong": torch.zeros(())}, 0.0), repeats)


def _view_depth(frame, view: Pinhole, turn: Tensor) -> Tensor:
    """The z-depth that a frame has for a view turned from it."""
    directions = view.directions() @ turn[:3, :3].T
    column, row = frame.camera.project(directions).floor().long().unbind(-1)
    distance = frame.camera.range_from_depth(frame.depth)
    row, column = row.clamp(max=frame.camera.height - 1), column.clamp(max=frame.camera.width - 1)
    return view.depth_from_range(distance[row, column].view(view.height, view.width))


def _yaw(angle: float) -> Tensor:
    cosine, sine = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])
    return make_pose(rotation, torch.zeros(3))


def _gradients(graph) -> tuple[Tensor, ...]:
    outputs, leaves, d_outputs = graph
    return torch.autograd.grad(outputs, leaves, d_outputs, retain_graph=True)


def _named_gradients(found) -> dict[str, Tensor]:
    return dict(zip(("d_features", "d_density", "d_origins", "d_directions"), found, strict=False))


def _named(found) -> dict[str, Tensor]:
    return dict(zip(("features", "depth", "opacity"), found, strict=True))


def _floor(world: World, origins: Tensor, directions: Tensor, num_rays: int) -> tuple[float, float]:
    """Least bytes and FLOPs of a forward of so many rays, of which some are given."""
    march = March(world.features, world.density, world.grid, NEAR, world.far, STEP)
    work = count_samples(march, origins, directions, num_rays)
    return bytes_of_render(march, num_rays, (CHANNELS + 2) * 4), work.flops(CHANNELS)
