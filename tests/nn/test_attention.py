"""SphericalAttention against attention written out, its symmetries, and what a training script does with it."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from evoworld.geometry import Panorama
from evoworld.nn import SphericalAttention, SphericalRotaryEmbedding
from evoworld.nn.attention import area_log_weight, panorama_grid

EPSILON = torch.finfo(torch.float32).eps
ROTARY = SphericalRotaryEmbedding(head_dim=16, grid_width=16)


def made(seed=0, **options):
    """A module with D = 16 and N = 2 whose zonal is not zero."""
    torch.manual_seed(seed)
    module = SphericalAttention(**{"dim": 32, "num_heads": 2, **options})
    if module.zonal is not None:
        nn.init.normal_(module.zonal, std=2)
    return module


def written_out(module, tokens, directions, log_weight):
    """The module's equation in float64, one frame after the other: tokens [B, L, C]."""
    module = copy.deepcopy(module).double()
    angle_cosine = directions @ directions.T
    legendre = [torch.ones_like(angle_cosine), angle_cosine, (3 * angle_cosine**2 - 1) / 2]
    legendre.append((5 * angle_cosine**3 - 3 * angle_cosine) / 2)
    frames = []
    for frame in tokens.double():
        q, k, v = (x.view(-1, 2, 16).transpose(0, 1) for x in module.qkv(frame).chunk(3, -1))  # [N, L, D]
        if module.rotary is not None:
            q, k = module.rotary(q, directions), module.rotary(k, directions)
        logits = q @ k.mT / 4
        for degree in range(0 if module.zonal is None else module.zonal.shape[1]):
            logits = logits + module.zonal[:, degree, None, None] * legendre[degree]
        logits = logits + log_weight
        if module.radius is not None:
            logits = logits.masked_fill(angle_cosine.clamp(-1, 1).acos() > module.radius, -torch.inf)
        frames.append(module.out((logits.softmax(-1) @ v).transpose(0, 1).flatten(1)))
    return torch.stack(frames)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zonal_degree": 3, "radius": 0.8},
        {"zonal_degree": None, "bias": False},
        {"zonal_degree": 0, "area_weighted": False},
        {"rotary": ROTARY},
    ],
    ids=str,
)
def test_is_its_equation(options):
    module = made(**options)
    video = torch.randn(2, 3, 6, 12, 32)
    directions = Panorama(6, 12).directions(torch.float64)
    area = Panorama(6, 12).solid_angle(torch.float64).flatten().log() if module.area_weighted else torch.zeros(72)
    wanted = written_out(module, video.view(6, 72, 32), directions, area).view(video.shape)
    torch.testing.assert_close(module(video), wanted.float(), rtol=0, atol=64 * EPSILON)
    frame = video[:, 0].flatten(1, 2)
    torch.testing.assert_close(module(frame, directions), wanted[:, 0].flatten(1, 2).float(), rtol=0, atol=64 * EPSILON)


def test_tokens_anywhere_with_weights_of_their_own():
    module = made(zonal_degree=2)
    directions = nn.functional.normalize(torch.randn(37, 3, dtype=torch.float64), dim=-1)
    tokens, log_weight = torch.randn(2, 37, 32), torch.randn(37, dtype=torch.float64)
    found = module(tokens, directions.float(), log_weight.float())
    wanted = written_out(module, tokens, directions, log_weight)
    torch.testing.assert_close(found, wanted.float(), rtol=0, atol=64 * EPSILON)
    assert not torch.allclose(found, module(tokens, directions.float()), atol=1e-3)


@pytest.mark.parametrize(
    "options", [{"zonal_degree": 3}, {"radius": 0.7}, {"rotary": SphericalRotaryEmbedding(16, 16)}]
)
def test_turning_the_panorama_turns_the_result(options):
    module = made(**options)
    video = torch.randn(1, 2, 8, 16, 32)
    for columns in (1, 5, 8):
        found, wanted = module(video.roll(columns, 3)), module(video).roll(columns, 3)
        torch.testing.assert_close(found, wanted, rtol=0, atol=32 * EPSILON)


def test_frames_do_not_see_each_other_but_every_pixel_of_their_own():
    module = made()
    video = torch.randn(1, 2, 4, 8, 32, requires_grad=True)
    module(video)[0, 1, 2, 3].sum().backward()
    assert (video.grad[0, 0] == 0).all() and (video.grad[0, 1] != 0).any(-1).all()


def test_weights_by_area_are_the_pixels_solid_angles():
    for panorama in (Panorama(8, 16), Panorama(3, 6)):
        wanted = panorama.solid_angle(torch.float64).flatten().log()
        found = area_log_weight(panorama.directions(torch.float64))
        torch.testing.assert_close(found - found[0], wanted - wanted[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.exp().mean().item(), 1.0)
    assert area_log_weight(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])).isfinite().all()
    assert area_log_weight(torch.tensor([[0.0, -1.0, 0.0]])).tolist() == [0.0]


def test_mean_does_not_depend_on_how_densely_latitudes_are_sampled():
    # Keys alike and no bias: attention is the mean over the sphere, that of y^2 is 1/3.
    module = made(zonal_degree=None)
    with torch.no_grad():
        module.qkv.weight.zero_()[64:] = torch.eye(32)
        module.qkv.bias.zero_()
        module.out.weight.copy_(torch.eye(32))
        module.out.bias.zero_()
    height = Panorama(32, 64).directions()[:, 1].square().view(1, 1, 32, 64, 1).expand(-1, -1, -1, -1, 32)
    assert module(height).sub(1 / 3).abs().max() < 1e-3
    module.area_weighted = False
    assert module(height).sub(1 / 2).abs().max() < 1e-3  # the mean over rows, which crowd at the poles


def test_a_fake_call_leaves_nothing_behind():
    module = made(rotary=SphericalRotaryEmbedding(16, 14))
    with FakeTensorMode(allow_non_fake_inputs=True):
        module(torch.randn(1, 1, 6, 14, 32))
    assert type(module(torch.randn(1, 1, 6, 14, 32))) is torch.Tensor


def test_on_meta_tensors():
    assert made().to("meta")(torch.empty(1, 2, 6, 14, 32, device="meta")).shape == (1, 2, 6, 14, 32)


def test_grids_of_other_proportions():
    for height, width in ((8, 16), (5, 7), (1, 1), (2, 9)):
        directions, log_weight = panorama_grid(height, width, torch.empty(0))
        torch.testing.assert_close(directions.norm(dim=-1), torch.ones(height * width, dtype=torch.float64))
        assert log_weight.shape == (height * width,) and log_weight.dtype == torch.float32
        assert made()(torch.randn(1, 1, height, width, 32)).isfinite().all()
    wanted = Panorama(8, 16).directions(torch.float64)
    torch.testing.assert_close(panorama_grid(8, 16, torch.empty(0))[0], wanted, rtol=0, atol=1e-15)


def test_parameters_are_seen_and_trained():
    module = SphericalAttention(32, 2, zonal_degree=2)
    assert {name: list(x.shape) for name, x in module.named_parameters()} == {
        "zonal": [2, 3],
        "qkv.weight": [96, 32],
        "qkv.bias": [96],
        "out.weight": [32, 32],
        "out.bias": [32],
    }
    assert (module.zonal == 0).all()
    other = SphericalAttention(32, 2, zonal_degree=2)
    other.load_state_dict(module.state_dict())
    video, wanted = torch.randn(1, 1, 4, 8, 32), torch.randn(1, 1, 4, 8, 32)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (module(video) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    d_zonal = module.zonal.grad.abs()
    assert d_zonal[:, 0].max() < 1e-3 * d_zonal[:, 1:].min()  # P_0 moves no probability


@pytest.mark.parametrize("shape", [(0, 1, 4, 8, 32), (1, 0, 4, 8, 32), (2, 1, 0, 8, 32)])
def test_nothing_to_attend_to(shape):
    assert made()(torch.zeros(shape)).shape == shape
    assert made()(torch.zeros(1, 0, 32), torch.zeros(0, 3)).shape == (1, 0, 32)


def test_half_precision_and_autocast():
    module, video = made(), torch.randn(1, 1, 8, 16, 32)
    wanted = module(video)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(video)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=0.05)
    found = module.bfloat16()(video.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "options", [{}, {"radius": 0.7, "rotary": SphericalRotaryEmbedding(16, 16)}], ids=["", "radius"]
)
def test_compiles_without_a_break(options):
    module = made(**options)
    video = torch.randn(1, 2, 8, 16, 32)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = compiled(video)
    torch.testing.assert_close(found, module(video), rtol=0, atol=32 * EPSILON)
    found.sum().backward()
    assert module.zonal.grad.isfinite().all()


def test_a_grid_made_in_inference_mode_serves_training():
    with torch.inference_mode():
        made()(torch.randn(1, 1, 3, 6, 32))
    made()(torch.randn(1, 1, 3, 6, 32)).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 33}, "dim: expected a multiple of num_heads = 2, got 33"),
        ({"dim": 24}, "dim: expected 16 to 128 channels for each of 2 heads"),
        ({"dim": 512}, "dim: expected 16 to 128"),
        ({"zonal_degree": 4}, "zonal_degree: expected None or 0 to 3, got 4"),
        ({"rotary": SphericalRotaryEmbedding(32, 16)}, "rotary: expected head_dim 16, got 32"),
    ],
)
def test_says_what_is_wrong_when_made(options, message):
    with pytest.raises(ValueError, match=f"SphericalAttention: {message}"):
        made(**options)


def test_says_what_is_wrong_when_called():
    module = made()
    with pytest.raises(ValueError, match="tokens: expected"):
        module(torch.zeros(1, 4, 8, 32))
    with pytest.raises(ValueError, match="directions: expected None"):
        module(torch.zeros(1, 1, 2, 4, 32), torch.zeros(8, 3))
    with pytest.raises(ValueError, match="directions: expected a tensor"):
        module(torch.zeros(1, 8, 32))
    with pytest.raises(ValueError, match="directions: expected shape"):
        module(torch.zeros(1, 8, 32), torch.zeros(7, 3))
    with pytest.raises(ValueError, match="unit vectors"):
        module(torch.zeros(1, 8, 32), torch.ones(8, 3))
