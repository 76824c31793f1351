"""Where the world was looked at from, and how far one could see: space that is known to be free."""

from __future__ import annotations

import torch
from torch import Tensor

from evoworld.geometry import Camera, Panorama, invert_pose, transform_points

from .surfels import least_around, pixels_of

ROWS = 64  # pixels from pole to pole of the panoramas that ranges are kept in
APART = 0.4  # metres between viewpoints that are kept
NEAREST = 64  # viewpoints that a point is checked from: those near it alone miss what was seen far behind it
CLEAR = 0.93  # of the range that was shown: a point nearer than that stands in space that was seen to be free
CHUNK = 1 << 16  # points that are checked at once


class Viewpoints:
    """Places, and what ranges were shown from them, as panoramas along the world's axes.

    ``places`` [V, 3] and ``ranges`` [V, ROWS, 2 ROWS] in metres: of a finer panorama the least in a pixel, of a coarser
    one or another camera the least in a pixel of theirs and those around it; SKY for the sky, 0 where nothing is shown.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.places = torch.zeros(0, 3, device=device)
        self.ranges = torch.zeros(0, ROWS, 2 * ROWS, dtype=torch.float16, device=device)

    @property
    def empty(self) -> bool:
        return self.places.shape[0] == 0

    @property
    def nbytes(self) -> int:
        return self.places.nbytes + self.ranges.nbytes

    def wants(self, place: Tensor) -> bool:  # [3] metres
        """Whether a place is far enough from those there are."""
        return self.empty or float((self.places - place).norm(dim=-1).amin()) >= APART

    def add(
        self,
        distance: Tensor,  # [H, W] metres along the ray, SKY for the sky, 0 where nothing is shown
        camera_to_world: Tensor,  # [4, 4]
        camera: Camera,
    ) -> None:
        """Keeps what a camera shows."""
        finer = isinstance(camera, Panorama) and camera.height >= ROWS
        radius = camera.height // (2 * ROWS) if finer else 1
        least = least_around(distance.float(), radius, isinstance(camera, Panorama)).flatten()
        place = camera_to_world[:3, 3]
        directions = _panorama().rays(torch.eye(4, device=place.device))[1]
        _, pixel, inside = pixels_of(transform_points(invert_pose(camera_to_world), place + directions), camera)
        shown = torch.where(inside, least[pixel], 0.0).view(1, ROWS, 2 * ROWS)
        self.places = torch.cat([self.places, place[None].to(self.places)])
        self.ranges = torch.cat([self.ranges, shown.to(self.ranges)])

    def saw_past(
        self,
        points: Tensor,  # [P, 3] metres
        margin: float,
    ) -> Tensor:  # [P] bool
        """Which points stand in front of what was shown from one of the viewpoints nearest to them.

        Args:
            points: `[P, 3]` metres.
            margin: metres that a point must be nearer by, besides its share of the range.
        """
        if self.empty or points.shape[0] == 0:
            return torch.zeros_like(points[:, 0], dtype=torch.bool)
        return torch.cat([self._saw_past(part, margin) for part in points.split(CHUNK)])

    def _saw_past(self, points: Tensor, margin: float) -> Tensor:  # [P, 3] -> [P]
        count = min(NEAREST, self.places.shape[0])
        nearest = torch.cdist(points, self.places).topk(count, largest=False).indices.flatten()  # [P K]
        towards = points.repeat_interleave(count, 0) - self.places[nearest]
        _, pixel, _ = pixels_of(towards, _panorama())
        shown = self.ranges.flatten(1)[nearest, pixel].float()
        return (towards.norm(dim=-1) < CLEAR * shown - margin).view(-1, count).any(-1)


def _panorama() -> Panorama:
    return Panorama(ROWS, 2 * ROWS)
