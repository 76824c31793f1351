"""A walk: panoramas with depth along a path, as training and evaluation take them from any source."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from evoworld.geometry import make_pose


@dataclass(frozen=True)
class Walk:
    """T level panoramas H x 2H that differ in position only: all have the same yaw.

    Args:
        image: ``[T, H, 2H, 3]`` float32 in 0..1.
        depth: ``[T, H, 2H]`` float32 metres along the ray, 0 where there is only sky; None if it is not known.
        camera_to_world: ``[T, 4, 4]`` float32, world with z up.
        captions: a sentence for each frame, ``""`` where there is none.
        name: what the walk is called in messages and file names.
        object_id: ``[T, H, 2H]`` int64, 0 for what is no object; None if it is not known.

    Raises:
        ValueError: a shape is another, or the poses are not level with one yaw.

    Example:
        >>> poses = level_poses(torch.zeros(2, 3), 0.5)
        >>> walk = Walk(torch.zeros(2, 4, 8, 3), torch.ones(2, 4, 8), poses, ("", ""), "corridor")
        >>> len(walk), walk.height
        (2, 4)
    """

    image: torch.Tensor  # [T, H, 2H, 3]
    depth: torch.Tensor | None  # [T, H, 2H]
    camera_to_world: torch.Tensor  # [T, 4, 4]
    captions: tuple[str, ...]
    name: str
    object_id: torch.Tensor | None = None  # [T, H, 2H]

    def __post_init__(self) -> None:
        shape = tuple(self.image.shape)
        if len(shape) != 4 or shape[0] < 1 or shape[2] != 2 * shape[1] or shape[3] != 3:
            raise ValueError(f"{self.name}: image: expected [T, H, 2H, 3] with T at least 1, got {list(shape)}")
        for name, tensor, expected in (
            ("depth", self.depth, shape[:3]),
            ("object_id", self.object_id, shape[:3]),
            ("camera_to_world", self.camera_to_world, (shape[0], 4, 4)),
        ):
            if tensor is not None and tuple(tensor.shape) != expected:
                raise ValueError(f"{self.name}: {name}: expected {list(expected)}, got {list(tensor.shape)}")
        if len(self.captions) != shape[0]:
            raise ValueError(f"{self.name}: captions: expected one a frame ({shape[0]}), got {len(self.captions)}")
        rotation = self.camera_to_world[:, :3, :3]
        down = rotation.new_tensor((0.0, 0.0, -1.0))
        turned, tilted = (rotation - rotation[:1]).abs().max(), (rotation[0, :, 1] - down).abs().max()
        if not (turned <= 1e-4 and tilted <= 1e-4 and self.camera_to_world.isfinite().all()):  # NaN is not less
            raise ValueError(f"{self.name}: camera_to_world: expected level poses of one yaw, got others")

    def __len__(self) -> int:
        return len(self.image)

    @property
    def height(self) -> int:
        """H, rows of a panorama."""
        return self.image.shape[1]

    def select(self, frames: list[int] | range) -> Walk:
        """The walk over some of its frames, in the order given."""
        chosen = list(frames)
        return replace(
            self,
            image=self.image[chosen],
            depth=None if self.depth is None else self.depth[chosen],
            camera_to_world=self.camera_to_world[chosen],
            captions=tuple(self.captions[i] for i in chosen),
            object_id=None if self.object_id is None else self.object_id[chosen],
        )

    def to(self, device: torch.device | str) -> Walk:
        """The same on a device."""
        return replace(
            self,
            image=self.image.to(device),
            depth=None if self.depth is None else self.depth.to(device),
            camera_to_world=self.camera_to_world.to(device),
            object_id=None if self.object_id is None else self.object_id.to(device),
        )


def level_poses(
    position: torch.Tensor,  # [T, 3] metres
    yaw: float | torch.Tensor,  # [] or [T] radians
) -> torch.Tensor:  # [T, 4, 4]
    """Level camera-to-world poses that look along yaw, counted from world x towards y.

    Example:
        >>> level_poses(torch.zeros(1, 3), 0.0)[0, :3, 2].tolist()
        [1.0, 0.0, 0.0]
    """
    yaw = torch.as_tensor(yaw, dtype=position.dtype, device=position.device).expand(len(position))
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    right = torch.stack((yaw.sin(), -yaw.cos(), zero), -1)
    down = torch.stack((zero, zero, -one), -1)
    forward = torch.stack((yaw.cos(), yaw.sin(), zero), -1)
    return make_pose(torch.stack((right, down, forward), -1), position)
