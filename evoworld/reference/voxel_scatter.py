"""voxel_scatter in plain PyTorch: the specification of every backend."""

from __future__ import annotations

import torch
from torch import Tensor

from .sparse_grid import cell_corners, lattice_coordinates


def voxel_scatter(
    features: Tensor,  # [R, C]
    depth: Tensor,  # [R] metres along the ray
    origins: Tensor,  # [R, 3] metres
    directions: Tensor,  # [R, 3]
    grid,  # a SparseGrid
    weight: Tensor | None = None,  # [R], default 1
    image_width: int = 0,  # a hint for GPU kernels, no part of the mathematics
) -> tuple[Tensor, Tensor]:  # [V, C], [V]
    """Adds each ray's features to the 8 lattice points around where the ray ends.

    With ``g = ((o - origin) + t d) / voxel_size`` and ``a_c(g)`` the trilinear weights of the corners c of its cell::

        feature_sum[c] += a_c * weight * features        weight_sum[c] += a_c * weight

    A ray whose depth is not finite or not positive contributes nothing and gets zero gradients; corners in bricks that
    are not allocated are dropped. Results are in the precision of ``depth``.

    The gradient is a gather. With ``q_c = d_weight_sum[c] + d_feature_sum[c] . features`` on corners that exist::

        d_features = weight * sum_c a_c d_feature_sum[c]     d_weight = sum_c a_c q_c
        d_g = weight * sum_c q_c grad a_c(g)                 d_origins = d_g / voxel_size
        d_directions = t d_g / voxel_size                    d_depth = d . d_g / voxel_size
    """
    num_voxels = grid.num_voxels
    valid = torch.isfinite(depth) & (depth > 0)
    depth = torch.where(valid, depth, 1)
    weight = torch.where(valid, 1 if weight is None else weight, 0).to(depth.dtype)
    weighted = weight[:, None] * torch.where(valid[:, None], features, 0).to(depth.dtype)
    rows, corner_weights = cell_corners(lattice_coordinates(origins, directions, depth, grid), grid)
    rows = torch.where(rows >= 0, rows, num_voxels)  # one spare row takes what is dropped

    feature_sum = depth.new_zeros(num_voxels + 1, features.shape[1])
    weight_sum = depth.new_zeros(num_voxels + 1)
    for row, corner_weight in zip(rows.unbind(-1), corner_weights.unbind(-1), strict=True):
        feature_sum = feature_sum.index_add_(0, row, corner_weight[:, None] * weighted)
        weight_sum = weight_sum.index_add_(0, row, corner_weight * weight)
    return feature_sum[:num_voxels], weight_sum[:num_voxels]
