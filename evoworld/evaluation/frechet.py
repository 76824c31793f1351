"""How far one set of pictures is from another as a whole: the Fréchet distance between their features."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(
    first: Tensor,  # [N, D]
    second: Tensor,  # [M, D]
) -> float:
    """The Fréchet distance between the normal distributions fitted to two sets of features.

    `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` with means m and covariances S. With the centred features
    `A = (x - m) / sqrt(N - 1)`, the trace of the root is the sum of the singular values of `A1 A2^T`, which needs
    neither a root nor an inverse of a covariance and is exact for fewer features than dimensions too. Sets drawn from
    one distribution are above 0 by about `tr S (1/N + 1/M)` and more: compare sets of equal size only.

    Args:
        first: `[N, D]`, N at least 2.
        second: `[M, D]`, M at least 2.

    Returns:
        The distance (squared units of the features). No gradient.

    Raises:
        ValueError: other shapes, or values that are not finite.

    Source: Heusel, Ramsauer, Unterthiner, Nessler and Hochreiter 2017, "GANs trained by a two time-scale update rule
    converge to a local Nash equilibrium", section 3.

    >>> features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    >>> round(frechet_distance(features, features + torch.tensor([3.0, 4.0])), 4)
    25.0
    """
    for name, features in (("first", first), ("second", second)):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"{name}: expected [N, D] with N at least 2, got {list(features.shape)}")
        if not bool(features.isfinite().all()):
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"second: expected D = {first.shape[1]} as in first, got {second.shape[1]}")
    (mean1, centred1), (mean2, centred2) = _centred(first), _centred(second)
    root = torch.linalg.svdvals(_triangular(centred1) @ _triangular(centred2).mT).sum()
    spread = centred1.square().sum() + centred2.square().sum()
    return max(float((mean1 - mean2).square().sum() + spread - 2 * root), 0.0)


def _triangular(features: Tensor) -> Tensor:  # [N, D] -> [N or D, D]
    """As few rows as possible with the same products of columns."""
    return torch.linalg.qr(features, mode="r").R if features.shape[0] > features.shape[1] else features


def _centred(features: Tensor) -> tuple[Tensor, Tensor]:  # [N, D] -> [D], [N, D]
    features = features.detach().double()
    mean = features.mean(0)
    return mean, (features - mean) / (len(features) - 1) ** 0.5
