"""The scene of the cases in `evoworld.testing`: a room, the rays through it, and which of them rounding can mislead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .geometry import Panorama, SparseGrid
from .reference.sparse_grid import cell_corners, lattice_coordinates

if TYPE_CHECKING:
    from .testing import Case, RenderCase

ROOM = (3.0, 2.6, 2.2)  # metres


def distance_to_wall(
    case: Case,
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
) -> Tensor:  # [R]
    """Distance at which each ray leaves the case's room, metres."""
    low = torch.tensor(case.room_at)
    planes = torch.where(directions > 0, low + torch.tensor(ROOM), low)
    distances = torch.where(directions == 0, float("inf"), (planes - origins) / directions)
    return distances.amin(-1)


def _panorama(case: Case, height: int) -> tuple[Tensor, Tensor]:  # [R, 3], [R, 3]
    directions = Panorama(height, 2 * height).directions(torch.float32, "cpu")
    directions = directions[:, [2, 0, 1]] * torch.tensor(
        [1.0, -1.0, -1.0]
    )  # camera axes to a level camera in the world
    return case.eye().expand_as(directions).contiguous(), directions


def grid_of(case: Case) -> SparseGrid:
    if case.grid == "empty":
        return SparseGrid(case.voxel_size, case.origin)
    origins, directions = _panorama(case, 31)
    points = origins + distance_to_wall(case, origins, directions)[:, None] * directions
    if case.grid == "patch":
        points = points[directions[:, 0] > 0.9]
    return SparseGrid.from_points(points, case.voxel_size, case.origin)


def rays_of(case: Case, draw: torch.Generator) -> tuple[Tensor, Tensor]:  # [R', 3], [R', 3]
    """More rays than the case wants, as some will be dropped; in random order, but for an image."""
    if case.num_rays == 0:
        return torch.zeros(0, 3), torch.zeros(0, 3)
    if case.rays == "image":
        return _image(case)
    origins, directions = _panorama(case, 17 if case.num_rays < 400 else 61)
    if case.rays == "axes":
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 3)
        directions = signs[signs.abs().sum(-1) > 0].repeat(2, 1)  # not all unit: what is exact matters here
        origins = ((case.eye() * 8).round() / 8).expand_as(directions).clone()
        origins[26:] += 0.0625
        return origins, directions
    if case.rays == "poles":
        tilt = torch.linspace(0, 0.02, directions.shape[0])[:, None]
        directions = torch.cat([tilt * directions[:, :2], directions[:, 2:].sign()], dim=-1)
    elif case.rays == "seam":
        nudge = torch.linspace(-1e-3, 1e-3, directions.shape[0])
        lift = torch.linspace(-0.6, 0.6, directions.shape[0]).roll(7)
        directions = torch.stack([-torch.ones_like(nudge), nudge, lift], dim=-1)
    elif case.rays == "outside":
        origins = origins - 3.1 * directions
    elif case.rays == "away":
        origins = origins + 5.0 * directions
    elif case.rays == "uneven":  # neighbours meet nothing at all, a wall at once, the whole room
        start = torch.tensor([0.0, 5.0, -3.1, -1.2]).repeat(directions.shape[0])[: directions.shape[0], None]
        order = torch.randperm(directions.shape[0], generator=draw)
        return (origins + start * directions[order]).contiguous(), directions[order].contiguous()
    directions = torch.nn.functional.normalize(directions, dim=-1)
    order = torch.randperm(directions.shape[0], generator=draw)
    return origins[order].contiguous(), directions[order].contiguous()


def _image(case: Case) -> tuple[Tensor, Tensor]:  # [R', 3], [R', 3]
    """Whole rows of pixels, several of which see the same voxel, as a camera inside the room takes them."""
    rows = -(-case.num_rays // case.image_width)
    pixel = torch.cartesian_prod(torch.arange(rows) - rows / 2, torch.arange(case.image_width) - case.image_width / 2)
    directions = torch.cat([torch.ones(pixel.shape[0], 1), 0.03 * pixel + 0.01], dim=-1)
    return case.eye().expand_as(directions).contiguous(), torch.nn.functional.normalize(directions, dim=-1)


def chosen_rays(
    case: Case,
    clear: Tensor,  # [R'] bool, the rays that rounding cannot mislead
) -> Tensor:  # [R] int64
    """The rays of a case: clear ones, in order."""
    position = torch.arange(clear.shape[0])
    if case.rays == "axes":
        return position
    if case.rays == "image":  # a pixel that is not clear repeats another: the rows stay whole
        return torch.where(clear, position, int(clear.int().argmax())).cummax(0).values[: case.num_rays]
    return position[clear][: case.num_rays]


def place(
    case: Case,
    features: Tensor,  # [N, C]
) -> Tensor:  # [N, C]
    """The features in the case's dtype and alignment."""
    memory = torch.empty(case.misaligned + features.numel(), dtype=case.dtype)
    return memory[case.misaligned :].view(features.shape).copy_(features)


def density_of(case: RenderCase, grid: SparseGrid, draw: torch.Generator) -> Tensor:  # [V] 1/m
    noise = torch.rand(grid.num_voxels, generator=draw)
    if case.density == "zero":
        return torch.zeros_like(noise)
    if case.density == "opaque":
        beyond = grid.voxel_positions()[:, 0] > case.eye()[0]
        return torch.where(beyond, 1e3, 6 * noise)  # alpha rounds to 1 on one side of the room
    if case.density == "dense":
        return 120 * noise  # one sample takes most of the light, not all
    if case.density == "thin":
        return 1e-3 * noise
    if case.density == "signed":
        return 3 * noise - 1
    if case.density == "holes":
        return torch.where(noise < 0.7, 0, 9 * noise)
    return 6 * noise


def cell_is_clear(
    grid: SparseGrid,
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    t: Tensor,  # [R, K]
) -> Tensor:  # [R, K] bool
    """Whether a sample stays in its cell when everything about it is rounded to float32."""
    o, d, t = origins.double()[:, None], directions.double()[:, None], t.double()
    g, base = lattice_coordinates(o, d, t, grid), lattice_coordinates(o, d, torch.zeros_like(t), grid)
    rounding = 4 * torch.finfo(torch.float32).eps * (g.abs() + 2 * base.abs())
    return ((g - g.round()).abs() > rounding).all(-1)


def is_clear(features, density, origins, directions, grid, near, far, step, min_transmittance, jitter) -> Tensor:  # [R]
    """Whether a ray's samples stay in their cells, before ``far`` and above ``min_transmittance`` in float32."""
    jitter = torch.full((origins.shape[0], 1), 0.5) if jitter is None else jitter[:, None]
    t = near + (torch.arange(int((far - near) / step) + 2) + jitter.double()) * step
    rows, weights = cell_corners(
        lattice_coordinates(origins.double()[:, None], directions.double()[:, None], t, grid), grid
    )
    sigma = (weights * torch.cat([density, density.new_zeros(1)]).double()[rows]).sum(-1)
    transmittance = torch.exp(-step * sigma.cumsum(-1))
    clear = cell_is_clear(grid, origins, directions, t) & ((t - far).abs() > 1e-5 * far)
    if min_transmittance > 0:
        clear &= (transmittance / min_transmittance - 1).abs() > 1e-4
    return clear.all(-1)
