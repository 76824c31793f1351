"""The networks of the learned memory: what encodes frames, what writes into voxels, and what proposes unseen ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evoworld.nn import SphericalConv2d

from .brick_conv import BRICK_VOLUME, BrickConv3d, BrickNeighbours, BrickNorm

SCATTER_STRIDE = 2  # pixels: every second one of every second row is written, with the features around it
EMPTY_LOGIT = -4.0  # of density, where proposals start: transparent
MAX_EVIDENCE = 16.0  # pixels: no more than training sees, and a place can still change
NORM_GROUPS = 4


@dataclass(frozen=True)
class MemoryEncoderConfig:
    """The sizes of a `MemoryEncoder`."""

    height: int = 64  # H of the frames, W = 2H
    token: int = 4  # pixels along the edge of a token: features come as [T, H / token, W / token, F]
    feature_dim: int = 16  # F; the last two are confidence and depth
    voxel_size: float = 0.2  # metres
    reach: float = 8.0  # metres: what is further away is not remembered here
    group: int = 2  # frames that are written at once; more are written one group after another
    rays: int = 2  # along each side of a token; its features are their mean
    frame_dim: int = 24  # channels of the frames' encoder
    frame_blocks: int = 2
    voxel_dim: int = 16  # channels of the convolutions over voxels
    brick_dim: int = 64  # channels of those over bricks
    brick_blocks: int = 2
    frontier_reach: int = 2  # bricks beyond what was seen for which something is proposed
    frontier_radius: float = 6.0  # metres from the cameras

    def __post_init__(self) -> None:
        if self.height % self.token or self.token % (2 * SCATTER_STRIDE) or self.token % self.rays:
            expected = f"a divisor of the height {self.height}, a multiple of 4 and of the {self.rays} rays"
            raise ValueError(f"token: expected {expected}, got {self.token}")
        if self.feature_dim < 4 or self.frame_dim % NORM_GROUPS or self.voxel_dim % NORM_GROUPS:
            raise ValueError(
                f"feature_dim, frame_dim, voxel_dim: expected at least 4, multiples of {NORM_GROUPS}, "
                f"got {(self.feature_dim, self.frame_dim, self.voxel_dim)}"
            )

    @property
    def channels(self) -> int:
        """What a voxel holds: the logit of density and the features that are rendered."""
        return self.feature_dim - 1


class Observation(NamedTuple):
    """What frames show of the lattice points of a grid."""

    features: Tensor  # [V, C] mean over the surface points around
    surface: Tensor  # [V] how many pixels saw a surface there
    distance: Tensor  # [V] -1..1 voxels before the surface along the rays, mean
    evidence: Tensor  # [V] how many pixels saw the place: a surface, or the voxel before or behind it

    def stacked(self) -> Tensor:  # [V, C + 3]
        scalars = torch.stack((self.surface.log1p(), self.distance, self.evidence.log1p()), -1)
        return torch.cat((self.features, scalars), -1)


class FrameBlock(nn.Module):
    """x + conv(gelu(norm(conv(gelu(norm(x)))))) on panoramas."""

    def __init__(self, dim: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(NORM_GROUPS, dim) for _ in range(2))
        self.convs = nn.ModuleList(SphericalConv2d(dim, dim, 3) for _ in range(2))

    def forward(
        self,
        image: Tensor,  # [T, C, h, w]
    ) -> Tensor:  # [T, C, h, w]
        hidden = image
        for norm, conv in zip(self.norms, self.convs):
            hidden = conv(F.gelu(norm(hidden)))
        return image + hidden


class FrameEncoder(nn.Module):
    """Features of what each pixel shows, with what lies around it: a small U-Net on the sphere."""

    def __init__(self, config: MemoryEncoderConfig, out_channels: int):
        super().__init__()
        dim = config.frame_dim
        self.enter = SphericalConv2d(6, dim, 2 * SCATTER_STRIDE, SCATTER_STRIDE)
        self.down = SphericalConv2d(dim, 2 * dim, 4, 2)
        self.blocks = nn.Sequential(*[FrameBlock(2 * dim) for _ in range(config.frame_blocks)])
        self.up = nn.Conv2d(2 * dim, dim, 1)
        self.leave = nn.Conv2d(dim, out_channels, 1)

    def forward(
        self,
        rgbd: Tensor,  # [T, H, W, 4]
        known: Tensor,  # [T, H, W] 0..1
    ) -> Tensor:  # [T, H / 2, W / 2, C]
        height = rgbd.shape[1]
        latitude = (0.5 - (torch.arange(height, device=rgbd.device, dtype=rgbd.dtype) + 0.5) / height) * math.pi
        planes = torch.cat((rgbd * known[..., None], known[..., None]), -1)
        planes = torch.cat((planes, latitude.sin().view(-1, 1, 1).expand_as(planes[..., :1])), -1)
        fine = self.enter(planes.permute(0, 3, 1, 2))
        coarse = self.blocks(self.down(F.gelu(fine)))
        fine = fine + F.interpolate(self.up(coarse), scale_factor=2)
        return self.leave(F.gelu(fine)).permute(0, 2, 3, 1)


class MemoryUpdate(nn.Module):
    """The gated memory block: ``memory + gate * (conv3d([memory, observation]) - memory)`` on bricks with their halos.

    The gate of a place is the observation's share of all its evidence, each pixel weighted by a learned trust: 1 the
    first time, 0 where nothing was observed. So a place holds a mean of what the convolutions, bounded by their norm,
    have made of each observation, and stays what it is however often it is seen.
    """

    def __init__(self, config: MemoryEncoderConfig, observed: int):
        super().__init__()
        channels, dim = config.channels, config.voxel_dim
        self.enter = nn.Linear(channels + 1 + observed, dim)
        self.norms = nn.ModuleList(BrickNorm(NORM_GROUPS, dim) for _ in range(2))
        self.mix = BrickConv3d(dim, dim)
        self.leave = BrickConv3d(dim, channels)
        self.trust = nn.Linear(channels + 1 + observed, 1)

    def forward(
        self,
        values: Tensor,  # [V, C]
        evidence: Tensor,  # [V]
        observation: Observation,
        neighbours: BrickNeighbours,
    ) -> tuple[Tensor, Tensor]:  # [V, C], [V]
        both = torch.cat((values, evidence.log1p()[:, None], observation.stacked()), -1)
        hidden = self.enter(both)
        hidden = hidden + self.mix(F.gelu(self.norms[0](hidden)), neighbours)
        seen = self.leave(F.gelu(self.norms[1](hidden)), neighbours)
        new = 2 * self.trust(both)[:, 0].sigmoid() * observation.evidence
        total = evidence + new
        gate = (new / total.clamp_min(1e-9))[:, None]
        return values + gate * (seen - values), total.clamp(max=MAX_EVIDENCE)


class BrickBlock(nn.Module):
    """x + conv(gelu(norm(conv(gelu(norm(x)))))) on one row a brick and its 26 neighbours."""

    def __init__(self, dim: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(NORM_GROUPS, dim) for _ in range(2))
        self.convs = nn.ModuleList(BrickConv3d(dim, dim, coarse=True) for _ in range(2))

    def forward(
        self,
        bricks: Tensor,  # [M, C]
        neighbours: BrickNeighbours,
    ) -> Tensor:  # [M, C]
        hidden = bricks
        for norm, conv in zip(self.norms, self.convs):
            hidden = conv(F.gelu(norm(hidden)), neighbours)
        return bricks + hidden


class MemoryProposal(nn.Module):
    """A guess of what bricks hold that nobody saw, from those around them: a U-Net of voxels and bricks."""

    def __init__(self, config: MemoryEncoderConfig):
        super().__init__()
        channels, dim = config.channels, config.voxel_dim
        self.enter = nn.Linear(channels + 1, dim)
        self.mix = BrickConv3d(dim, dim)
        self.down = nn.Linear(BRICK_VOLUME * dim, config.brick_dim)
        self.blocks = nn.ModuleList(BrickBlock(config.brick_dim) for _ in range(config.brick_blocks))
        self.up = nn.Linear(config.brick_dim, BRICK_VOLUME * dim)
        self.norm = BrickNorm(NORM_GROUPS, dim)
        self.leave = BrickConv3d(dim, channels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        with torch.no_grad():
            self.leave.bias[0] = EMPTY_LOGIT

    def forward(
        self,
        values: Tensor,  # [V, C]
        confidence: Tensor,  # [V]
        neighbours: BrickNeighbours,
    ) -> Tensor:  # [V, C]
        fine = self.enter(torch.cat((values, confidence[:, None]), -1))
        fine = fine + self.mix(F.gelu(fine), neighbours)
        coarse = self.down(fine.view(neighbours.num_bricks, -1))
        for block in self.blocks:
            coarse = block(coarse, neighbours)
        fine = fine + self.up(F.gelu(coarse)).view(fine.shape)
        return self.leave(F.gelu(self.norm(fine)), neighbours)
