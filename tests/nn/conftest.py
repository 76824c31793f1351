"""What the tests of patch_attention share: a bias that is not zero, and attention with that bias written out."""

import pytest
import torch
from torch.nn import functional as F

from evoworld.geometry import Panorama


def zonal_parameters_of(model):
    return {name: x for name, x in model.named_parameters() if name.endswith("sphere.zonal")}


@pytest.fixture
def zonal_parameters():
    """The parameters that patching adds to a model, by name."""
    return zonal_parameters_of


@pytest.fixture
def give_zonal():
    """Makes the strengths of a patched model's bias something else than zero."""

    def give(model, seed=3):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for zonal in zonal_parameters_of(model).values():
                zonal.copy_(2 * torch.randn(zonal.shape, generator=generator, dtype=zonal.dtype))

    return give


@pytest.fixture
def with_bias():
    """Attention over whole frames of 4 x 8 tokens in float64, its bias (K = 1, weights by area) a dense mask."""
    panorama = Panorama(4, 8)

    def attention(query, key, value, zonal, extra=0.0, scale=None):
        frames = query.shape[2] // panorama.num_rays
        x = panorama.directions(torch.float64).repeat(frames, 1)
        log_area = panorama.solid_angle(torch.float64).flatten().log().repeat(frames)
        bias = extra + log_area + zonal[:, :1, None] + zonal[:, 1:2, None] * (x @ x.T)
        return F.scaled_dot_product_attention(query, key, value, bias, scale=scale)

    return attention
