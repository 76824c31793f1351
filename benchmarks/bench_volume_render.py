"""volume_render on a capture's fused grid: absolute time, backward against forward, and Open3D's ray_cast."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness import Check, Contestant, Row, Target, compare, ratio
from benchmarks.inputs import CHANNELS, VOXEL_SIZE, World
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
MULTIPLY_ADD = 2
MILLISECONDS_TARGET, BACKWARD_TARGET, OPEN3D_TARGET = 80.0, 2.0, 1.5
# Open3D's surface is another one than the grid's: it must merely see the same room.
OPEN3D_ABS_REL = 0.05


def run(world: World, repeats: int, missing: list[str]) -> tuple[list[Row], list[Target]]:
    """Rows and targets on one world; the camera rotates through poses of its frames, which themselves were fused."""
    indices = [round((i + 0.5) * len(world.frames) / NUM_POSES) % len(world.frames) for i in range(NUM_POSES)]
    camera = Panorama(HEIGHT, 2 * HEIGHT)
    poses = [world.frames[i].camera_to_world for i in indices]
    inputs = [tuple(t.contiguous() for t in camera.rays(pose)) for pose in poses]
    subset = torch.linspace(0, camera.num_rays - 1, CHECKED_RAYS).long()
    floor = _floor(world, *(t[subset] for t in inputs[0]), camera.num_rays)
    size = f"{HEIGHT}x{2 * HEIGHT}"

    forward = _forward(f"volume_render forward {size}", world, inputs, subset, repeats, floor)
    backward = _backward(f"volume_render backward {size}", world, inputs, subset, repeats, floor)
    cast, same_rays = _open3d(f"volume_render against Open3D {size}", world, indices, repeats, missing)
    targets = [
        Target(f"volume_render forward {size}", forward["evoworld"].median * 1e3, MILLISECONDS_TARGET, False, "ms"),
        Target(
            f"volume_render {size}: backward / forward, features and density",
            backward["features and density"].median / forward["evoworld"].median,
            BACKWARD_TARGET,
            False,
        ),
        Target(
            f"volume_render {size}: backward / forward, rays too",
            backward["rays too"].median / forward["evoworld"].median,
            BACKWARD_TARGET,
            False,
        ),
        Target(
            f"volume_render forward {size}: ours / Open3D ray_cast",
            ratio(cast, "evoworld, panorama", "Open3D ray_cast"),
            OPEN3D_TARGET,
            False,
            note="Open3D: first hit, depth alone",
        ),
        Target(
            f"volume_render forward {size}: ours / Open3D ray_cast, the very same rays",
            ratio(same_rays, "evoworld, same rays", "Open3D ray_cast"),
            OPEN3D_TARGET,
            False,
        ),
    ]
    return [*forward.values(), *backward.values(), *cast.values(), *same_rays.values()], targets


def render(world: World, origins: Tensor, directions: Tensor, features=None, density=None, op=ops.volume_render):
    """Any implementation of the op, on the world's grid."""
    features = world.features if features is None else features
    density = world.density if density is None else density
    return op(features, density, origins, directions, world.grid, NEAR, world.far, STEP)


def _forward(case: str, world: World, inputs, subset: Tensor, repeats: int, floor) -> dict[str, Row]:
    first = [t[subset] for t in inputs[0]]
    expected = _named(render(world, *first, op=reference.volume_render))
    contestant = Contestant(
        "evoworld",
        lambda rays: render(world, *rays),
        lambda found: {name: tensor[subset] for name, tensor in _named(found).items()},
        *floor,
        note=f"checked on {CHECKED_RAYS} rays",
    )
    return compare(case, [contestant], inputs, Check(expected, TOLERANCE), repeats)


def _backward(case: str, world: World, inputs, subset: Tensor, repeats: int, floor) -> dict[str, Row]:
    """Backward alone, from graphs built before the clock starts; checked by the gradients of a subset of the rays."""

    def graph(rays: Sequence[Tensor], with_rays: bool, op=ops.volume_render):
        leaves = [t.detach().clone().requires_grad_() for t in (world.features, world.density)]
        moved = [t.detach().clone().requires_grad_(with_rays) for t in rays]
        outputs = render(world, *moved, *leaves, op=op)
        generator = torch.Generator().manual_seed(0)
        d_outputs = [torch.randn(t.shape, generator=generator) for t in outputs]
        return outputs, [*leaves, *(moved if with_rays else [])], d_outputs

    def gradients(prepared):
        outputs, leaves, d_outputs = prepared
        return torch.autograd.grad(outputs, leaves, d_outputs, retain_graph=True)

    def named(found):
        return dict(zip(("d_features", "d_density", "d_origins", "d_directions"), found, strict=False))

    first = [t[subset] for t in inputs[0]]
    expected = named(gradients(graph(first, True, reference.volume_render)))
    rows = {}
    for name, with_rays in (("features and density", False), ("rays too", True)):
        checked = named(gradients(graph(first, with_rays)))
        contestant = Contestant(name, gradients, lambda _, checked=checked: checked, floor[0], 2 * floor[1])
        prepared = [graph(rays, with_rays) for rays in inputs]
        check = Check({key: expected[key] for key in checked}, TOLERANCE)
        rows |= compare(case, [contestant], prepared, check, repeats)
    return rows


def _open3d(case: str, world: World, indices: Sequence[int], repeats: int, missing: list[str]):
    """Interleaved with Open3D twice: our whole panorama against a view of as many rays, and both on the same rays."""
    peer = peers.load("open3d_raycast", missing)
    if peer is None:
        return {}, {}
    surfaces = peer.SurfaceGrid(world.frames, VOXEL_SIZE, world.far)
    view: Pinhole = peer.VIEW
    panorama = Panorama(HEIGHT, 2 * HEIGHT)
    inputs = []
    for turn, index in enumerate(indices):
        frame = world.frames[index]
        pose = frame.camera_to_world @ _yaw(turn * math.pi / 2)
        view_rays, panorama_rays = ([t.contiguous() for t in camera.rays(pose)] for camera in (view, panorama))
        inputs.append((pose, view_rays, panorama_rays))

    frame = world.frames[indices[0]]
    column, row = frame.camera.project(view.directions()).floor().long().unbind(-1)
    truth = view.depth_from_range(frame.camera.range_from_depth(frame.depth)[row, column].view(view.height, view.width))

    def sees_the_room(depth: Tensor) -> dict[str, Tensor]:
        wrong = depth_metrics(depth, truth).abs_rel > OPEN3D_ABS_REL
        return {"wrong": torch.tensor(float(wrong))}

    def as_depth(found) -> Tensor:
        depth = found[1] / found[2].clamp(min=torch.finfo(torch.float32).tiny)
        return view.depth_from_range(depth.view(view.height, view.width))

    cast = Contestant(
        "Open3D ray_cast",
        lambda given: surfaces.cast(view, given[0]),
        lambda found: sees_the_room(peer.depth_of(found)),
        note="first hit, depth alone",
    )
    same = Contestant(
        "evoworld, same rays", lambda given: render(world, *given[1]), lambda f: sees_the_room(as_depth(f))
    )
    whole = Contestant(
        "evoworld, panorama", lambda given: render(world, *given[2]), lambda _: {"wrong": torch.zeros(())}
    )
    check = Check({"wrong": torch.zeros(())}, 0.0)
    return (
        compare(case, [whole, cast], inputs, check, repeats),
        compare(f"{case}, same rays", [same, cast], inputs, check, repeats),
    )


def _yaw(angle: float) -> Tensor:
    cosine, sine = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])
    return make_pose(rotation, torch.zeros(3))


def _named(found) -> dict[str, Tensor]:
    return dict(zip(("features", "depth", "opacity"), found, strict=True))


def _floor(world: World, origins: Tensor, directions: Tensor, num_rays: int) -> tuple[float, float]:
    """Least bytes and FLOPs of a forward, from where the samples of some rays fall.

    Bytes: the values of the voxels that any sample of those rays needs are not known for all rays, so the grid is
    counted once: every value read, every ray read and written. FLOPs: 8 multiply-adds for the density of each sample in
    an active cell in front of the surface, and 8 C more for each whose weight is not zero.
    """
    samples = torch.arange(math.ceil((world.far - NEAR) / STEP))
    t = NEAR + (samples + 0.5) * STEP
    points = origins[:, None] + t[:, None] * directions[:, None]
    lattice = ((points - torch.tensor(world.grid.origin)) / VOXEL_SIZE).floor().int()
    corners = torch.cartesian_prod(*[torch.arange(2, dtype=torch.int32)] * 3)
    rows = torch.stack([world.grid.lookup(lattice + corner) for corner in corners], dim=-1)
    allocated = (rows >= 0).any(-1)
    visible = ((rows >= 0) & (world.density[rows.clamp(min=0)] > 0)).any(-1)
    found = render(world, origins, directions, op=reference.volume_render)
    stop = torch.where(found[2] > 0.5, found[1] / found[2].clamp(min=0.5), math.inf)[:, None]
    before = t < stop + VOXEL_SIZE
    scale = num_rays / len(origins)
    density_samples = (allocated & before).sum().item() * scale
    feature_samples = (visible & before).sum().item() * scale
    read = world.features.nbytes + world.density.nbytes + num_rays * 24
    flops = density_samples * 8 * MULTIPLY_ADD + feature_samples * 8 * CHANNELS * MULTIPLY_ADD
    return read + num_rays * (CHANNELS + 2) * 4, flops
