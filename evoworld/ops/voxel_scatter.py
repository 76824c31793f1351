"""voxel_scatter: sparse-voxel scatter-backprojection of features with depth."""

from __future__ import annotations

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

_INPUTS = (
    f"Tensor features, Tensor depth, Tensor origins, Tensor directions, Tensor? weight, {GRID_SCHEMA}, int image_width"
)


def _fake(features, depth, *rest):
    num_voxels = rest[-2]
    return depth.new_empty(num_voxels, features.shape[1]), depth.new_empty(num_voxels)


def _in_place_fake(feature_sum, weight_sum, features, depth, *_):
    return None


def _backward_fake(d_feature_sum, d_weight_sum, features, depth, *rest):
    wants_features, wants_geometry, wants_weight = rest[-3:]
    rays, channels = features.shape
    geometry_rays = rays if wants_geometry else 0
    return (
        depth.new_empty(rays if wants_features else 0, channels),
        depth.new_empty(geometry_rays),
        depth.new_empty(geometry_rays, 3),
        depth.new_empty(geometry_rays, 3),
        depth.new_empty(rays if wants_weight else 0),
    )


def _save(ctx, inputs, output):
    features, depth, origins, directions, weight, directory, pages, *scalars, _, _ = inputs
    ctx.scalars = scalars
    ctx.save_for_backward(features, depth, origins, directions, weight, directory, pages)


def _backward(ops, ctx, d_feature_sum, d_weight_sum):
    features = ctx.saved_tensors[0]
    wants_features, *wants_geometry, wants_weight = ctx.needs_input_grad[:5]
    by_features, *by_geometry, by_weight = ops.voxel_scatter_backward(
        d_feature_sum.contiguous(),
        d_weight_sum.contiguous(),
        *ctx.saved_tensors,
        *ctx.scalars,
        wants_features,
        any(wants_geometry),
        wants_weight,
    )
    return (
        by_features.to(features.dtype) if wants_features else None,
        *(gradient if wanted else None for gradient, wanted in zip(by_geometry, wants_geometry)),
        by_weight if wants_weight else None,
        *[None] * (len(ctx.needs_input_grad) - 5),
    )


_FILE = "voxel_scatter"
define(
    f"voxel_scatter({_INPUTS}, int num_voxels, bool deterministic) -> (Tensor, Tensor)", _fake, _backward, _save, _FILE
)
define(
    f"voxel_scatter_(Tensor(a!) feature_sum, Tensor(b!) weight_sum, {_INPUTS}, bool deterministic) -> ()",
    _in_place_fake,
    triton_file=_FILE,
)
define(
    f"voxel_scatter_backward(Tensor d_feature_sum, Tensor d_weight_sum, {_INPUTS}, bool wants_features, "
    "bool wants_geometry, bool wants_weight) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_fake,
    triton_file=_FILE,
)


def _check(op, features, depth, origins, directions, grid, weight, image_width):
    """The checked arguments, in the precision they are computed in."""
    check_tensor(op, "features", features, ("R", "C"))
    rays = features.shape[0]
    check_grid(op, grid, features)
    check_image_width(op, image_width)
    depth = check_geometry(op, "depth", depth, (rays,), features)
    origins = check_geometry(op, "origins", origins, (rays, 3), features)
    directions = check_geometry(op, "directions", directions, (rays, 3), features)
    if weight is not None:
        weight = check_geometry(op, "weight", weight, (rays,), features)
    dtype = working_dtype(features, depth, origins, directions, weight)
    geometry = [None if x is None else x.to(dtype).contiguous() for x in (depth, origins, directions, weight)]
    return features.contiguous(), *geometry


def voxel_scatter(
    features: Tensor,  # [R, C]
    depth: Tensor,  # [R]
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    grid,  # SparseGrid
    weight: Tensor | None = None,  # [R]
    image_width: int = 0,
) -> tuple[Tensor, Tensor]:  # [V, C], [V]
    """Adds the features seen along rays to the 8 lattice points around where each ray ends.

    With ``p = o + t d``, ``g = (p - origin) / voxel_size``, the corners c of g's cell, trilinear weights ``a_c(g)``::

        feature_sum[c] += a_c weight features        weight_sum[c] += a_c weight

    A ray whose depth is not finite or not positive adds nothing; corners in bricks that are not allocated are dropped.
    Points are never written to memory. On the CPU the result has the same bits for any number of threads; the CUDA
    kernels give the same bits each time under ``torch.use_deterministic_algorithms(True)``, at some cost, and the
    Triton kernels raise torch's error there.

    Args:
        features: ``[R, C]``; float32, float16 or bfloat16 (float64: reference).
        depth: ``[R]`` metres along the ray, float32.
        origins: ``[R, 3]`` metres, float32.
        directions: ``[R, 3]``, unit length for a depth in metres, float32.
        grid: the `SparseGrid` whose lattice points receive.
        weight: ``[R]``, 1 if not given; the solid angle of a pixel keeps the poles of a panorama from dominating.
        image_width: where the rays are the pixels of an image, row by row, how many pixels a row has; 0 where they are
            not. GPU kernels then work on tiles of neighbouring pixels, which is faster; no result depends on it but
            for the order of sums, and R need not be a multiple of it.

    Returns:
        feature_sum ``[V, C]`` and weight_sum ``[V]``, float32, V being ``grid.num_voxels``.

    Gradients: to features, depth, origins, directions and weight.

    Raises:
        ValueError: for an argument of another shape, dtype or device.

    Source: trilinear splatting, the adjoint of trilinear sampling.

    Example:
        >>> import torch
        >>> from evoworld.geometry import SparseGrid
        >>> from evoworld.ops import voxel_scatter
        >>> grid = SparseGrid.from_points(torch.tensor([[0.0, 0.0, 1.0]]), voxel_size=0.1)
        >>> ray = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]])
        >>> feature_sum, weight_sum = voxel_scatter(torch.ones(1, 4), torch.tensor([1.0]), *ray, grid)
        >>> round(weight_sum.sum().item(), 5), round(feature_sum.sum().item(), 5)
        (1.0, 4.0)
    """
    op = "voxel_scatter"
    features, depth, origins, directions, weight = _check(
        op, features, depth, origins, directions, grid, weight, image_width
    )
    backend = select(op, features.device, working_dtype(features, depth))
    if backend == "reference":
        return reference.voxel_scatter(features, depth, origins, directions, grid, weight)
    return namespace(backend).voxel_scatter(
        features,
        depth,
        origins,
        directions,
        weight,
        *grid_arguments(grid),
        image_width,
        grid.num_voxels,
        _deterministic(op, backend),
    )


def _deterministic(op, backend):
    deterministic = torch.are_deterministic_algorithms_enabled()
    if deterministic and backend == "triton":
        alert_not_deterministic(f"{op} on backend 'triton'")
    return deterministic


def voxel_scatter_(
    feature_sum: Tensor,  # [V, C]
    weight_sum: Tensor,  # [V]
    features: Tensor,  # [R, C]
    depth: Tensor,  # [R]
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    grid,  # SparseGrid
    weight: Tensor | None = None,  # [R]
    image_width: int = 0,
) -> None:
    """`voxel_scatter` into tensors that hold sums already, in place: a growing memory is not zeroed every frame.

    Args:
        feature_sum: ``[V, C]`` float32, contiguous, added to.
        weight_sum: ``[V]`` float32, contiguous, added to.
        features, depth, origins, directions, grid, weight, image_width: as for `voxel_scatter`.

    Gradients: none; it runs as under ``torch.no_grad()``.

    Raises:
        ValueError: for an argument of another shape, dtype or device, or a sum that is not contiguous.
    """
    op = "voxel_scatter_"
    with torch.no_grad():
        features, depth, origins, directions, weight = _check(
            op, features, depth, origins, directions, grid, weight, image_width
        )
        for name, total, shape in (
            ("feature_sum", feature_sum, (grid.num_voxels, features.shape[1])),
            ("weight_sum", weight_sum, (grid.num_voxels,)),
        ):
            check_tensor(op, name, total, shape, features, (torch.float32,))
            check(op, total.is_contiguous(), name, "a contiguous tensor", "one that is not")
        backend = select("voxel_scatter", features.device, working_dtype(features, depth))
        if backend == "reference":
            sums = reference.voxel_scatter(features, depth, origins, directions, grid, weight)
            feature_sum += sums[0]
            weight_sum += sums[1]
        else:
            namespace(backend).voxel_scatter_(
                feature_sum,
                weight_sum,
                features,
                depth,
                origins,
                directions,
                weight,
                *grid_arguments(grid),
                image_width,
                _deterministic(op, backend),
            )
