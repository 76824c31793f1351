"""The learned memory: updated with frames, extended by what nobody saw, and rendered for new poses."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evoworld.geometry import Panorama, SparseGrid
from evoworld.ops import voxel_scatter

from .brick_conv import BRICK_VOLUME, BrickNeighbours
from .feature_memory import MIN_TRANSMITTANCE, FeatureMemory, Rendered
from .frontier import dilated, frontier
from .memory_loss import Reconstruction
from .memory_networks import (
    SCATTER_STRIDE,
    FrameEncoder,
    MemoryEncoderConfig,
    MemoryProposal,
    MemoryUpdate,
    Observation,
)
from .rgbd import FAR, NEAR, decode_rgbd

PROPOSAL_EVIDENCE = 0.25  # pixels: a confidence of 0.2 in what nobody saw


class FeatureView(NamedTuple):
    """What the memory shows to the cameras of T frames, at the size of tokens."""

    features: Tensor  # [T, h, w, F]
    depth: Tensor  # [T, h, w] metres along the ray, 0 where nothing is
    opacity: Tensor  # [T, h, w]


class MemoryEncoder(nn.Module):
    """The three operations of the learned memory, differentiable from end to end.

    *update* scatters learned features of frames into the voxels around their surfaces and lets the gated block write
    them, *generate* proposes what the bricks at the edge of what was seen may hold, *query* renders both for new poses.
    Nothing in it knows a longitude: observing a rolled frame at the pose turned alike gives the same memory.

    Args:
        config: the sizes.

    Example:
        >>> encoder = MemoryEncoder(MemoryEncoderConfig(height=16))
        >>> memory, pose = encoder.new_memory(), torch.eye(4)[None]
        >>> encoder.update(memory, torch.zeros(1, 16, 32, 4), pose)
        >>> encoder.query(encoder.generate(memory, pose), pose).features.shape
        torch.Size([1, 4, 8, 16])
    """

    def __init__(self, config: MemoryEncoderConfig):
        super().__init__()
        self.config = config
        self.frame_encoder = FrameEncoder(config, config.feature_dim)
        self.memory_update = MemoryUpdate(config, config.feature_dim + 3)
        self.proposal = MemoryProposal(config)
        self.colour = nn.Sequential(nn.Linear(config.feature_dim - 2, 32), nn.GELU(), nn.Linear(32, 3))

    def new_memory(self) -> FeatureMemory:
        """An empty memory of this encoder's, on its device."""
        weight = self.colour[0].weight
        return FeatureMemory(self.config.voxel_size, self.config.channels, weight.device, weight.dtype)

    def update(
        self,
        memory: FeatureMemory,
        rgbd: Tensor,  # [T, H, W, 4]
        camera_to_world: Tensor,  # [T, 4, 4]
        known: Tensor | None = None,  # [T, H, W]
    ) -> None:
        """Observes frames, a group of `config.group` after another.

        Args:
            memory: changed in place; gradients flow through its new tensors.
            rgbd: `[T, H, W, 4]`, as by `encode_rgbd`.
            camera_to_world: `[T, 4, 4]`, rigid.
            known: `[T, H, W]`, 0 where a frame says nothing; all of it is known if not given.

        Raises:
            ValueError: for frames of another size, or another number of poses.
        """
        shape = (self.config.height, 2 * self.config.height, 4)
        _check("rgbd", rgbd, (*rgbd.shape[:1], *shape))
        _check("camera_to_world", camera_to_world, (rgbd.shape[0], 4, 4))
        known = torch.ones_like(rgbd[..., 0]) if known is None else known
        _check("known", known, tuple(rgbd.shape[:3]))
        features = self.frame_encoder(rgbd, known)
        frames = (x.split(self.config.group) for x in (features, rgbd, camera_to_world, known))
        for group in zip(*frames, strict=True):
            grid, observation = self._observe(memory, *group)
            if grid.num_bricks == 0:
                continue
            rows = memory.rows(grid.brick_coordinates)
            held = memory.values[rows], memory.evidence[rows]
            memory.write(rows, *self.memory_update(*held, observation, BrickNeighbours(grid)))

    def generate(
        self,
        memory: FeatureMemory,
        camera_to_world: Tensor,  # [T, 4, 4]
    ) -> FeatureMemory:
        """The memory with proposals, of low confidence, for new space that these cameras will see.

        The memory itself stays as it is; gradients flow from the proposals to it. Where there is no such space, it is
        what is returned.
        """
        config = self.config
        camera = Panorama(config.height // config.token, 2 * config.height // config.token)
        new = frontier(memory, camera_to_world, camera, config.frontier_reach, config.frontier_radius)
        if new.shape[0] == 0:
            return memory
        near = dilated(new, config.frontier_reach + 1)
        near = near[memory.grid.lookup(near * SparseGrid.edge) >= 0]
        rows = memory.rows(near)
        values = F.pad(memory.values[rows], (0, 0, new.shape[0] * BRICK_VOLUME, 0))
        confidence = F.pad(memory.confidence()[rows], (new.shape[0] * BRICK_VOLUME, 0))
        grid = SparseGrid.from_bricks(torch.cat((new, near)), config.voxel_size)
        proposed = self.proposal(values, confidence, BrickNeighbours(grid))[: new.shape[0] * BRICK_VOLUME]
        return memory.extended(new, proposed, torch.full_like(proposed[:, 0], PROPOSAL_EVIDENCE))

    def query(
        self,
        memory: FeatureMemory,
        camera_to_world: Tensor,  # [T, 4, 4]
        min_transmittance: float = MIN_TRANSMITTANCE,
    ) -> FeatureView:
        """Renders the memory at the size of tokens, ``h = H / token``.

        Args:
            memory: what to show.
            camera_to_world: `[T, 4, 4]`, rigid.
            min_transmittance: where a ray ends; 0: never, and the result is exact.

        Returns:
            `FeatureView(features [T, h, w, F], depth [T, h, w], opacity [T, h, w])`, all zero where nothing is. The
            last two features are the confidence, and the logarithm of depth, -1 to 1, times opacity.
        """
        shown = self._render(memory, camera_to_world, min_transmittance)
        code = torch.log(shown.depth.clamp(NEAR, FAR) / NEAR) * (2 / math.log(FAR / NEAR)) - 1
        scalars = (shown.opacity, shown.opacity * shown.depth, shown.opacity * code)
        planes = torch.cat((shown.features, torch.stack(scalars, -1)), -1)
        tokens = F.avg_pool2d(planes.permute(0, 3, 1, 2), self.config.rays).permute(0, 2, 3, 1)
        opacity = tokens[..., -3]
        features = torch.cat((tokens[..., :-3], tokens[..., -1:]), -1)
        return FeatureView(features, tokens[..., -2] / opacity.clamp_min(1e-6), opacity)

    def reconstruct(
        self,
        memory: FeatureMemory,
        camera_to_world: Tensor,  # [T, 4, 4]
    ) -> Reconstruction:
        """Frames as the memory alone has them, a pixel for each ray of `query`: what it is trained by."""
        shown = self._render(memory, camera_to_world, MIN_TRANSMITTANCE)
        mean = shown.features[..., :-1] / shown.opacity.clamp_min(1e-3)[..., None]
        return Reconstruction(self.colour(mean), shown.depth, shown.opacity)

    def forward(
        self,
        rgbd: Tensor,  # [B, S, H, W, 4]
        known: Tensor,  # [B, S, H, W]
        camera_to_world: Tensor,  # [B, S, 4, 4]
        target_to_world: Tensor,  # [B, T, 4, 4]
    ) -> FeatureView:  # of [B, T, h, w, ...]
        """What B new memories, each of its S frames, show to the cameras of T others, proposals included."""
        views = []
        for frames, mask, poses, targets in zip(rgbd, known, camera_to_world, target_to_world, strict=True):
            memory = self.new_memory()
            if frames.shape[0]:
                self.update(memory, frames, poses, mask)
            views.append(self.query(self.generate(memory, targets), targets))
        return FeatureView(*map(torch.stack, zip(*views, strict=True)))

    def _observe(
        self,
        memory: FeatureMemory,
        features: Tensor,  # [T, H / 2, W / 2, C]
        rgbd: Tensor,  # [T, H, W, 4]
        camera_to_world: Tensor,  # [T, 4, 4]
        known: Tensor,  # [T, H, W]
    ) -> tuple[SparseGrid, Observation]:
        """The bricks around the surfaces that frames show, and what they show there; marks what they look through."""
        pixels = slice(SCATTER_STRIDE // 2, None, SCATTER_STRIDE)
        height, width = rgbd.shape[1:3]
        camera, cells = Panorama(height, width), Panorama(height // SCATTER_STRIDE, width // SCATTER_STRIDE)
        origins, directions = (
            rays.unflatten(1, (height, width))[:, pixels, pixels] for rays in camera.rays(camera_to_world)
        )
        known = known[:, pixels, pixels] > 0.5
        depth = decode_rgbd(rgbd[:, pixels, pixels])[1]
        _look_through(memory, origins, directions, depth, known, self.config.reach)

        depth = torch.where(known & (depth > 0) & (depth < self.config.reach), depth, math.nan).flatten()
        origins, directions = origins.flatten(0, 2).contiguous(), directions.flatten(0, 2).contiguous()
        area = cells.solid_angle(rgbd.dtype, rgbd.device)
        weight = (area / area.mean()).flatten().repeat(rgbd.shape[0])
        band = torch.tensor((-1.0, 1.0), dtype=rgbd.dtype, device=rgbd.device)[:, None] * memory.voxel_size  # [2, 1]
        reached = torch.cat((depth[None], depth + band))  # [3, R]
        grid = SparseGrid.from_points((origins + reached[..., None] * directions).flatten(0, 1), memory.voxel_size)

        sums, surface = voxel_scatter(features.flatten(0, 2), depth, origins, directions, grid, weight, cells.width)
        side = -band.sign().expand(2, depth.shape[0]).reshape(-1, 1)
        distance, beside = voxel_scatter(
            side,
            (depth + band).flatten(),
            origins.repeat(2, 1),
            directions.repeat(2, 1),
            grid,
            weight.repeat(2),
            cells.width,
        )
        evidence = surface + beside
        return grid, Observation(
            sums / surface.clamp_min(1e-9)[:, None], surface, distance[:, 0] / evidence.clamp_min(1e-9), evidence
        )

    def _render(self, memory: FeatureMemory, camera_to_world: Tensor, min_transmittance: float) -> Rendered:
        """Renders an image of the rays of tokens for each pose: [T, h, w, ...]."""
        config = self.config
        height = config.height // config.token * config.rays
        camera = Panorama(height, 2 * height)
        origins, directions = (rays.flatten(0, 1) for rays in camera.rays(camera_to_world))
        shown = memory.render(origins, directions, min_transmittance, camera.width)
        return Rendered(*(part.unflatten(0, (-1, camera.height, camera.width)) for part in shown))


def _look_through(
    memory: FeatureMemory,
    origins: Tensor,  # [T, h, w, 3]
    directions: Tensor,  # [T, h, w, 3]
    depth: Tensor,  # [T, h, w] metres, 0: sky
    known: Tensor,  # [T, h, w] bool
    reach: float,
) -> None:
    """Marks the bricks that a part of the rays passes before it meets anything."""
    coarse = slice(None, None, 2)
    o, d, depth, known = (x[:, coarse, coarse].detach() for x in (origins, directions, depth, known))
    spacing = SparseGrid.edge * memory.voxel_size / 2
    t = torch.arange(spacing / 2, reach, spacing, device=depth.device, dtype=depth.dtype)
    free = torch.where(depth > 0, depth - memory.voxel_size, reach)
    free = known[..., None] & (t < free[..., None])
    points = o[..., None, :] + t[:, None] * d[..., None, :]
    memory.passed.merge(torch.where(free[..., None], points, math.nan).flatten(0, -2))


def _check(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name}: expected {list(expected)}, got {list(tensor.shape)}")
