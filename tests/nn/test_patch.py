"""patch_attention on torch's own attention, on modules that call its function, and on a small Wan transformer."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from evoworld.geometry import Panorama
from evoworld.nn import patch_attention, unpatch_attention

GRID = (4, 8)
LENGTH = GRID[0] * GRID[1]
DIRECTIONS = Panorama(*GRID).directions(torch.float64)
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


class Vit(nn.Module):
    """Two blocks with attention by torch's function, and a text that they look at."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": Attention(), "mlp": nn.Linear(32, 32)}) for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = x + block["attn"](x)
            x = x + block["mlp"](x).relu()
        return x


def multihead(batch_first=True, **options):
    return nn.MultiheadAttention(32, 2, batch_first=batch_first, dtype=torch.float64, **options)


@pytest.fixture(params=["multihead", "encoder", "function"])
def model(request):
    torch.manual_seed(0)
    if request.param == "multihead":

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.attention = multihead()

            def forward(self, x):
                return self.attention(x, x, x, need_weights=False)[0]

        return Model()
    if request.param == "encoder":
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, dtype=torch.float64)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Vit().double()


def patched(model, **options):
    return patch_attention(
        model, DIRECTIONS, **{"modules": ["blocks.*.attn"] if isinstance(model, Vit) else None, **options}
    )


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("frames", [1, 3])
def test_before_training_it_computes_what_it_did(model, frames, training):
    model.train(training)
    x = torch.randn(2, frames * LENGTH, 32, dtype=torch.float64)
    with torch.set_grad_enabled(training):
        plain = model(x)
        assert patched(model, area_weighted=False, zonal_degree=3) is model
        torch.testing.assert_close(model(x), plain, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_with_weights_by_area_it_computes_something_else(model, training):
    # In evaluation without gradients torch has fast paths around a module's forward.
    model.train(training)
    x = torch.randn(2, LENGTH, 32, dtype=torch.float64)
    with torch.set_grad_enabled(training):
        plain = model(x)
        assert (patched(model)(x) - plain).abs().max() > 1e-3


def test_undone_it_is_what_it_was(model, give_zonal):
    x = torch.randn(1, LENGTH, 32, dtype=torch.float64)
    plain, state, classes = model(x), set(model.state_dict()), [type(module) for module in model.modules()]
    patched(model)
    give_zonal(model)
    assert not torch.equal(model(x), plain)
    assert unpatch_attention(model) is model
    assert torch.equal(model(x), plain)
    assert set(model.state_dict()) == state and [type(module) for module in model.modules()] == classes
    patched(model)  # and again


@pytest.mark.parametrize("options", [{}, {"zonal_degree": 2, "radius": 1.0}], ids=str)
def test_turning_the_panorama_turns_the_result(model, options, give_zonal):
    patched(model, **options)
    give_zonal(model)
    x = torch.randn(2, 2, *GRID, 32, dtype=torch.float64)
    for columns in (1, 3):
        found = model(x.roll(columns, 3).flatten(1, 3))
        wanted = model(x.flatten(1, 3)).view(x.shape).roll(columns, 3).flatten(1, 3)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_zonal_is_a_parameter_like_others(model, zonal_parameters):
    names = [name for name, _ in model.named_parameters()]
    patched(model, zonal_degree=2)
    found = zonal_parameters(model)
    assert len(found) == (1 if hasattr(model, "attention") else 2)
    assert all(
        zonal.shape == (2, 3) and (zonal == 0).all() and zonal.dtype == torch.float64 for zonal in found.values()
    )
    assert sorted([*names, *found]) == sorted(name for name, _ in model.named_parameters())
    assert set(model.state_dict()) >= found.keys()

    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    x = torch.randn(1, LENGTH, 32, dtype=torch.float64)
    model(x).square().sum().backward()
    optimiser.step()
    assert all((zonal[:, 1:] != 0).all() for zonal in found.values())

    fresh = patched(unpatch_attention(copy.deepcopy(model)), zonal_degree=2)
    assert not torch.allclose(fresh(x), model(x))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


def test_copies_stand_by_themselves(model, give_zonal):
    patched(model)
    give_zonal(model)
    x = torch.randn(1, 2 * LENGTH, 32, dtype=torch.float64)
    wanted = model(x)
    twin = copy.deepcopy(model)
    give_zonal(model, seed=4)
    assert torch.equal(twin(x), wanted) and not torch.equal(model(x), wanted)
    unpatch_attention(model)
    assert torch.equal(twin(x), wanted)


def test_a_patched_module_can_be_saved_whole(give_zonal):
    model = patch_attention(multihead(), DIRECTIONS)
    give_zonal(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    x = torch.randn(1, LENGTH, 32, dtype=torch.float64)
    assert torch.equal(loaded(x, x, x, need_weights=False)[0], model(x, x, x, need_weights=False)[0])
    assert type(loaded) is type(model) and isinstance(loaded, nn.MultiheadAttention)


def test_directions_stay_exact_in_a_model_of_half_precision(model):
    patched(model)
    model.bfloat16()
    sphere = next(module for name, module in model.named_modules() if name.endswith("sphere"))
    assert sphere.zonal.dtype == torch.bfloat16
    assert torch.equal(sphere.directions, DIRECTIONS)
    assert model(torch.randn(1, LENGTH, 32, dtype=torch.bfloat16)).isfinite().all()
    model.to("meta")
    assert sphere.directions.device.type == "cpu"


def test_compiles_without_a_break(model, give_zonal, zonal_parameters):
    patched(model)
    give_zonal(model)
    x = torch.randn(1, 2 * LENGTH, 32, dtype=torch.float64)
    torch._dynamo.reset()
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, model(x), rtol=0, atol=ROUNDING)
    found.sum().backward()
    assert all(zonal.grad.isfinite().all() for zonal in zonal_parameters(model).values())


def test_tokens_that_are_no_frames_are_an_error(model):
    patched(model)
    with pytest.raises(ValueError, match=rf"T x {LENGTH} tokens.*\({LENGTH + 1}, {LENGTH + 1}\)"):
        model(torch.randn(1, LENGTH + 1, 32, dtype=torch.float64))


class WithFunction(nn.Module):
    """Two attention modules in the manner of diffusers, the second with a processor that is no object of a class."""

    class Attention(nn.Module):
        heads = 2

        def __init__(self, processor):
            super().__init__()
            self.processor = processor

        def set_processor(self, processor):
            self.processor = processor

    class Processor:
        def __call__(self, attention, tokens):
            return tokens

    def __init__(self):
        super().__init__()
        self.first, self.second = self.Attention(self.Processor()), self.Attention(lambda attention, tokens: tokens)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Vit(), {}, r"model: expected .* names that may do: \['blocks.0.attn', 'blocks.1.attn'\]"),
        (nn.Linear(2, 2), {}, "model: expected .* names that may do: \\[\\]"),
        (
            Vit(),
            {"modules": ["blocks.*.attention"]},
            r"modules: expected names in the model, got 'blocks.\*.attention'",
        ),
        (Vit(), {"modules": "blocks.*.mlp"}, "modules: expected modules with their number of heads as an attribute"),
        (multihead(), {"zonal_degree": 4}, "zonal_degree: expected None or 0 to 3"),
        (multihead(), {"directions": torch.zeros(32, 2)}, "directions: expected shape"),
        (multihead(), {"directions": torch.zeros(0, 3)}, "directions: expected at least one"),
        (multihead(), {"directions": 2 * DIRECTIONS}, "directions: expected unit vectors, got one of length 2"),
        (multihead(), {"directions": DIRECTIONS.bfloat16()}, "directions: expected"),
        (multihead(), {"key_log_weight": torch.zeros(5)}, "key_log_weight: expected shape"),
        (multihead(), {"radius": -1.0}, "radius: expected None or radians >= 0, got -1.0"),
        (WithFunction(), {}, "model: expected processors that are objects of a class, got 'second'"),
        ("a name", {}, "model: expected an nn.Module, got str"),
    ],
)
def test_bad_input_is_said_and_changes_nothing(model, options, message):
    with pytest.raises(ValueError, match=f"patch_attention: {message}"):
        patch_attention(model, **{"directions": DIRECTIONS, **options})
    assert isinstance(model, str) or not any(name.endswith("sphere") for name, _ in model.named_modules())


def test_patching_twice_is_an_error():
    model = patch_attention(multihead(), DIRECTIONS)
    with pytest.raises(ValueError, match="not patched yet"):
        patch_attention(model, DIRECTIONS)


def test_without_a_degree_there_is_no_parameter(zonal_parameters):
    model = patch_attention(multihead(), DIRECTIONS, zonal_degree=None)
    assert not zonal_parameters(model)
    x = torch.randn(1, LENGTH, 32, dtype=torch.float64)
    assert model(x, x, x)[1].sum(-1).allclose(torch.ones((), dtype=torch.float64))


def test_weights_of_their_own_replace_those_by_area():
    weight = torch.linspace(-2, 2, LENGTH, dtype=torch.float64)
    model = patch_attention(multihead(), DIRECTIONS, key_log_weight=weight)
    x = torch.zeros(1, LENGTH, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x, x, x)[1][0, 0], weight.softmax(0))


def test_a_radius_cuts(model):
    patched(model, radius=0.3, area_weighted=False, zonal_degree=None)  # next to the poles neighbours still see another
    x = torch.randn(1, LENGTH, 32, dtype=torch.float64, requires_grad=True)
    model(x)[0, LENGTH // 2].sum().backward()
    assert 0 < (x.grad[0] != 0).any(-1).sum() < LENGTH


def test_a_call_in_inference_mode_does_not_spoil_training(model):
    patched(model)
    x = torch.randn(1, 2 * LENGTH, 32, dtype=torch.float64)
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()
