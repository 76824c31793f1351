"""compact_order: a permutation, of which any run of tokens is a compact patch of the sphere."""

import pytest
import torch
from torch.nn.functional import normalize

from evoworld.geometry import Panorama
from evoworld.ops.compact_order import compact_order


def angles_to_centre(directions):  # [..., T, 3] -> [..., T]
    centre = normalize(directions.mean(-2, keepdim=True), dim=-1)
    return (directions * centre).sum(-1).clamp(-1, 1).acos()


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_it_is_a_permutation(count):
    order = compact_order(normalize(torch.randn(count, 3), dim=-1))
    assert order.dtype == torch.int32
    assert order.sort().values.tolist() == list(range(count))


@pytest.mark.parametrize("height", [32, 64, 128])
@pytest.mark.parametrize("run", [32, 128])
def test_runs_are_compact(height, run):
    directions = Panorama(height, 2 * height).directions().view(-1, 3)
    ordered = directions[compact_order(directions).long()]
    # From each of the possible places, not only where tiles of this size begin.
    radius = torch.cat(
        [angles_to_centre(ordered[start:].unfold(0, run, run).mT).amax(-1) for start in range(0, run, 8)]
    )
    cap = torch.tensor(
        1 - 2 * run / len(directions)
    ).acos()  # the radius of a cap with as many tokens, if all were even
    assert radius.mean() < 2 * cap
    assert radius.max() < 4 * cap
    rows = angles_to_centre(directions.unfold(0, run, run).mT).amax(-1)  # the panorama's own order
    assert radius.mean() < rows.mean()


def test_neighbours_stay_neighbours_where_the_octahedron_is_unfolded():
    # A dense circle across the lower half, which the map cuts into four corners.
    directions = normalize(
        torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * 0.2 - torch.eye(3)[2], dim=-1
    )
    ordered = directions[compact_order(directions).long()]
    step = (ordered[1:] - ordered[:-1]).norm(dim=-1)
    assert step.median() < 0.05
    assert (step > 0.5).sum() <= 4  # once a corner at most


def test_equal_directions_keep_their_order():
    assert compact_order(torch.eye(3)[:1].expand(50, 3)).tolist() == list(range(50))


def test_it_compiles():
    directions = Panorama(8, 16).directions().view(-1, 3)
    compiled = torch.compile(compact_order, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(directions), compact_order(directions))
    torch.library.opcheck(torch.ops.evoworld.compact_order.default, (directions,))
