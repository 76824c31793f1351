"""The Fréchet distance against its formula, by a root of matrices and by hand."""

import numpy as np
import pytest
import torch

from evoworld.evaluation import frechet_distance


def features_of(count, dimensions, seed, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=generator)
    return shift + scale * torch.randn(count, dimensions, generator=generator) @ mix


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def by_the_formula(first, second):
    first, second = first.double().numpy(), second.double().numpy()
    s1, s2 = np.cov(first.T), np.cov(second.T)
    s1_root = root(s1)
    gap = first.mean(0) - second.mean(0)
    return gap @ gap + np.trace(s1) + np.trace(s2) - 2 * np.trace(root(s1_root @ s2 @ s1_root))


@pytest.mark.parametrize(("n", "m", "dimensions"), [(200, 90, 5), (7, 9, 20), (2, 2, 3)])
def test_it_equals_the_formula(n, m, dimensions):
    first, second = features_of(n, dimensions, 0), features_of(m, dimensions, 1, shift=0.7)
    assert frechet_distance(first, second) == pytest.approx(by_the_formula(first, second), rel=1e-6)


def test_normal_distributions_whose_distance_is_known():
    """Diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(20_000, 2, generator=generator) * torch.tensor([1.0, 2.0])
    second = torch.randn(20_000, 2, generator=generator) * torch.tensor([3.0, 1.0]) + torch.tensor([0.0, 2.0])
    assert frechet_distance(first, second) == pytest.approx(4 + 4 + 1, rel=0.03)


def test_it_is_symmetric_and_zero_for_the_same():
    first, second = features_of(30, 8, 0), features_of(40, 8, 1)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)
    assert frechet_distance(first, first) < 1e-9 * float(first.square().sum())


def test_bad_features_are_refused():
    good = torch.rand(4, 3)
    for bad, message in ((torch.rand(1, 3), "at least 2"), (good / 0, "finite"), (torch.rand(4, 5), "D = 3")):
        with pytest.raises(ValueError, match=message):
            frechet_distance(good, bad)
