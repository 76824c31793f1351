"""AdamW with a rate that rises, stays and falls, and a guard against gradients that are not to be trusted."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor, nn

from .config import StageConfig

BETAS = (0.9, 0.99)
FLOOR = 0.05  # of the rate, at the end of a stage
REMEMBERED = 100  # gradient norms, of which the median is the usual one
LEARNING = 20  # norms that must be known before any is called too large


def make_optimizer(module: nn.Module, config: StageConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; biases, gains and other vectors do not decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    whole = all(type(p) is nn.Parameter for p in trained)  # a parameter split between processes has no fused step
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.rate, betas=BETAS, fused=whole or None)


def rate_at(config: StageConfig, step: int, fraction: float) -> float:
    """The rate of a step: a linear rise over the warm-up, then constant, then a cosine fall to a twentieth.

    Args:
        config: of the stage.
        step: from 0.
        fraction: 0..1, how much of the stage is over, in steps or in time.

    Example:
        >>> config = StageConfig(rate=1.0, warmup=4, cooldown=0.5)
        >>> [round(rate_at(config, step, step / 100), 2) for step in (0, 3, 50, 75, 100)]
        [0.25, 1.0, 1.0, 0.53, 0.05]
    """
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    late = 0.0 if config.cooldown == 0 else max(0.0, (fraction - 1 + config.cooldown) / config.cooldown)
    fall = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(late, 1.0)))
    return config.rate * rise * fall


class GradientGuard:
    """Tells steps whose gradient is not finite or far larger than usual, which are better left out.

    Example:
        >>> guard = GradientGuard(factor=10)
        >>> [guard.accepts(norm) for norm in [1.0] * 20 + [11.0, math.nan, 9.0]][-3:]
        [False, False, True]
    """

    def __init__(self, factor: float, norms: list[float] | None = None):
        self.factor = factor
        self.norms = deque(norms or (), maxlen=REMEMBERED)

    def accepts(self, norm: float) -> bool:
        """Whether to take a step with a gradient of this norm; it is remembered if it is finite."""
        usual = sorted(self.norms)[len(self.norms) // 2] if len(self.norms) >= LEARNING else math.inf
        if math.isfinite(norm):
            self.norms.append(norm)  # large ones too: what is usual may change
        return math.isfinite(norm) and norm <= self.factor * usual


def gradient_norm(module: nn.Module) -> Tensor:  # []
    """The norm of all gradients together, over all processes that share them."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def scale_gradients(module: nn.Module, norm: float, largest: float) -> None:
    """Scales all gradients, of norm `norm`, down to the norm `largest` if they are above it."""
    if norm > largest:
        torch._foreach_mul_([p.grad for p in module.parameters() if p.grad is not None], largest / norm)
