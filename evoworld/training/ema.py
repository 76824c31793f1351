"""The average of the weights over the steps, which is what a training run gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AverageOfWeights:
    """The exponential moving average of a module's trainable parameters.

    After step n: ``average += (1 - d) (weight - average)``, d = min(decay, n / (n + 9)), so that the first steps are
    soon forgotten.

    Args:
        module: whose parameters; they are read at each update.
        decay: 0..1.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> average = AverageOfWeights(layer, decay=0.5)
        >>> start = layer.weight.item()
        >>> with torch.no_grad():
        ...     _ = layer.weight.add_(1.0)
        >>> average.update()
        >>> round(average.weights["weight"].item() - start, 3)
        0.9
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.count = decay, 0
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the weights as they are now."""
        self.count += 1
        decay = min(self.decay, self.count / (self.count + 9))
        pairs = [(average, self._parameters[name].detach()) for name, average in self.weights.items()]
        if pairs:
            torch._foreach_lerp_(*map(list, zip(*pairs, strict=True)), 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the weights and their average; a second time puts them back."""
        for name, average in self.weights.items():
            weight = self._parameters[name]
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)
