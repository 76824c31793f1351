"""patch_attention on nn.MultiheadAttention and torch's transformer layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evoworld.geometry import Panorama
from evoworld.nn import patch_attention, unpatch_attention

LENGTH = 4 * 8
DIRECTIONS = Panorama(4, 8).directions(torch.float64)
ROUNDING = 1e-12  # of float64 models, where the reference serves


def multihead(batch_first=True, **options):
    return nn.MultiheadAttention(32, 2, batch_first=batch_first, dtype=torch.float64, **options)


def plain_heads(module, x):
    return (y.view(*x.shape[:2], 2, 16).transpose(1, 2) for y in F.linear(x, module.in_proj_weight).chunk(3, -1))


@pytest.mark.parametrize("batch_first", [True, False])
def test_bias_and_padding_are_a_dense_mask(batch_first, give_zonal, with_bias):
    module = patch_attention(multihead(batch_first, bias=False), DIRECTIONS)
    give_zonal(module)
    x = torch.randn(3, 2 * LENGTH, 32, dtype=torch.float64)
    padding = torch.rand(3, 2 * LENGTH) < 0.3
    extra = torch.zeros(3, 1, 1, 2 * LENGTH, dtype=torch.float64).masked_fill(padding[:, None, None], -torch.inf)
    zonal = module.sphere.zonal
    for key_padding_mask, added in ((None, 0.0), (padding, extra), (extra[:, 0, 0], extra)):
        wanted = with_bias(*plain_heads(module, x), zonal, added).transpose(1, 2).flatten(2)
        wanted = module.out_proj(wanted)
        y = x if batch_first else x.transpose(0, 1)
        found, nothing = module(y, y, y, key_padding_mask=key_padding_mask, need_weights=False)
        found = found if batch_first else found.transpose(0, 1)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        assert nothing is None


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("radius", [None, 1.0])
def test_the_weights_make_the_output(radius, average, give_zonal):
    module = patch_attention(multihead(), DIRECTIONS, zonal_degree=3, radius=radius)
    give_zonal(module)
    x = torch.randn(2, LENGTH, 32, dtype=torch.float64)
    padding = torch.rand(2, LENGTH) < 0.3
    padding[1] = True  # a sequence that is nothing but padding
    mask = {"key_padding_mask": padding, "average_attn_weights": average}
    found, weights = module(x, x, x, **mask)
    assert weights.shape == ((2, LENGTH, LENGTH) if average else (2, 2, LENGTH, LENGTH))
    value = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)[2].unflatten(-1, (2, 16))
    _, by_head = module(x, x, x, key_padding_mask=padding, average_attn_weights=False)
    wanted = module.out_proj((by_head @ value.transpose(1, 2)).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights, by_head.mean(1) if average else by_head)
    torch.testing.assert_close(by_head[0].sum(-1), torch.ones(2, LENGTH, dtype=torch.float64))
    if radius is not None:
        far = (DIRECTIONS @ DIRECTIONS.T).clamp(-1, 1).acos() > radius
        assert (by_head[0][:, far] == 0).all() and far.any()
    assert (by_head[1] == 0).all()
    found.sum().backward()
    assert x.isfinite().all() and module.in_proj_weight.grad.isfinite().all()


def test_weights_before_training_are_those_of_torch():
    module = multihead()
    x = torch.randn(2, LENGTH, 32, dtype=torch.float64)
    plain = module(x, x, x)
    found = patch_attention(module, DIRECTIONS, area_weighted=False)(x, x, x)
    for a, b in zip(found, plain):
        torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING)


def test_one_sequence_without_a_batch():
    module = multihead()
    x = torch.randn(LENGTH, 32, dtype=torch.float64)
    padding = torch.arange(LENGTH) % 5 == 0
    plain = module(x, x, x, key_padding_mask=padding)
    found = patch_attention(module, DIRECTIONS, area_weighted=False)(x, x, x, key_padding_mask=padding)
    for a, b in zip(found, plain):
        torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING)


def test_cross_attention_is_left_alone(give_zonal):
    layer = nn.TransformerDecoderLayer(32, 2, 64, dropout=0.0, batch_first=True, dtype=torch.float64)
    x, text = torch.randn(2, LENGTH, 32, dtype=torch.float64), torch.randn(2, 7, 32, dtype=torch.float64)
    plain = layer.multihead_attn(x, text, text)[0]
    patch_attention(layer, DIRECTIONS)
    give_zonal(layer)
    assert torch.equal(layer.multihead_attn(x, text, text)[0], plain)
    assert layer(x, text).shape == x.shape


def test_what_may_be_cross_attention_is_asked_about():
    module, x = multihead(), torch.randn(1, LENGTH, 32, dtype=torch.float64)
    memory = torch.randn(1, LENGTH, 32, dtype=torch.float64)
    plain = module(x, memory, memory)[0]
    patch_attention(module, DIRECTIONS, area_weighted=False)
    with pytest.raises(ValueError, match="query and key: expected one tensor, or '' among modules"):
        module(x, memory, memory)
    unpatch_attention(module)
    patch_attention(module, DIRECTIONS, area_weighted=False, modules=[""])
    torch.testing.assert_close(module(x, memory, memory)[0], plain, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_mask": torch.zeros(LENGTH, LENGTH)}, "attn_mask: expected None"),
        ({"is_causal": True, "attn_mask": torch.zeros(LENGTH, LENGTH)}, "is_causal: expected False"),
    ],
)
def test_what_it_cannot_do_is_said(options, message):
    module, x = patch_attention(multihead(), DIRECTIONS), torch.randn(1, LENGTH, 32, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        module(x, x, x, **options)


def test_dropout_in_training_is_refused():
    module, x = patch_attention(multihead(dropout=0.1), DIRECTIONS), torch.randn(1, LENGTH, 32, dtype=torch.float64)
    with pytest.raises(ValueError, match="dropout: expected attention without dropout"):
        module(x, x, x)
    assert module.eval()(x, x, x)[0].shape == x.shape


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.MultiheadAttention(32, 2, add_bias_kv=True), "bias_k"),
        (nn.MultiheadAttention(32, 2, add_zero_attn=True), "add_zero_attn"),
        (nn.MultiheadAttention(32, 4), "16 to 128 channels a head, got 8"),
    ],
)
def test_modules_that_cannot_be_patched(module, message):
    with pytest.raises(ValueError, match=message):
        patch_attention(module, DIRECTIONS)
    assert not hasattr(module, "sphere") and type(module) is nn.MultiheadAttention


def test_nested_tensors_are_refused():
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    encoder = patch_attention(nn.TransformerEncoder(layer, 1), DIRECTIONS).eval()
    padding = torch.arange(LENGTH).expand(2, LENGTH) > torch.tensor([[LENGTH], [9]])
    with torch.no_grad(), pytest.raises(ValueError, match="enable_nested_tensor=False"):
        encoder(torch.randn(2, LENGTH, 32), src_key_padding_mask=padding)
