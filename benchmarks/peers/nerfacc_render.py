"""volume_render as nerfacc's users write it: an occupancy grid skips, a dense grid is sampled, weights are accumulated.

nerfacc places its samples by where a ray enters the occupancy grid's cells, so the result is close, not equal.
"""

import nerfacc
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.work import March


class DenseScene:
    """The march's sparse grid as a dense one, [1, C, X, Y, Z], and a bit for each cell with a density."""

    def __init__(self, march: March) -> None:
        self.march = march
        voxel = march.grid.voxel_size
        positions = march.grid.voxel_positions()
        lattice = ((positions - positions.new_tensor(march.grid.origin)) / voxel).round().long()
        low, high = lattice.amin(0), lattice.amax(0)
        x, y, z = (lattice - low).unbind(-1)
        # float32: grid_sample takes coordinates in the values' dtype, and in float16 those would be off by voxels.
        self.features = positions.new_zeros(1, march.features.shape[1], *(high - low + 1).tolist())
        self.features[0, :, x, y, z] = march.features.float().T
        self.density = positions.new_zeros(1, 1, *self.features.shape[2:])
        self.density[0, 0, x, y, z] = march.density.float()
        self.low = low * voxel + positions.new_tensor(march.grid.origin)
        self.extent = (high - low) * voxel

        occupied = F.max_pool3d(self.density, 2, stride=1)[0, 0] > 0  # of the cells between the points
        box = torch.cat([self.low, self.low + self.extent])
        self.estimator = nerfacc.OccGridEstimator(box, resolution=list(occupied.shape), levels=1).to(positions.device)
        self.estimator.binaries[0] = occupied

    def render(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features [R, C], depth [R], opacity [R]."""
        rays = len(origins)

        def sample(values: Tensor, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor) -> Tensor:  # [N, channels]
            t = ((t_starts + t_ends) / 2)[:, None]
            places = (origins[ray_indices] + t * directions[ray_indices] - self.low) / self.extent * 2 - 1
            grid = places.flip(-1)[None, None, None]  # grid_sample takes z, y, x
            return F.grid_sample(values, grid, align_corners=True)[0, :, 0, 0].T

        def density_at(*samples: Tensor) -> Tensor:  # [N]
            return sample(self.density, *samples)[:, 0]

        ray_indices, t_starts, t_ends = self.estimator.sampling(
            origins,
            directions,
            sigma_fn=density_at,
            near_plane=self.march.near,
            far_plane=self.march.far,
            render_step_size=self.march.step,
        )
        samples = t_starts, t_ends, ray_indices
        density = density_at(*samples)
        weights = nerfacc.render_weight_from_density(t_starts, t_ends, density, ray_indices=ray_indices, n_rays=rays)[0]

        def gather(values: Tensor | None) -> Tensor:
            return nerfacc.accumulate_along_rays(weights, values, ray_indices=ray_indices, n_rays=rays)

        depth, opacity = gather(((t_starts + t_ends) / 2)[:, None])[:, 0], gather(None)[:, 0]
        return gather(sample(self.features, *samples)), depth, opacity
