"""volume_render: ray-marched volume rendering of a sparse voxel feature grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evoworld import reference

from .backend import select
from .library import (
    GRID_SCHEMA,
    alert_not_deterministic,
    check,
    check_geometry,
    check_grid,
    check_image_width,
    check_tensor,
    define,
    grid_arguments,
    namespace,
    working_dtype,
)

_MARCH = "float near, float far, float step, float min_transmittance, int image_width"
_INPUTS = f"Tensor features, Tensor density, Tensor origins, Tensor directions, Tensor? jitter, {GRID_SCHEMA}, {_MARCH}"
_MAX_SAMPLES = 1 << 24  # a ray: larger sample numbers are not exact in float32


def _fake(features, density, origins, *_):
    rays = origins.shape[0]
    return density.new_empty(rays, features.shape[1]), density.new_empty(rays), density.new_empty(rays)


def _backward_fake(
    d_features, d_depth, d_opacity, out_features, out_depth, out_opacity, features, density, origins, *rest
):
    wants_features, wants_density, wants_rays, _ = rest[-4:]
    voxels, channels = features.shape
    rays = origins.shape[0] if wants_rays else 0
    return (
        density.new_empty(voxels if wants_features else 0, channels),
        density.new_empty(voxels if wants_density else 0),
        density.new_empty(rays, 3),
        density.new_empty(rays, 3),
    )


def _save(ctx, inputs, output):
    features, density, origins, directions, jitter, directory, pages, *ctx.scalars = inputs
    ctx.save_for_backward(features, density, origins, directions, jitter, directory, pages, *output)


def _backward(ops, ctx, d_features, d_depth, d_opacity):
    features, density, origins, directions, jitter, directory, pages, *output = ctx.saved_tensors
    wants_features, wants_density, wants_origins, wants_directions = ctx.needs_input_grad[:4]
    on_gpu = ops is torch.ops.evoworld_triton or features.device.type == "cuda"
    if on_gpu and (wants_features or wants_density):  # atomic additions to their rows
        alert_not_deterministic("volume_render_backward on a GPU")
    by_features, by_density, by_origins, by_directions = ops.volume_render_backward(
        d_features.contiguous(),
        d_depth.contiguous(),
        d_opacity.contiguous(),
        *output,
        features,
        density,
        origins,
        directions,
        jitter,
        directory,
        pages,
        *ctx.scalars,
        wants_features,
        wants_density,
        wants_origins or wants_directions,
        torch.are_deterministic_algorithms_enabled(),
    )
    return (
        by_features.to(features.dtype) if wants_features else None,
        by_density if wants_density else None,
        by_origins if wants_origins else None,
        by_directions if wants_directions else None,
        *[None] * (len(ctx.needs_input_grad) - 4),
    )


define(f"volume_render({_INPUTS}) -> (Tensor, Tensor, Tensor)", _fake, _backward, _save, "volume_render")
define(
    "volume_render_backward(Tensor d_features, Tensor d_depth, Tensor d_opacity, Tensor out_features, "
    f"Tensor out_depth, Tensor out_opacity, {_INPUTS}, bool wants_features, bool wants_density, bool wants_rays, "
    "bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_fake,
    triton_file="volume_render",
)


def volume_render(
    features: Tensor,  # [V, C]
    density: Tensor,  # [V]
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    grid,  # SparseGrid
    near: float,
    far: float,
    step: float,
    min_transmittance: float = 1e-4,
    jitter: Tensor | None = None,  # [R]
    image_width: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # [R, C], [R], [R]
    """Renders a sparse voxel feature grid along rays, front to back.

    Samples at ``t_k = near + (k + jitter) step < far``, trilinear between lattice points::

        alpha_k = 1 - exp(-density(t_k) step)    T_k = prod_{j<k} (1 - alpha_j)    w_k = T_k alpha_k
        features = sum_k w_k f(t_k)              depth = sum_k w_k t_k             opacity = sum_k w_k

    No tensor per sample is stored, forward or backward; empty space is skipped and changes nothing but time.

    Args:
        features: ``[V, C]`` values of the grid's lattice points; float32, float16 or bfloat16 (float64: reference).
        density: ``[V]`` per metre, float32 or the features' dtype.
        origins: ``[R, 3]`` metres, float32.
        directions: ``[R, 3]``, unit length for distances in metres.
        grid: the `SparseGrid` whose ``num_voxels`` is V.
        near: distance of the first step's start, metres.
        far: metres; no sample lies at or beyond it.
        step: metres between samples; half a voxel is a good choice.
        min_transmittance: the ray ends before the first sample with a smaller ``T_k``; 0 never ends it.
        jitter: ``[R]`` position of a ray's samples within their steps, 0 to 1; 0.5 if not given.
        image_width: where the rays are the pixels of an image, row by row, how many pixels a row has; 0 where they are
            not. GPU kernels then work on tiles of neighbouring pixels, which is faster; no result depends on it but
            for the order of sums, and R need not be a multiple of it.

    Returns:
        Features ``[R, C]`` in the features' dtype, depth ``[R]`` in metres (not divided by opacity), opacity ``[R]``.

    Gradients: to features, density, origins and directions. With ``torch.use_deterministic_algorithms(True)`` the CPU's
    backward runs on one thread, in a fixed order; the GPU's raises torch's error.

    Raises:
        ValueError: for an argument of another shape, dtype or device, or a march that is not one.

    Source: Max, "Optical models for direct volume rendering" (1995), eq. 6 with constant density within a step;
    Mildenhall et al., "NeRF" (2020), eq. 3.

    Example:
        >>> import torch
        >>> from evoworld.geometry import SparseGrid
        >>> from evoworld.ops import volume_render
        >>> grid = SparseGrid.from_points(torch.tensor([[0.0, 0.0, 1.0]]), voxel_size=0.1)
        >>> features, density = torch.ones(grid.num_voxels, 4), torch.full((grid.num_voxels,), 50.0)
        >>> ray = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]])
        >>> rendered, depth, opacity = volume_render(features, density, *ray, grid, near=0.0, far=2.0, step=0.05)
        >>> opacity.item() > 0.99
        True
    """
    op = "volume_render"
    check_tensor(op, "features", features, ("V", "C"))
    check_grid(op, grid, features)
    check(op, features.shape[0] == grid.num_voxels, "features", f"{grid.num_voxels} rows as the grid", len(features))
    check_tensor(op, "density", density, (grid.num_voxels,), features)
    density = density if density.dtype == torch.float64 else density.float()
    origins = check_geometry(op, "origins", origins, ("R", 3), features)
    directions = check_geometry(op, "directions", directions, (origins.shape[0], 3), features)
    if jitter is not None:
        jitter = check_geometry(op, "jitter", jitter, (origins.shape[0],), features).detach()
    finite = all(map(math.isfinite, (near, step, min_transmittance))) and not math.isnan(far)
    check(op, finite and step > 0, "near, far, step", "numbers, step positive", (near, far, step))
    check(op, 0 <= min_transmittance < 1, "min_transmittance", "0 <= value < 1", min_transmittance)
    check(op, (far - near) / step <= _MAX_SAMPLES, "step", "at most 2^24 steps from near to far", (near, far, step))
    check_image_width(op, image_width)
    dtype = working_dtype(features, density, origins, directions, jitter)
    backend = select(op, features.device, dtype)
    if backend == "reference":
        arguments = (density, origins, directions, grid, near, far, step, min_transmittance, jitter)
        return reference.volume_render(features, *(x.to(dtype) if isinstance(x, Tensor) else x for x in arguments))
    rendered, depth, opacity = namespace(backend).volume_render(
        features.contiguous(),
        density.contiguous(),
        origins.contiguous(),
        directions.contiguous(),
        None if jitter is None else jitter.contiguous(),
        *grid_arguments(grid),
        float(near),
        float(far),
        float(step),
        float(min_transmittance),
        image_width,
    )
    return rendered.to(features.dtype), depth, opacity
