"""Solids that a procedural world is made of, and where rays meet them: boxes, ellipsoids and upright cylinders."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import torch

BOX, ELLIPSOID, CYLINDER = 0, 1, 2
_NEAREST = 1e-4  # metres: a ray that starts on a surface does not meet it again


@dataclass(frozen=True)
class Solids:
    """Solids, those of a kind together: boxes, then ellipsoids, then cylinders, each turned about its upright axis."""

    centre: torch.Tensor  # [P, 3] metres
    half_size: torch.Tensor  # [P, 3] metres
    cosine: torch.Tensor  # [P] of the yaw
    sine: torch.Tensor  # [P]
    material: torch.Tensor  # [P] int64
    object_id: torch.Tensor  # [P] int64
    counts: tuple[int, int, int]  # boxes, ellipsoids, cylinders

    def to(self, device: torch.device | str) -> Solids:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Solids(**{name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in moved.items()})

    def to_local(
        self,
        vectors: torch.Tensor,  # [..., 3]
        solid: torch.Tensor,  # [...] int64
    ) -> torch.Tensor:  # [..., 3]
        """Vectors turned into the axes of a solid each."""
        cosine, sine = self.cosine[solid], self.sine[solid]
        x, y, z = vectors.unbind(-1)
        return torch.stack((cosine * x + sine * y, cosine * y - sine * x, z), -1)

    def to_world(self, vectors: torch.Tensor, solid: torch.Tensor) -> torch.Tensor:  # [..., 3], [...] -> [..., 3]
        """The inverse of `to_local`."""
        cosine, sine = self.cosine[solid], self.sine[solid]
        x, y, z = vectors.unbind(-1)
        return torch.stack((cosine * x - sine * y, sine * x + cosine * y, z), -1)


@dataclass
class SolidList:
    """Solids while a world is being built."""

    rows: list[tuple[int, tuple[float, ...]]] = field(default_factory=list)

    def add(
        self,
        kind: int,
        centre: tuple[float, float, float],
        half_size: tuple[float, float, float],
        material: int,
        object_id: int,
        yaw: float = 0.0,
    ) -> None:
        self.rows.append((kind, (*centre, *half_size, math.cos(yaw), math.sin(yaw), material, object_id)))

    def build(self) -> Solids:
        """The solids as tensors."""
        rows = sorted(self.rows, key=lambda row: row[0])  # stable
        table = torch.tensor([numbers for _, numbers in rows], dtype=torch.float64)
        counts = tuple(sum(kind == wanted for kind, _ in rows) for wanted in (BOX, ELLIPSOID, CYLINDER))
        centre, half_size, cosine, sine, material, object_id = table.split((3, 3, 1, 1, 1, 1), dim=1)
        return Solids(
            centre.float(),
            half_size.float(),
            cosine[:, 0].float(),
            sine[:, 0].float(),
            material[:, 0].long(),
            object_id[:, 0].long(),
            counts,
        )


def normals(
    solids: Solids,
    points: torch.Tensor,  # [..., 3] on surfaces
    solid: torch.Tensor,  # [...] int64
) -> torch.Tensor:  # [..., 3]
    """The outward normals of surfaces."""
    half_size = solids.half_size[solid]
    local = solids.to_local(points - solids.centre[solid], solid) / half_size
    boxes, ellipsoids, _ = solids.counts
    largest = local.abs().argmax(-1, keepdim=True)
    of_box = torch.zeros_like(local).scatter_(-1, largest, local.gather(-1, largest).sign())
    of_ellipsoid = local / half_size
    level = local.new_tensor((1.0, 1.0, 0.0))
    is_cap = local[..., 2:].abs() > local[..., :2].norm(dim=-1, keepdim=True)
    of_cylinder = torch.where(is_cap, local.sign() * (1 - level), of_ellipsoid * level)
    kind = solid[..., None]
    chosen = torch.where(kind < boxes, of_box, torch.where(kind < boxes + ellipsoids, of_ellipsoid, of_cylinder))
    return solids.to_world(torch.nn.functional.normalize(chosen, dim=-1), solid)
