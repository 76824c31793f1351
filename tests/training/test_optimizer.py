"""The rate over a stage, the guard, the gradient's norm, and the average of weights."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from evoworld.training.config import StageConfig
from evoworld.training.ema import AverageOfWeights
from evoworld.training.optimizer import GradientGuard, gradient_norm, make_optimizer, rate_at, scale_gradients


def test_the_rate_rises_stays_and_falls():
    config = StageConfig(rate=2.0, warmup=10, cooldown=0.25)
    rates = [rate_at(config, step, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[9:75] == [2.0] * 66
    assert all(a > b for a, b in pairwise(rates[75:]))
    assert rates[-1] == pytest.approx(0.1)
    assert rate_at(StageConfig(rate=1.0, warmup=0, cooldown=0.0), 0, 1.0) == 1.0


def test_the_guard_knows_what_is_usual_and_gets_used_to_more():
    guard = GradientGuard(10.0)
    assert all(guard.accepts(1e6) for _ in range(5))  # nothing is usual yet
    guard = GradientGuard(10.0, [1.0] * 30)
    assert not guard.accepts(math.nan) and not guard.accepts(math.inf) and not guard.accepts(11.0)
    assert guard.accepts(9.0)
    accepted = [guard.accepts(50.0) for _ in range(60)]
    assert not accepted[0] and accepted[-1]


def test_gradients_are_scaled_down_together():
    layer = nn.Linear(3, 2)
    for p in layer.parameters():
        p.grad = torch.full_like(p, 2.0)
    norm = gradient_norm(layer)
    assert norm.item() == pytest.approx(2 * math.sqrt(8))
    scale_gradients(layer, norm.item(), 100.0)
    assert gradient_norm(layer).item() == norm.item()
    scale_gradients(layer, norm.item(), 1.0)
    assert gradient_norm(layer).item() == pytest.approx(1.0)


def test_only_matrices_decay():
    layer = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    layer[0].weight.requires_grad_(False)
    optimizer = make_optimizer(layer, StageConfig(weight_decay=0.5))
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.0, 3)]
    layer[0].weight.requires_grad_(True)
    optimizer = make_optimizer(layer, StageConfig(weight_decay=0.5))
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.5, 1), (0.0, 3)]


def test_the_average_follows_and_can_be_looked_at():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    average = AverageOfWeights(layer, decay=0.9)
    expected = 0.0
    for count in range(1, 201):
        layer.weight.data.fill_(float(count))
        average.update()
        decay = min(0.9, count / (count + 9))
        expected = decay * expected + (1 - decay) * count
    assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-5)
    average.swap()
    assert layer.weight.item() == pytest.approx(expected, rel=1e-5)
    average.swap()
    assert layer.weight.item() == 200.0
