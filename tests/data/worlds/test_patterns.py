import pytest
import torch

from evoworld.data.worlds.patterns import Pattern, mix, noise


def shares(pattern, u, v, footprint, period=1.0):
    u, v = torch.broadcast_tensors(u, v)
    kind, seed = torch.full_like(u, pattern, dtype=torch.int64), torch.full_like(u, 3, dtype=torch.int64)
    return mix(kind, torch.full_like(u, period), seed, u, v, torch.full_like(u, footprint))


@pytest.mark.parametrize("pattern", list(Pattern))
def test_shares_lie_between_0_and_1_and_depend_on_place_and_seed_alone(pattern):
    places = torch.linspace(-20, 20, 997)
    share = shares(pattern, places, places.flip(0), 0.05)
    assert share.isfinite().all() and share.min() >= 0 and share.max() <= 1 and share.std() > 0.005
    assert share.equal(shares(pattern, places, places.flip(0), 0.05))
    one = shares(pattern, places[100:101], places.flip(0)[100:101], 0.05)
    torch.testing.assert_close(one, share[100:101])


@pytest.mark.parametrize("pattern", list(Pattern))
def test_periods_are_metres(pattern):
    places = torch.linspace(0, 8, 331)
    one = shares(pattern, places, 0.3 * places, 0.02)
    two = shares(pattern, 2 * places, 0.6 * places, 0.04, period=2.0)
    assert ((one - two).abs() < 1e-4).float().mean() > 0.98  # what lies on an edge may fall to either side


@pytest.mark.parametrize("pattern", [p for p in Pattern if p not in (Pattern.PLAIN, Pattern.PLANKS)])
def test_what_is_finer_than_a_pixel_fades(pattern):
    places = torch.linspace(0, 50, 4001)
    fine, coarse = (shares(pattern, places, 1.7 * places, footprint) for footprint in (0.001, 8.0))
    assert coarse.std() < 0.25 * fine.std()


@pytest.mark.parametrize("pattern", [Pattern.CHECKS, Pattern.STRIPES])
def test_a_pixel_shows_the_mean_of_what_it_covers(pattern):
    size, steps = 0.4, (torch.arange(41) - 20) / 41 * 0.4
    u, v = torch.linspace(0, 3, 57), torch.linspace(0.2, 1.7, 57)
    fine = shares(pattern, (u[:, None, None] + steps[:, None]), (v[:, None, None] + steps), 1e-4)
    torch.testing.assert_close(shares(pattern, u, v, size), fine.mean((1, 2)), atol=0.03, rtol=0)


def test_noise_is_smooth():
    x = torch.linspace(0, 10, 5001)
    values = noise(x, 0.7 * x, torch.ones(5001, dtype=torch.int64))
    assert values.diff().abs().max() < 0.01 and values.std() > 0.1
