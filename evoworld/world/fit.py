"""Gradient refinement of a memory: the memory reconstruction loss at the observed poses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evoworld.geometry import Camera

from .level import LevelValues, density_of_distance
from .memory import Memory

Frame = tuple[Tensor, Tensor, Tensor, Camera]  # features [H, W, C], depth [H, W], camera_to_world [4, 4], camera

RAYS_PER_STEP = 16384
FRAMES_PER_STEP = 4
FEATURE_RATE = 1.0  # of the correction that the rays of a step ask for; falls to zero over the steps
FEATURE_DAMPING = 1.0  # rays: a lattice point that fewer of a step's rays see moves less
DISTANCE_RATE = 0.02  # Adam's step for signed distances, in voxels
DEPTH_LOSS = 0.1  # of the relative depth error, against the squared error of the features
OPACITY_LOSS = 0.01  # of light stopped where nothing was seen
SEED = 0


def fit(
    memory: Memory, frames: Sequence[Frame], steps: int, progress: Callable[[int, float], None] | None = None
) -> None:
    """Moves features and surfaces of a memory so that it renders the frames better.

    The loss of a step, over random rays of random frames, is the squared error of the rendered features, the relative
    error of the rendered depth, and the opacity of rays that met nothing. Averaging into voxels and interpolating
    between them blur twice; the gradient undoes much of it. Features move by preconditioned gradient descent, signed
    distances by Adam.

    Args:
        memory: has observed the frames; changed in place.
        frames: what was observed: features, depth, camera_to_world, camera each.
        steps: gradient steps; the step size falls to zero over them.
        progress: called with the step's number, from 1, and its loss.

    Raises:
        ValueError: no frames, or a negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"steps: expected 0 or more, got {steps}")
    if len(frames) == 0:
        raise ValueError("frames: expected at least one, got none")
    generator = torch.Generator().manual_seed(SEED)
    samples = [_FrameSamples(*frame, device=memory.device) for frame in frames]
    means = [_with_ones(level.mean()).requires_grad_() for level in memory.levels]
    # In voxels, so that one rate suits all levels; unknown points stay infinitely far.
    distances = [(level.surface_distance() / level.voxel_size).requires_grad_() for level in memory.levels]
    optimizer = torch.optim.Adam(distances, lr=DISTANCE_RATE, eps=1e-10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / max(steps, 1))
    for step in range(1, steps + 1):
        chosen = torch.randint(len(samples), (min(FRAMES_PER_STEP, len(samples)),), generator=generator).tolist()
        parts = [samples[i].draw(RAYS_PER_STEP // len(chosen), generator) for i in chosen]
        loss, visits = _loss(memory, means, distances, *(torch.cat(part) for part in zip(*parts, strict=True)))
        optimizer.zero_grad(set_to_none=True)
        (loss + visits).backward()
        optimizer.step()
        for mean in means:
            _correct(mean, FEATURE_RATE * (1.0 - (step - 1) / steps))
        schedule.step()
        if progress is not None:
            progress(step, loss.item() / RAYS_PER_STEP)
    for level, mean, distance in zip(memory.levels, means, distances, strict=True):
        level.replace(mean.detach()[:, :-1], distance.detach() * level.voxel_size)


@torch.no_grad()
def _correct(
    mean: Tensor,  # [V, C + 1]
    rate: float,
) -> None:
    """Moves features by the average residual of the rays that see them (simultaneous algebraic reconstruction).

    The gradient of the squared error is the sum of residuals, weighted by how much a ray sees of a lattice point; the
    gradient of the extra channel is the sum of these weights.
    """
    if mean.grad is not None:
        mean[:, :-1] -= rate * mean.grad[:, :-1] / (mean.grad[:, -1:] + FEATURE_DAMPING)
        mean.grad = None


def _with_ones(values: Tensor) -> Tensor:  # [V, C] -> [V, C + 1]
    return torch.cat([values, torch.ones_like(values[:, :1])], dim=1)


class _FrameSamples:
    """One frame, to draw random rays from."""

    def __init__(self, features: Tensor, depth: Tensor, pose: Tensor, camera: Camera, device: torch.device):
        self.features = features.flatten(0, 1).float()  # [R, C]
        self.distance = camera.range_from_depth(depth.float()).flatten()  # [R]
        self.pose, self.camera, self.device = pose, camera, device

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features, distances, origins and directions of random pixels."""
        pixels = torch.randint(self.camera.num_rays, (count,), generator=generator).to(self.device)
        origins, directions = self.camera.rays(self.pose)
        return self.features[pixels], self.distance[pixels], origins[pixels], directions[pixels]


def _loss(
    memory: Memory,
    means: list[Tensor],  # [V, C + 1] of each level, the last channel 1
    distances: list[Tensor],  # [V] of each level, voxels
    features: Tensor,  # [R, C]
    distance: Tensor,  # [R]
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
) -> tuple[Tensor, Tensor]:
    """The loss, and the sum over rays of an extra channel that is 1 everywhere: its gradient counts rays."""
    values = []
    for level, mean, signed in zip(memory.levels, means, distances, strict=True):
        weight = level.sums[:, -1:]
        density = density_of_distance(signed * level.voxel_size, level.voxel_size)
        values.append(LevelValues(torch.cat([mean * weight, weight], dim=1), density))
    shown = memory.render(origins, directions, values)
    solid = torch.isfinite(distance) & (distance > 0)
    known = solid & (shown.seen > 0)
    feature_error = 0.5 * (shown.mean[known, :-1] - features[known]).square()
    true = distance[known]  # taken before the division: a distance of 0 elsewhere would make gradients NaN
    depth_error = ((shown.distance[known] - true).abs() / true).clamp_max(1.0)
    loss = feature_error.sum() + DEPTH_LOSS * depth_error.sum() + OPACITY_LOSS * shown.opacity[~solid].sum()
    return loss, shown.mean[known, -1].sum()
