"""Where rays meet solids. Rays come in bundles, and a bundle is only tried on the solids that it can reach."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from .solids import Solids

_NEAREST = 1e-4  # metres: a ray that starts on a surface does not meet it again
_MARGIN = 1e-3  # metres, of the bounds of solids: more than rounding takes away
_SMALL = 1e-9  # instead of a component of a direction that is 0


@dataclass(frozen=True)
class _Bounds:
    """What rays have in common."""

    low: torch.Tensor  # [..., 3] metres: the origins lie between low and high
    high: torch.Tensor  # [..., 3]
    flattest: torch.Tensor  # [..., 3]: the directions lie between flattest and steepest
    steepest: torch.Tensor  # [..., 3]
    far: torch.Tensor  # [...] metres: how far they look

    def of_families(self) -> _Bounds:  # [F, G] -> [F]
        low, high = self.low.amin(1), self.high.amax(1)
        return _Bounds(low, high, self.flattest.amin(1), self.steepest.amax(1), self.far.amax(1))

    def take(self, index: torch.Tensor) -> _Bounds:
        return _Bounds(*(getattr(self, f.name)[index] for f in fields(self)))


def cast(
    solids: Solids,
    origins: torch.Tensor,  # [F, G, K, 3] metres
    directions: torch.Tensor,  # [F, G, K, 3] unit
    far: torch.Tensor | None = None,  # [F, G, K] metres
) -> tuple[torch.Tensor, torch.Tensor]:  # [F, G, K] metres, [F, G, K] int64
    """The nearest surface that each ray meets from outside: its distance (inf: none) and which solid it is (0: none).

    Args:
        solids: P of them.
        origins: of F families of G bundles of K rays. The closer together the rays of a bundle and the bundles of a
            family lie, the faster this is; it changes nothing else.
        directions: of unit length.
        far: how far to look at least; 0 leaves a ray out, whose result means nothing. By default as far as there is.
    """
    if far is None:
        far = torch.full_like(origins[..., 0], torch.inf)
    shape = far.shape
    solid, bundle = _reachable_pairs(solids, _bounds(origins, directions, far))  # [N], sorted by solid
    origins, directions = origins.flatten(0, 1), directions.flatten(0, 1)
    entry = _entries(solids, origins, directions, solid, bundle)  # [N, K]
    # Positive floats are ordered as their bits are; with the solid behind them one minimum finds both.
    keys = (entry.view(torch.int32).long() << 32) + solid[:, None]
    nothing = torch.tensor(torch.inf).view(torch.int32).long() << 32
    nearest = torch.full((shape[0] * shape[1], shape[2]), int(nothing), device=far.device)
    nearest = nearest.scatter_reduce_(0, bundle[:, None].expand_as(keys), keys, "amin").view(shape)
    distance = (nearest >> 32).int().view(torch.float32)
    return distance, torch.where(distance.isfinite(), nearest & 0xFFFFFFFF, 0)


def _bounds(origins: torch.Tensor, directions: torch.Tensor, far: torch.Tensor) -> _Bounds:  # of bundles [F, G]
    off = (far <= 0)[..., None]
    return _Bounds(
        origins.masked_fill(off, torch.inf).amin(2),
        origins.masked_fill(off, -torch.inf).amax(2),
        directions.masked_fill(off, 2).amin(2),
        directions.masked_fill(off, -2).amax(2),
        far.amax(2),
    )


def _reachable_pairs(solids: Solids, bundles: _Bounds) -> tuple[torch.Tensor, torch.Tensor]:
    """(solid [N], bundle [N]) of all pairs of which a ray may meet the solid, sorted by solid; first by families."""
    cosine, sine = solids.cosine.abs()[:, None], solids.sine.abs()[:, None]
    half = solids.half_size
    reach = torch.cat((cosine * half[:, :2] + sine * half[:, :2].flip(1), half[:, 2:]), 1) + _MARGIN  # [P, 3]
    box_low, box_high = solids.centre - reach, solids.centre + reach
    solid, family = _is_reachable(box_low[:, None], box_high[:, None], bundles.of_families()).nonzero(as_tuple=True)
    reachable = _is_reachable(box_low[solid, None], box_high[solid, None], bundles.take(family))
    pair, member = reachable.nonzero(as_tuple=True)
    return solid[pair], family[pair] * bundles.far.shape[1] + member


def _is_reachable(box_low: torch.Tensor, box_high: torch.Tensor, rays: _Bounds) -> torch.Tensor:
    """Whether rays within bounds may meet a box: never wrongly no.

    A ray is at ``o + t d`` with 0 <= t <= far. Along each axis, that it lies within the box bounds t by
    ``t d <= high - o`` for some d and o, and ``t d >= low - o``; where nothing is left of t, no ray arrives.
    """
    first, last = torch.zeros((), device=rays.far.device), rays.far
    for axis in range(3):
        for bound, slope in (
            (box_high[..., axis] - rays.low[..., axis], rays.flattest[..., axis]),
            (rays.high[..., axis] - box_low[..., axis], -rays.steepest[..., axis]),
        ):
            slope = torch.where(slope.abs() < _SMALL, _SMALL, slope)
            until = bound / slope
            last = torch.minimum(last, until.where(slope > 0, torch.inf))
            first = torch.maximum(first, until.where(slope < 0, 0))
    return first <= last


def _entries(
    solids: Solids,
    origins: torch.Tensor,  # [G, K, 3]
    directions: torch.Tensor,  # [G, K, 3]
    solid: torch.Tensor,  # [N] int64, rising
    bundle: torch.Tensor,  # [N] int64
) -> torch.Tensor:  # [N, K]
    """How far the rays of a bundle go until they enter a solid; inf where they do not."""
    counts = torch.bincount(solid, minlength=sum(solids.counts)).split(solids.counts)
    boxes, ellipsoids, cylinders = ((int(count.sum())) for count in counts)
    columns = torch.cat((solids.centre, solids.half_size.reciprocal(), solids.cosine[:, None], solids.sine[:, None]), 1)
    cx, cy, cz, sx, sy, sz, cosine, sine = columns[solid].t()[..., None]  # [N, 1] each
    ox, oy, oz = (x[bundle] for x in origins.unbind(-1))  # [N, K] each
    dx, dy, dz = (x[bundle] for x in directions.unbind(-1))
    # In axes in which every solid reaches from -1 to 1.
    ox, oy, oz = ox - cx, oy - cy, (oz - cz) * sz
    ox, oy = (cosine * ox + sine * oy) * sx, (cosine * oy - sine * ox) * sy
    dx, dy, dz = (cosine * dx + sine * dy) * sx, (cosine * dy - sine * dx) * sy, dz * sz
    o, d = (
        x.split((boxes, ellipsoids, cylinders)) for x in (torch.stack((ox, oy, oz), 1), torch.stack((dx, dy, dz), 1))
    )

    low, high = _between(o[0], d[0])
    of_boxes = _entered(low.amax(1), high.amin(1))
    of_ellipsoids = _entered(*_inside(o[1], d[1]))
    low, high = _between(o[2][:, 2], d[2][:, 2])
    near, until = _inside(o[2][:, :2], d[2][:, :2])
    of_cylinders = _entered(torch.maximum(near, low), torch.minimum(until, high))
    return torch.cat((of_boxes, of_ellipsoids, of_cylinders))


def _between(o: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where ``|o + t d| <= 1`` begins and ends."""
    inverse = torch.where(d.abs() < _SMALL, _SMALL, d).reciprocal()
    middle, half = -o * inverse, inverse.abs()
    return middle - half, middle + half


def _inside(o: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the sum over dim 1 of ``(o + t d)^2`` is at most 1; empty (inf, -inf) where it never is."""
    a, b, c = (d * d).sum(1).clamp_min(1e-12), (o * d).sum(1), (o * o).sum(1) - 1
    root = (b * b - a * c).sqrt()  # NaN: the ray passes by
    return ((-b - root) / a).nan_to_num(torch.inf), ((-b + root) / a).nan_to_num(-torch.inf)


def _entered(near: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
    return torch.where((near <= far) & (near > _NEAREST), near, torch.inf)
