"""The Panorama DiT: its symmetries, what reaches what, and what it is before training."""

from dataclasses import replace

import pytest
import torch

from evoworld.world.dit import DiTConfig, PanoramaDiT, from_patches, to_patches

SMALL = DiTConfig(
    latent_channels=6, dim=32, num_heads=2, depth=3, stem_dim=16, text_dim=12, feature_dim=5, rotary_width=8
)


def inputs_of(config, random_condition, **options):
    condition = random_condition(feature_dim=config.feature_dim, token=config.token_size, **options)
    generator = torch.Generator().manual_seed(7)
    batch, frames, height, width = condition.visibility.shape
    factor = config.token_size // config.patch_size
    shape = batch, frames, height // factor, width // factor, config.latent_channels
    base, latents = (torch.randn(shape, generator=generator) for _ in range(2))
    return condition, condition.filled(), base, latents


def predict(dit, condition, filled, base, latents, time=0.3):
    times = torch.full((latents.shape[0],), time)
    return dit(latents, times, dit.context(condition, filled, base))


@pytest.fixture
def dit(perturb):
    torch.manual_seed(0)
    return perturb(PanoramaDiT(SMALL))


def test_predicts_the_base_before_training(random_condition):
    condition, filled, base, latents = inputs_of(SMALL, random_condition, batch=2)
    assert torch.equal(predict(PanoramaDiT(SMALL), condition, filled, base, latents), base)


@pytest.mark.parametrize(
    "change",
    [{}, {"joint": False}, {"patch_size": 2}, {"patch_size": 2, "head_dim": 8}],
    ids=["joint", "frames", "patches", "head"],
)
@pytest.mark.parametrize("turn", [1, 5])
def test_rolls_with_its_inputs(change, turn, random_condition, perturb):
    config = replace(SMALL, **change)
    dit = perturb(PanoramaDiT(config))
    condition, filled, base, latents = inputs_of(config, random_condition)
    output = predict(dit, condition, filled, base, latents)
    pixels, step = turn * config.token_size, turn * config.patch_size
    turned = condition.roll(pixels), filled.roll(pixels, -2), base.roll(step, -2), latents.roll(step, -2)
    torch.testing.assert_close(predict(dit, *turned), output.roll(step, -2), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(output, base, atol=0.1), "a test of the network, not of its base"


def test_a_rolled_context_is_that_of_the_rolled_condition(dit, random_condition):
    condition, filled, base, _ = inputs_of(SMALL, random_condition)
    rolled = dit.context(condition, filled, base).roll(3)
    made = dit.context(condition.roll(12), filled.roll(12, -2), base.roll(3, -2))
    torch.testing.assert_close(rolled.tokens, made.tokens, atol=1e-5, rtol=1e-5)
    assert torch.equal(rolled.base, made.base)


def test_frames_may_come_in_any_order(dit, random_condition):
    condition, filled, base, latents = inputs_of(SMALL, random_condition, frames=3)
    output = predict(dit, condition, filled, base, latents)
    order = torch.tensor([2, 0, 1])
    names = "known", "known_mask", "memory", "visibility", "position", "features"
    shuffled = replace(condition, **{name: getattr(condition, name)[:, order] for name in names})
    again = predict(dit, shuffled, filled[:, order], base[:, order], latents[:, order])
    torch.testing.assert_close(again, output[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("joint", [True, False])
def test_every_frame_reaches_every_other_and_no_other_segment(joint, random_condition, perturb):
    dit = perturb(PanoramaDiT(replace(SMALL, joint=joint)))
    condition, filled, base, latents = inputs_of(SMALL, random_condition, batch=2, frames=3)
    latents.requires_grad_()
    predict(dit, condition, filled, base, latents)[0, 0].square().sum().backward()
    assert (latents.grad[0].abs().amax((1, 2, 3)) > 0).all()
    assert (latents.grad[1] == 0).all()


def test_every_condition_matters(dit, random_condition):
    condition, filled, base, latents = inputs_of(SMALL, random_condition)
    output = predict(dit, condition, filled, base, latents)
    others = {
        "known": replace(condition, known=-condition.known),
        "known_mask": replace(condition, known_mask=1 - condition.known_mask),
        "memory": replace(condition, memory=-condition.memory),
        "visibility": replace(condition, visibility=1 - condition.visibility),
        "position": replace(condition, position=2 * condition.position),
        "text": replace(condition, text=-condition.text),
        "features": replace(condition, features=-condition.features),
    }
    for name, other in others.items():
        changed = predict(dit, other, filled, base, latents)
        assert (changed - output).abs().max() > 1e-3, name
    assert (predict(dit, condition, -filled, base, latents) - output).abs().max() > 1e-3
    assert (predict(dit, condition, filled, base, latents, time=0.9) - output).abs().max() > 1e-3


def test_what_a_mask_hides_means_nothing(dit, random_condition):
    condition, filled, base, latents = inputs_of(SMALL, random_condition)
    output = predict(dit, condition, filled, base, latents)
    unknown = torch.cat((condition.known_mask[..., :1].expand_as(filled[..., :3]), condition.known_mask[..., 1:]), -1)
    other = replace(
        condition,
        known=torch.where(unknown > 0, condition.known, 9.0),
        memory=torch.where(condition.visibility[..., None] > 0, condition.memory, -9.0),
    )
    assert torch.equal(predict(dit, other, filled, base, latents), output)


def test_masked_words_and_no_words_are_the_same(dit, random_condition):
    condition, filled, base, latents = inputs_of(SMALL, random_condition)
    without = predict(dit, condition.without_text(), filled, base, latents)
    empty = replace(condition, text=condition.text[:, :0], text_mask=condition.text_mask[:, :0])
    torch.testing.assert_close(predict(dit, empty, filled, base, latents), without, atol=1e-5, rtol=1e-5)
    padded = replace(
        condition,
        text=torch.cat((condition.text, torch.full_like(condition.text, 9.0)), 1),
        text_mask=torch.cat((condition.text_mask, torch.zeros_like(condition.text_mask)), 1),
    )
    expected = predict(dit, condition, filled, base, latents)
    torch.testing.assert_close(predict(dit, padded, filled, base, latents), expected, atol=1e-5, rtol=1e-5)


def test_no_features_are_features_of_zero(dit, random_condition):
    condition, filled, base, latents = inputs_of(SMALL, random_condition)
    zero = replace(condition, features=torch.zeros_like(condition.features))
    none = replace(condition, features=None)
    outputs = [predict(dit, one, filled, base, latents) for one in (zero, none)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("words", [0, 3])
def test_every_parameter_gets_a_gradient(dit, words, random_condition):
    """Whatever a condition lacks: processes that train together wait for all of them."""
    condition, filled, base, latents = inputs_of(SMALL, random_condition, words=words)
    predict(dit, replace(condition, features=None), filled, base, latents).square().sum().backward()
    assert [name for name, parameter in dit.named_parameters() if parameter.grad is None] == []
    zero = {name for name, parameter in dit.named_parameters() if not parameter.grad.any()}
    assert zero - {"text_in.weight", "text_in.bias"} == {"features_in.weight"}
    assert ("text_in.weight" in zero) == (words == 0)


def test_checkpointing_changes_no_gradient(random_condition, perturb):
    condition, filled, base, latents = inputs_of(SMALL, random_condition)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        dit = perturb(PanoramaDiT(replace(SMALL, checkpointing=checkpointing)))
        predict(dit, condition, filled, base, latents).square().sum().backward()
        gradients.append([parameter.grad for parameter in dit.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


def test_runs_in_bfloat16_under_autocast(dit, random_condition):
    condition, filled, base, latents = inputs_of(SMALL, random_condition)
    exact = predict(dit, condition, filled, base, latents)
    with torch.autocast("cpu", torch.bfloat16):
        output = predict(dit, condition, filled, base, latents)
    spread = (exact - base).std()
    assert (output.float() - exact).std() < 0.05 * spread


def test_patches_of_latents():
    latents = torch.arange(2 * 4 * 8 * 3.0).reshape(1, 2, 4, 8, 3)
    tokens = to_patches(latents, 2)
    assert tokens.shape == (1, 2, 2, 4, 12)
    assert torch.equal(tokens[0, 1, 1, 2], latents[0, 1, 2:4, 4:6].flatten())
    assert torch.equal(from_patches(tokens, 2), latents)


@pytest.mark.parametrize(("name", "value"), [("token_size", 3), ("token_size", 1), ("patch_size", 3)])
def test_sizes_that_do_not_fit(name, value):
    with pytest.raises(ValueError, match=f"DiTConfig: {name}"):
        replace(SMALL, **{name: value})
