"""Whether turning what a model is given turns what it makes."""

from __future__ import annotations

import torch

from evoworld.world.condition import Condition
from evoworld.world.model import WorldModel


@torch.no_grad()
def roll_error(model: WorldModel | None, condition: Condition, turns: int, seed: int) -> float:
    """The largest difference in RGB-D between frames of a turned condition and turned frames of the condition.

    The latents and the time that the network is given are drawn once and turned along; the result is decoded.

    Args:
        model: None: `Condition.filled` in its place.
        condition: of B segments.
        turns: by how many tokens' widths to the right; without a model, that of 4 pixels.
        seed: of the latents.
    """
    generator = torch.Generator().manual_seed(seed)
    if model is None:
        columns = 4 * turns
        return _largest(condition.roll(columns).filled(), condition.filled().roll(columns, -2))
    columns = model.config.dit.token_size * turns
    context, filled = model.context(condition)
    latents = torch.randn(context.base.shape, generator=generator).to(context.base)
    shift = columns * latents.shape[-2] // condition.known.shape[-2]
    time = torch.full((len(latents),), 0.5, device=latents.device)
    made = model.decode(model.dit(latents, time, context), condition, filled)
    turned = condition.roll(columns)
    other = model.decode(model(latents.roll(shift, -2), time, turned), turned)
    return _largest(other, made.roll(columns, -2))


def _largest(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max())
