"""What the tests of the world model's parts share: conditions of random panoramas."""

import pytest
import torch

from evoworld.world.condition import Condition


def make_condition(
    batch=1, frames=2, height=16, words=3, text_dim=12, feature_dim=0, token=4, seed=0, dtype=torch.float32
):
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=dtype)

    shape = batch, frames, height, 2 * height
    tokens = batch, frames, height // token, 2 * height // token
    return Condition(
        known=2 * uniform(*shape, 4) - 1,
        known_mask=(uniform(*shape, 2) > 0.8).to(dtype),
        memory=2 * uniform(*shape, 4) - 1,
        visibility=(uniform(*shape) > 0.5).to(dtype),
        position=4 * uniform(batch, frames, 3) - 2,
        text=2 * uniform(batch, words, text_dim) - 1,
        text_mask=torch.ones(batch, words, dtype=torch.bool),
        features=2 * uniform(*tokens, feature_dim) - 1 if feature_dim else None,
    )


@pytest.fixture
def random_condition():
    """Makes a condition of small panoramas, half of them visible."""
    return make_condition


@pytest.fixture
def perturb():
    """Makes the parameters of a module what they may be after training: none is zero."""

    def change(module, seed=1, scale=0.1):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter.add_(scale * noise.to(parameter.dtype))
        return module

    return change
