"""One table of cases for each op, and the rule by which any backend is compared with the reference.

The rule. Each output and gradient is computed three times from the same inputs: by the reference in float64 (truth),
by the reference in the inputs' own precision, and by the backend. With errors as the largest absolute difference from
the truth over the tensor, and ``eps`` that of the tensor's dtype::

    error(backend) <= 2 * error(same-precision reference) + 8 * eps * max |truth|

For this to be a statement about rounding, no *decision* may hang on it: cases keep only rays that never come within
rounding of a cell's face, of ``far`` or of ``min_transmittance``, or take numbers for which all of that is exact.

The scene is a room (a box seen from inside by a panorama); what is random comes from the case's name.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from . import reference
from .geometry import Panorama, SparseGrid
from .ops.backend import available
from .reference.sparse_grid import cell_corners, lattice_coordinates

Arguments = dict[str, object]
ROOM = (3.0, 2.6, 2.2)  # metres
_REFERENCE_FACTOR = 2.0
_ROUNDINGS = 8.0


@dataclass(frozen=True)
class Case:
    """One call of an op: ``build()`` makes its arguments by name, the same ones each time."""

    name: str
    channels: int = 3
    dtype: torch.dtype = torch.float32  # of the features; all else is float32
    num_rays: int = 53
    voxel_size: float = 0.21
    room_at: tuple[float, float, float] = (-1.31, -1.07, -0.93)  # its lowest corner, metres
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rays: str = "panorama"  # see _rays()
    grid: str = "room"  # "room", "patch" (one spot of a wall) or "empty"

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(self.name.encode()))

    def eye(self) -> Tensor:  # [3] metres, off the room's centre
        return torch.tensor(self.room_at) + torch.tensor(ROOM) * torch.tensor([0.45, 0.55, 0.4])


@dataclass(frozen=True)
class ScatterCase(Case):
    """A call of `voxel_scatter`."""

    op: ClassVar[str] = "voxel_scatter"
    depths: str = "wall"  # "wall", "invalid" (zero, negative, infinite, NaN among them), "anywhere" or "one point"
    weights: bool = True

    def build(self) -> Arguments:
        """The op's arguments by name."""
        draw = self.generator()
        grid = _grid(self)
        origins, directions = _rays(self, draw)
        depth = distance_to_wall(self, origins, directions)
        if self.depths == "anywhere":
            depth = depth * (0.2 + torch.rand(depth.shape, generator=draw))
        elif self.depths == "one point":
            origins, directions, depth = (x[:1].expand_as(x).contiguous() for x in (origins, directions, depth))
        features = torch.randn(depth.shape[0], self.channels, generator=draw)
        if self.depths == "invalid":
            bad = torch.tensor([0.0, -1.0, float("inf"), -float("inf"), float("nan")])
            depth[: bad.shape[0]] = bad
            features[: bad.shape[0]] = float("nan")  # what no depth goes with may be anything
        if self.rays != "axes":
            clear = (~torch.isfinite(depth)[:, None] | _cell_is_clear(grid, origins, directions, depth[:, None])).all(
                -1
            )
            origins, directions, depth, features = (x[clear] for x in (origins, directions, depth, features))
        n = min(self.num_rays, depth.shape[0])
        return {
            "features": features[:n].to(self.dtype),
            "depth": depth[:n],
            "origins": origins[:n],
            "directions": directions[:n],
            "grid": grid,
            "weight": 2 * torch.rand(n, generator=draw) - 0.3 if self.weights else None,
        }


@dataclass(frozen=True)
class RenderCase(Case):
    """A call of `volume_render`."""

    op: ClassVar[str] = "volume_render"
    density: str = "cloud"  # see _density()
    near: float = 0.1
    far: float = 4.9
    step: float = 0.11
    min_transmittance: float = 1e-4
    jitter: bool = False

    def build(self) -> Arguments:
        """The op's arguments by name."""
        draw = self.generator()
        grid = _grid(self)
        origins, directions = _rays(self, draw)
        jitter = torch.rand(origins.shape[0], generator=draw) if self.jitter else None
        features = torch.randn(grid.num_voxels, self.channels, generator=draw)
        arguments = {
            "features": features.to(self.dtype),
            "density": _density(self, grid, draw),
            "origins": origins,
            "directions": directions,
            "grid": grid,
            "near": self.near,
            "far": self.far,
            "step": self.step,
            "min_transmittance": self.min_transmittance,
            "jitter": jitter,
        }
        clear = torch.ones(origins.shape[0], dtype=torch.bool) if self.rays == "axes" else _is_clear(**arguments)
        for name in ("origins", "directions", "jitter"):
            if arguments[name] is not None:
                arguments[name] = arguments[name][clear][: self.num_rays]
        return arguments


def _cases(base: Case, *variants: dict) -> dict[str, Case]:
    return {variant["name"]: replace(base, **variant) for variant in variants}


_SHARED = (
    *({"name": f"channels_{channels}", "channels": channels} for channels in (1, 3, 4, 8, 16, 17, 32)),
    {"name": "half_3", "dtype": torch.float16},
    {"name": "half_16", "dtype": torch.float16, "channels": 16},
    {"name": "bfloat16_17", "dtype": torch.bfloat16, "channels": 17},
    {"name": "poles", "rays": "poles"},
    {"name": "seam", "rays": "seam"},
    {"name": "zero_components", "rays": "axes", "voxel_size": 0.25, "room_at": (-1.5, -1.25, -1.0)},
    {"name": "from_outside", "rays": "outside"},
    {"name": "behind", "rays": "away"},
    {"name": "negative_coordinates", "room_at": (-9.0, -8.0, -7.0)},
    {"name": "far_from_origin", "room_at": (300.0, -300.0, 310.0)},
    {"name": "grid_origin", "origin": (0.31, -0.17, 0.05)},
    {"name": "several_pages", "voxel_size": 0.027, "num_rays": 201},
    {"name": "patch", "grid": "patch", "num_rays": 301},
    {"name": "empty_grid", "grid": "empty"},
    {"name": "no_rays", "num_rays": 0},
    {"name": "one_ray", "num_rays": 1},
)

SCATTER_CASES: dict[str, ScatterCase] = _cases(
    ScatterCase(""),
    *_SHARED,
    {"name": "no_weight", "weights": False},
    {"name": "invalid_depth", "depths": "invalid"},
    {"name": "depth_anywhere", "depths": "anywhere", "num_rays": 201},
    {"name": "one_point", "depths": "one point", "num_rays": 257, "channels": 17},
    {"name": "many_rays", "num_rays": 3001, "channels": 4, "voxel_size": 0.1},
)

_EXACT_MARCH = {"near": 0.125, "step": 0.125, "min_transmittance": 0.0}

RENDER_CASES: dict[str, RenderCase] = _cases(
    RenderCase(""),
    *({**shared, **_EXACT_MARCH} if shared["name"] == "zero_components" else shared for shared in _SHARED),
    {"name": "jitter", "jitter": True},
    {"name": "exact", "min_transmittance": 0.0, "jitter": True},
    {"name": "transparent", "density": "zero"},
    {"name": "opaque", "density": "opaque"},
    {"name": "opaque_exact", "density": "opaque", "min_transmittance": 0.0},
    {"name": "dense", "density": "dense"},
    {"name": "thin", "density": "thin"},
    {"name": "negative_density", "density": "signed", "min_transmittance": 0.0},
    {"name": "holes", "density": "holes", "channels": 8},
    {"name": "coarse_step", "step": 0.9, "jitter": True},
    {"name": "fine_step", "step": 0.013, "num_rays": 17},
    {"name": "far_is_near", "near": 2.0, "far": 2.0},
    {"name": "starts_beyond", "near": 20.0, "far": 25.0},
)


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


def _grid(case: Case) -> SparseGrid:
    if case.grid == "empty":
        return SparseGrid(case.voxel_size, case.origin)
    origins, directions = _panorama(case, 31)
    points = origins + distance_to_wall(case, origins, directions)[:, None] * directions
    if case.grid == "patch":
        points = points[directions[:, 0] > 0.9]
    return SparseGrid.from_points(points, case.voxel_size, case.origin)


def _rays(case: Case, draw: torch.Generator) -> tuple[Tensor, Tensor]:  # [R', 3], [R', 3]
    """More rays than the case wants (some will be dropped), in random order, of the kind it names."""
    if case.num_rays == 0:
        return torch.zeros(0, 3), torch.zeros(0, 3)
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
    directions = torch.nn.functional.normalize(directions, dim=-1)
    order = torch.randperm(directions.shape[0], generator=draw)
    return origins[order].contiguous(), directions[order].contiguous()


def _density(case: RenderCase, grid: SparseGrid, draw: torch.Generator) -> Tensor:  # [V] 1/m
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


def _cell_is_clear(
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


def _is_clear(
    features, density, origins, directions, grid, near, far, step, min_transmittance, jitter
) -> Tensor:  # [R]
    """Whether a ray's samples stay in their cells, before ``far`` and above ``min_transmittance`` in float32."""
    jitter = torch.full((origins.shape[0], 1), 0.5) if jitter is None else jitter[:, None]
    t = near + (torch.arange(int((far - near) / step) + 2) + jitter.double()) * step
    rows, weights = cell_corners(
        lattice_coordinates(origins.double()[:, None], directions.double()[:, None], t, grid), grid
    )
    sigma = (weights * torch.cat([density, density.new_zeros(1)]).double()[rows]).sum(-1)
    transmittance = torch.exp(-step * sigma.cumsum(-1))
    clear = _cell_is_clear(grid, origins, directions, t) & ((t - far).abs() > 1e-5 * far)
    if min_transmittance > 0:
        clear &= (transmittance / min_transmittance - 1).abs() > 1e-4
    return clear.all(-1)


def backends(op: str) -> list[tuple[str, str]]:
    """Each backend that can serve the op here, with a device for its tensors."""
    devices = {"cuda": "cuda", "triton": "cuda"}
    return [(name, devices.get(name, "cpu")) for name, missing in available(op).items() if missing is None]


def evaluate(
    op: Callable[..., tuple[Tensor, ...]],
    arguments: Arguments,
    dtype: torch.dtype | None = None,  # all tensors in this precision instead of their own
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Outputs (``0``, ``1``, ...) of an op and gradients (``d_<argument>``), for fixed upstream gradients."""
    moved = {
        name: value.to(device) if isinstance(value, (Tensor, SparseGrid)) else value
        for name, value in arguments.items()
    }
    leaves = {}
    for name, value in moved.items():
        if isinstance(value, Tensor) and name != "jitter":
            leaves[name] = value.detach().to(dtype or value.dtype, copy=True).requires_grad_()
        elif isinstance(value, Tensor):
            moved[name] = value.to(dtype or value.dtype)
    outputs = op(**{**moved, **leaves})
    draw = torch.Generator().manual_seed(0)
    # Eighths are exact in every dtype.
    upstream = [(torch.randint(-8, 9, x.shape, generator=draw) / 8).to(x) for x in outputs]
    loss = sum((x * d_x).sum() for x, d_x in zip(outputs, upstream, strict=True) if x.requires_grad)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    results = {str(i): x.detach() for i, x in enumerate(outputs)}
    results.update({f"d_{name}": x for name, x in zip(leaves, gradients, strict=True)})
    return {name: x.cpu() for name, x in results.items()}


def check_against_reference(
    op: Callable[..., tuple[Tensor, ...]],
    case: Case,
    device: torch.device | str = "cpu",
) -> None:
    """Raises an AssertionError unless outputs and gradients of ``op`` for the case obey the rule of this module.

    Example:
        >>> check_against_reference(reference.voxel_scatter, SCATTER_CASES["poles"])
    """
    arguments, specification = case.build(), getattr(reference, case.op)
    truth = evaluate(specification, arguments, torch.float64)
    expected = evaluate(specification, arguments)
    for name, found in evaluate(op, arguments, device=device).items():
        where = f"{case.op}, case {case.name}, {name}"
        assert found.dtype == expected[name].dtype, f"{where}: {found.dtype}, not {expected[name].dtype}"
        assert found.shape == truth[name].shape, f"{where}: {list(found.shape)}, not {list(truth[name].shape)}"
        error = _largest(found.double() - truth[name])
        allowed = _REFERENCE_FACTOR * _largest(expected[name].double() - truth[name])
        allowed += _ROUNDINGS * torch.finfo(found.dtype).eps * _largest(truth[name])
        assert error <= allowed, f"{where}: off by {error:.3g}, allowed {allowed:.3g}"  # False for NaN


def _largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0
