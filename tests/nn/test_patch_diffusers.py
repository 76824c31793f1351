"""patch_attention on a small WanTransformer3DModel of diffusers: 2 frames of 4 x 8 patches, a text as long as those."""

import copy

import pytest
import torch
from torch.nn import functional as F

from evoworld.geometry import Panorama
from evoworld.nn import patch_attention, unpatch_attention

LENGTH = 4 * 8
DIRECTIONS = Panorama(4, 8).directions(torch.float64)
ROUNDING = 1e-12  # of float64 models, where the reference serves


"""A Wan transformer, small: 2 frames of 4 x 8 patches, and a text with as many tokens."""


@pytest.fixture
def wan():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=32,
    ).double()


def inputs_of_wan():
    video = torch.randn(2, 4, 2, 2 * 4, 2 * 8, dtype=torch.float64)
    text = torch.randn(2, 2 * LENGTH, 16, dtype=torch.float64)
    return {"hidden_states": video, "timestep": torch.tensor([3, 900]), "encoder_hidden_states": text}


def test_before_training_it_computes_what_it_did(wan, give_zonal):
    inputs = inputs_of_wan()
    plain = wan(**inputs).sample
    assert patch_attention(wan, DIRECTIONS, area_weighted=False) is wan
    torch.testing.assert_close(wan(**inputs).sample, plain, rtol=0, atol=1e-6)  # its embedding of time is float32
    give_zonal(wan)
    changed = wan(**inputs).sample
    assert (changed - plain).abs().max() > 1e-3
    assert torch.equal(unpatch_attention(wan)(**inputs).sample, plain)


def test_self_attention_has_the_bias_and_cross_attention_does_not(wan, give_zonal, zonal_parameters, with_bias):
    patch_attention(wan, DIRECTIONS, zonal_degree=1)
    assert list(zonal_parameters(wan)) == ["blocks.0.attn1.sphere.zonal", "blocks.1.attn1.sphere.zonal"]
    give_zonal(wan)
    attention, cross = wan.blocks[0].attn1, wan.blocks[0].attn2
    x, text = torch.randn(2, 2, 2 * LENGTH, 32, dtype=torch.float64)

    def projected(module, context):
        q, k, v = module.norm_q(module.to_q(x)), module.norm_k(module.to_k(context)), module.to_v(context)
        return (y.unflatten(-1, (2, 16)).transpose(1, 2) for y in (q, k, v))

    wanted = with_bias(*projected(attention, x), attention.sphere.zonal).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), attention.to_out[0](wanted), rtol=0, atol=1e-6)
    wanted = F.scaled_dot_product_attention(*projected(cross, text)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(cross(x, text), cross.to_out[0](wanted), rtol=0, atol=1e-12)


def test_turning_the_panorama_turns_the_result(wan, give_zonal):
    patch_attention(wan, DIRECTIONS, zonal_degree=2, radius=1.5)
    give_zonal(wan)
    # Wan's own rotary embedding knows columns by number: without it what is left is the sphere.
    wan.rope.register_forward_hook(lambda module, inputs, output: (torch.ones_like(output[0]), 0 * output[1]))
    inputs = inputs_of_wan()
    wanted = wan(**inputs).sample.roll(6, -1)
    inputs["hidden_states"] = inputs["hidden_states"].roll(6, -1)
    torch.testing.assert_close(wan(**inputs).sample, wanted, rtol=0, atol=1e-5)


def test_trains_with_checkpoints_and_projections_in_one(wan, zonal_parameters):
    patch_attention(wan, DIRECTIONS).train()
    inputs = inputs_of_wan()
    gradients = []
    for prepare in (lambda: None, wan.enable_gradient_checkpointing):
        prepare()
        wan.zero_grad()
        wan(**inputs).sample.square().sum().backward()
        gradients.append([zonal.grad for zonal in zonal_parameters(wan).values()])
    for plain, recomputed in zip(*gradients):
        assert (plain[:, 1] != 0).all()
        torch.testing.assert_close(plain, recomputed)
    found = wan(**inputs).sample
    wan.fuse_qkv_projections()
    torch.testing.assert_close(wan(**inputs).sample, found, rtol=0, atol=1e-6)


def test_saves_and_copies(wan, tmp_path, give_zonal):
    patch_attention(wan, DIRECTIONS)
    give_zonal(wan)
    inputs = inputs_of_wan()
    found = wan(**inputs).sample
    assert torch.equal(copy.deepcopy(wan)(**inputs).sample, found)
    wan.save_pretrained(tmp_path)
    fresh = patch_attention(type(wan).from_config(wan.config).double(), DIRECTIONS)
    torch.save(wan.state_dict(), tmp_path / "state.pt")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(fresh(**inputs).sample, found)


def test_processors_may_be_shared(wan):
    wan.set_attn_processor(type(wan.blocks[0].attn1.processor)())
    inputs = inputs_of_wan()
    plain = wan(**inputs).sample
    patch_attention(wan, DIRECTIONS)
    assert (wan(**inputs).sample - plain).abs().max() > 1e-4
    assert type(wan.blocks[0].attn2.processor).__name__ == "WanAttnProcessor"
    assert torch.equal(unpatch_attention(wan)(**inputs).sample, plain)


def test_compiles_without_a_break(wan, give_zonal):
    patch_attention(wan, DIRECTIONS)
    give_zonal(wan)
    inputs = inputs_of_wan()
    torch._dynamo.reset()
    found = torch.compile(wan, fullgraph=True, backend="aot_eager")(**inputs).sample
    torch.testing.assert_close(found, wan(**inputs).sample, rtol=0, atol=1e-6)


def test_another_size_of_video_is_an_error(wan):
    patch_attention(wan, Panorama(8, 16).directions())
    with pytest.raises(ValueError, match=r"T x 128 tokens in 'blocks.0.attn1', got .* \[\(64, 64\)\]"):
        wan(**inputs_of_wan())


def test_a_context_is_asked_about(wan):
    attention = patch_attention(wan, DIRECTIONS, area_weighted=False).blocks[0].attn1
    x, context = torch.randn(2, 1, LENGTH, 32, dtype=torch.float64)
    with pytest.raises(ValueError, match="encoder_hidden_states: expected None, or 'blocks.0.attn1' among modules"):
        attention(x, context)
    plain = unpatch_attention(wan).blocks[0].attn1(x, context)
    patch_attention(wan, DIRECTIONS, area_weighted=False, modules=["blocks.*.attn1"])
    torch.testing.assert_close(attention(x, context), plain, rtol=0, atol=ROUNDING)
