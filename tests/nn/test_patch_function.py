"""patch_attention on modules that call F.scaled_dot_product_attention."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evoworld.geometry import Panorama
from evoworld.nn import patch_attention

LENGTH = 4 * 8
DIRECTIONS = Panorama(4, 8).directions(torch.float64)
ROUNDING = 1e-12  # of float64 models, where the reference serves


class Attention(nn.Module):
    """What many models have: one projection, torch's function, one projection."""

    def __init__(self, dim=32, num_heads=2, **options):
        super().__init__()
        self.num_heads, self.options = num_heads, options
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x, mask=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, mask, **self.options).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("shape", [(1, LENGTH), (3, 1, 1, LENGTH), (1, 1, 1, LENGTH)])
@pytest.mark.parametrize("boolean", [True, False])
def test_masks_of_keys(shape, boolean, give_zonal, with_bias):
    module = patch_attention(Attention(scale=0.3).double(), DIRECTIONS, modules=[""])
    give_zonal(module)
    x = torch.randn(3, LENGTH, 32, dtype=torch.float64)
    mask = torch.rand(shape) < 0.7 if boolean else torch.randn(shape, dtype=torch.float64)
    dense = torch.zeros(shape, dtype=torch.float64).masked_fill(~mask, -torch.inf) if boolean else mask
    q, k, v = module.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    wanted = module.proj(with_bias(q, k, v, module.sphere.zonal, dense, 0.3).transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x, mask), wanted, rtol=0, atol=1e-6)
    expanded = mask.expand(3, 2, LENGTH, LENGTH)
    torch.testing.assert_close(module(x, expanded), wanted, rtol=0, atol=1e-6)


def test_fewer_heads_of_keys():
    class Grouped(nn.Module):
        num_heads = 4

        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    q = torch.randn(2, 4, LENGTH, 16, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, LENGTH, 16, dtype=torch.float64)
    module = Grouped()
    plain = module(q, k, v)
    found = patch_attention(module, DIRECTIONS, area_weighted=False, modules=[""])(q, k, v)
    torch.testing.assert_close(found, plain, rtol=0, atol=ROUNDING)
    found = module(q[0], k[0], v[0])
    torch.testing.assert_close(found, plain[0], rtol=0, atol=ROUNDING)


def test_other_calls_within_are_left_alone():
    class Both(Attention):
        def forward(self, x, text):
            q, k = x.unflatten(-1, (2, 16)).transpose(1, 2), text.unflatten(-1, (2, 16)).transpose(1, 2)
            return super().forward(x), F.scaled_dot_product_attention(q, k, k, is_causal=False)

    module = Both().double()
    x, text = torch.randn(1, LENGTH, 32, dtype=torch.float64), torch.randn(1, 7, 32, dtype=torch.float64)
    plain = module(x, text)
    patch_attention(module, DIRECTIONS, modules=[""])
    found = module(x, text)
    assert torch.equal(found[1], plain[1]) and (found[0] - plain[0]).abs().max() > 1e-3


def test_nothing_is_replaced_outside_a_patched_module():
    model = nn.Sequential(Attention(), Attention()).double()
    patch_attention(model, DIRECTIONS, modules=["0"])
    x = torch.randn(1, LENGTH, 32, dtype=torch.float64)
    other = model[1]
    q, k, v = other.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    model(x)
    wanted = other.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    assert torch.equal(other(x), wanted)
    with pytest.raises(ValueError):
        model(x[:, 1:])
    assert torch.equal(other(x), wanted)  # after an error too


@pytest.mark.parametrize(
    ("options", "mask", "message"),
    [
        ({"dropout_p": 0.5}, None, "dropout: expected attention without dropout"),
        ({"is_causal": True}, None, "is_causal: expected False"),
        ({}, torch.zeros(LENGTH, LENGTH), "attn_mask: expected a mask of keys alone"),
        ({}, torch.zeros(1, 2, 1, LENGTH), "attn_mask: expected a mask of keys alone"),
        ({}, torch.zeros(2, 1, 1, LENGTH), "mask: expected a row for each of 1 sequences, got 2"),
    ],
)
def test_what_it_cannot_do_is_said(options, mask, message):
    module = patch_attention(Attention(**options), DIRECTIONS, modules=[""])
    with pytest.raises(ValueError, match=message):
        module(torch.randn(1, LENGTH, 32), mask)


def test_a_module_that_never_calls_it_is_an_error():
    class Written(nn.Module):
        heads = 2

        def forward(self, x):
            return (x @ x.mT).softmax(-1) @ x

    module = patch_attention(Written(), DIRECTIONS, modules=[""])
    with pytest.raises(ValueError, match=r"scaled_dot_product_attention.*calls with \(queries, keys\) of \[\]"):
        module(torch.randn(1, LENGTH, 32))
