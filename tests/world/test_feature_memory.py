"""FeatureMemory: rows that stay where they are, gradients through writes, rendering, and what a file holds."""

import pytest
import torch

from evoworld import reference
from evoworld.world.feature_memory import FAR, NEAR, OPTICAL_DEPTH, FeatureMemory

WALL = torch.tensor([[x, y, 3] for x in (-1, 0) for y in (-1, 0)], dtype=torch.int32)
OTHER = torch.tensor([[5, 0, 0], [-1, 0, 3]], dtype=torch.int32)  # the second is of the wall


def wall(dtype=torch.float32, channels=4):
    torch.manual_seed(0)
    memory = FeatureMemory(0.1, channels, dtype=dtype)
    rows = memory.rows(WALL)
    memory.write(rows, torch.randn(len(rows), channels, dtype=dtype), torch.rand(len(rows), dtype=dtype) + 0.1)
    return memory


def rays(count=40, dtype=torch.float32):
    torch.manual_seed(1)
    towards = torch.cat((0.4 * torch.rand(count, 2) - 0.2, torch.ones(count, 1)), 1).to(dtype)
    return 0.1 * torch.rand(count, 3, dtype=dtype), torch.nn.functional.normalize(towards, dim=-1)


def test_rows_are_allocated_once_and_stay():
    memory = wall()
    before = memory.values.clone()
    rows = memory.rows(OTHER)
    assert memory.grid.num_bricks == 5
    assert torch.equal(memory.values[:256], before)
    assert memory.values[256:].abs().max() == 0 and memory.evidence[256:].abs().max() == 0
    assert rows[:64].tolist() == list(range(256, 320))
    assert rows[64:].tolist() == list(range(64, 128))
    assert torch.equal(memory.rows(OTHER), rows)


def test_gradients_flow_to_what_is_written_and_to_what_was_there():
    memory = wall(torch.float64)
    before = memory.values = memory.values.requires_grad_()
    new = torch.randn(128, 4, dtype=torch.float64, requires_grad=True)
    memory.write(memory.rows(OTHER), new, torch.ones(128, dtype=torch.float64))
    memory.render(*rays(dtype=torch.float64)).features.sum().backward()
    assert before.grad[64:128].abs().max() == 0  # overwritten
    assert before.grad[:64].abs().max() > 0
    assert new.grad[64:].abs().max() > 0


def test_rendering_is_volume_render_of_features_and_confidence():
    memory = wall(torch.float64)
    origins, directions = rays(dtype=torch.float64)
    shown = memory.render(origins, directions, min_transmittance=0.0)
    confidence = memory.evidence / (1 + memory.evidence)
    density = torch.log1p(memory.values[:, 0].exp()) * OPTICAL_DEPTH / 0.1
    features, depth, opacity = reference.volume_render(
        torch.cat((memory.values[:, 1:], confidence[:, None]), 1),
        density,
        origins,
        directions,
        memory.grid,
        NEAR,
        FAR,
        0.05,
        0.0,
    )
    torch.testing.assert_close(shown.features, features)
    torch.testing.assert_close(shown.opacity, opacity)
    torch.testing.assert_close(shown.depth * opacity, depth)
    assert ((shown.depth > 1.05) & (shown.depth < 1.3)).all()  # the wall begins at 1.1 m


def test_what_was_never_observed_is_transparent():
    memory = wall()
    memory.evidence = torch.zeros_like(memory.evidence)
    shown = memory.render(*rays())
    assert shown.opacity.max() == 0 and shown.depth.max() == 0 and shown.features.abs().max() == 0


def test_an_empty_memory_shows_nothing():
    shown = FeatureMemory(0.1, 4).render(*rays(7))
    assert shown.features.shape == (7, 4)
    assert shown.opacity.max() == 0 and shown.features.abs().max() == 0


def test_an_extended_memory_leaves_the_first_as_it_is():
    memory = wall()
    shown = memory.render(*rays())
    more = memory.extended(OTHER[:1], torch.ones(64, 4), torch.ones(64))
    assert (memory.grid.num_bricks, more.grid.num_bricks) == (4, 5)
    assert torch.equal(more.values[256:], torch.ones(64, 4))
    for a, b in zip(memory.render(*rays()), shown):
        assert torch.equal(a, b)


def test_tensors_hold_all_of_it():
    memory = wall()
    memory.passed.merge(torch.rand(20, 3))
    other = FeatureMemory(0.1, 4)
    other.restore({name: tensor.clone() for name, tensor in memory.tensors().items()})
    assert torch.equal(other.passed.brick_coordinates, memory.passed.brick_coordinates)
    for a, b in zip(other.render(*rays()), memory.render(*rays())):
        assert torch.equal(a, b)


@pytest.mark.parametrize("evidence, confidence", [(0.0, 0.0), (1.0, 0.5), (9.0, 0.9)])
def test_confidence(evidence, confidence):
    memory = FeatureMemory(0.1, 3)
    memory.evidence = torch.tensor([evidence])
    torch.testing.assert_close(memory.confidence(), torch.tensor([confidence]))
