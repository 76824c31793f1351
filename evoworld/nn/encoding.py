"""Where a token lies on the sphere: as features to add, or as a rotation of queries and keys."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from evoworld.ops.library import check, check_tensor


def angles(
    directions: Tensor,  # [..., 3]
) -> tuple[Tensor, Tensor]:  # [...], [...]
    """Azimuth in [-pi, pi] and elevation in [-pi/2, pi/2] of directions of any length, radians.

    Camera axes (y down), so on a panorama they are its longitude and latitude. Straight up and down have azimuth 0, the
    zero vector both 0; their gradients there are 0 where the angle has none.
    """
    x, y, z = directions.unbind(-1)
    level = torch.stack((x, z), -1)
    vertical = (level == 0).all(-1)
    ahead = torch.where(vertical, 1, z)  # atan2 has no gradient at (0, 0), so it is not asked there
    azimuth = torch.where(vertical, 0, torch.atan2(x, ahead))
    horizontal = torch.linalg.vector_norm(level, dim=-1)
    zero = vertical & (y == 0)
    elevation = torch.where(zero, 0, torch.atan2(-y, torch.where(zero, 1, horizontal)))
    return azimuth, elevation


class SphericalPositionalEncoding(nn.Module):
    """Sines and cosines of azimuth and elevation, at frequencies that are powers of two.

    With azimuth a, elevation e and f = 1, 2, 4, ... below ``grid_width / 2`` (each period has more than two tokens)::

        encoding = [sin(f a), cos(f a), sin(f e), cos(f e)]

    The frequencies are integers, so the two sides of a panorama's seam get what neighbours get. No parameters.

    Args:
        grid_width: tokens around the panorama, at least 4; its rows are taken to be as dense.
        max_octaves: at most so many frequencies; None: all that the grid resolves.

    Shape: directions ``[..., 3]`` (of any length, camera axes) to ``[..., num_channels]``, in the dtype of directions;
    at a pole the azimuth counts as 0, for the zero vector the elevation too. Half precision is computed in float32.
    Gradients: to directions, finite everywhere but as steep as 1 / cos(latitude) near the poles.

    Raises:
        ValueError: grid_width below 4, max_octaves below 1, directions of another shape.

    Example:
        >>> from evoworld.geometry import Panorama
        >>> encoding = SphericalPositionalEncoding(grid_width=64)
        >>> encoding.num_channels, encoding(Panorama(32, 64).directions()).shape
        (20, torch.Size([2048, 20]))
    """

    def __init__(self, grid_width: int, max_octaves: int | None = None) -> None:
        super().__init__()
        op = type(self).__name__
        _check_count(op, "grid_width", grid_width, 4)
        resolved = (grid_width - 1).bit_length() - 1  # the powers of two below grid_width / 2
        if max_octaves is not None:
            _check_count(op, "max_octaves", max_octaves, 1)
            resolved = min(resolved, max_octaves)
        self.frequencies = tuple(2**octave for octave in range(resolved))
        self.num_channels = 4 * resolved

    def forward(
        self,
        directions: Tensor,  # [..., 3]
    ) -> Tensor:  # [..., num_channels]
        check_tensor(type(self).__name__, "directions", directions, (*["..."] * (directions.ndim - 1), 3))
        exact = directions.to(torch.promote_types(directions.dtype, torch.float32))
        phases = [angle[..., None] * _tensor(self.frequencies, angle) for angle in angles(exact)]
        waves = [wave for phase in phases for wave in (phase.sin(), phase.cos())]
        return torch.cat(waves, -1).to(directions.dtype)

    def extra_repr(self) -> str:
        return f"frequencies={list(self.frequencies)}"


class SphericalRotaryEmbedding(nn.Module):
    """Rotary embedding whose frequencies in longitude are integers: turning the panorama changes no logit.

    The pairs of channels are rotated by ``f * longitude`` (first half of them) and ``f * latitude`` (second half), so a
    logit depends on the difference of two longitudes as an angle, across the seam too, and on that of two latitudes.
    Frequencies are distinct integers, near a geometric progression, from 1 to below ``grid_width / 2``; pairs for which
    there are no more of them are left as they are. No parameters.

    Args:
        head_dim: channels of a head, D, a multiple of 4.
        grid_width: tokens around the panorama, at least 4; its rows are taken to be as dense.

    Shape: tokens ``[..., L, D]`` (queries or keys of any number of heads) and directions ``[L, 3]`` in camera axes to
    ``[..., L, D]``, in the dtype of tokens. The angles are computed in float64, so give directions in float64 where the
    symmetry matters to the last digit: float32 ones are off by ``1e-7 * f / cos(latitude)``.

    Gradients: to tokens.

    Raises:
        ValueError: head_dim is no multiple of 4, grid_width below 4, tensors of other shapes.

    Source: rotary embedding, Su et al., "RoFormer", 2021.

    Example:
        >>> from evoworld.geometry import Panorama
        >>> rotary = SphericalRotaryEmbedding(head_dim=16, grid_width=8)
        >>> rotary.frequencies
        (1, 2, 3, 0)
        >>> directions = Panorama(4, 8).directions(torch.float64)
        >>> query, key = torch.ones(2, 1, 16)
        >>> query, key = (rotary(token.expand(32, 16), directions) for token in (query, key))
        >>> logits = (query @ key.mT).view(4, 8, 4, 8)
        >>> turned = logits.roll(3, 1).roll(3, 3)  # the same token, 3 columns on
        >>> torch.allclose(logits, turned, atol=1e-5)
        True
    """

    def __init__(self, head_dim: int, grid_width: int) -> None:
        super().__init__()
        op = type(self).__name__
        _check_count(op, "head_dim", head_dim, 4)
        check(op, head_dim % 4 == 0, "head_dim", "a multiple of 4", head_dim)
        _check_count(op, "grid_width", grid_width, 4)
        self.head_dim = head_dim
        self.frequencies = _distinct_frequencies(head_dim // 4, (grid_width - 1) // 2)

    def forward(
        self,
        tokens: Tensor,  # [..., L, D]
        directions: Tensor,  # [L, 3]
    ) -> Tensor:  # [..., L, D]
        op = type(self).__name__
        rows, width = tokens.shape[-2:]
        check(op, width == self.head_dim, "tokens", f"rows of {self.head_dim} elements", width)
        check_tensor(op, "directions", directions, (rows, 3), tokens)
        # Metal has no float64.
        exact = torch.float32 if directions.device.type == "mps" else torch.float64
        longitude, latitude = angles(directions.detach().to(exact))
        phase = torch.cat([angle[:, None] * _tensor(self.frequencies, angle) for angle in (longitude, latitude)], -1)
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        cos, sin = phase.cos().to(dtype), phase.sin().to(dtype)  # [L, D / 2]
        first, second = tokens.chunk(2, -1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), -1).to(tokens.dtype)

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, frequencies={list(self.frequencies)}"


def _distinct_frequencies(count: int, highest: int) -> tuple[int, ...]:
    """Growing integers of 1 to highest, near a geometric progression, and zeros when there are fewer of them."""
    distinct = min(count, highest)
    ratio = highest ** (1 / max(distinct - 1, 1))
    frequencies: list[int] = []
    for i in range(distinct):
        least = frequencies[-1] + 1 if frequencies else 1
        most = highest - (distinct - 1 - i)  # leaves one for each that follows
        frequencies.append(min(max(round(ratio**i), least), most))
    return (*frequencies, *[0] * (count - distinct))


def _tensor(frequencies: tuple[int, ...], like: Tensor) -> Tensor:
    """The frequencies as a tensor; cached, as a CUDA graph cannot be captured while one comes from the host."""
    traced = torch.compiler.is_compiling() or is_fake(like)
    return (torch.tensor if traced else _cached_tensor)(frequencies, dtype=like.dtype, device=like.device)


@lru_cache(maxsize=64)
def _cached_tensor(frequencies: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor in the cache would break autograd later
        return torch.tensor(frequencies, dtype=dtype, device=device)


def _check_count(op: str, name: str, value: object, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    check(op, whole and value >= least, name, f"an int >= {least}", repr(value))
