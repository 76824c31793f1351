"""Rectified flow: its times, the losses over the sphere, the samplers and guidance."""

import math

import pytest
import torch

from evoworld.world.autoencoder import Autoencoder, AutoencoderConfig
from evoworld.world.dit import Context
from evoworld.world.flow import (
    LAST_TIME,
    add_noise,
    consistency_loss,
    flow_loss,
    integrate,
    sample,
    sample_time,
    shift_time,
    sphere_mean,
)


def test_times_are_drawn_around_theirs_and_never_reach_the_data():
    times = sample_time(40_000, torch.Generator().manual_seed(0))
    assert times.dtype == torch.float32 and times.shape == (40_000,)
    assert times.min() > 0 and times.max() <= LAST_TIME < 1
    for time in (0.1, 0.3, 0.5, 0.7, 0.9):
        logistic = torch.special.ndtr(torch.tensor(math.log(time / (1 - time)))).item()
        assert (times < time).float().mean().item() == pytest.approx(0.75 * logistic + 0.25 * time, abs=0.01)
    assert torch.equal(times, sample_time(40_000, torch.Generator().manual_seed(0)))


def test_noise_is_mixed_in_by_the_time_of_each_segment():
    latents, noise = torch.ones(3, 1, 2, 4, 1), -torch.ones(3, 1, 2, 4, 1)
    mixed = add_noise(latents, noise, torch.tensor([0.0, 0.75, 1.0]))
    assert mixed.flatten(1)[:, 0].tolist() == [-1.0, 0.5, 1.0]


def test_shifted_times_lie_at_the_noise():
    times = shift_time(torch.linspace(0, 1, 11))
    assert times[0] == 0 and times[-1] == 1 and (times.diff() > 0).all()
    assert (times[1:-1] < torch.linspace(0, 1, 11)[1:-1]).all()
    assert torch.equal(shift_time(times, 1.0), times)


def test_means_are_over_the_sphere():
    error = torch.tensor([1.0, 3.0, 3.0, 1.0])[:, None].expand(2, 4, 8)
    cosine = [math.cos(math.pi * (0.5 - (row + 0.5) / 4)) for row in range(4)]
    expected = sum(c * e for c, e in zip(cosine, (1, 3, 3, 1))) / sum(cosine)
    assert sphere_mean(error).item() == pytest.approx(expected)
    poles = torch.tensor([1.0, 0.0, 0.0, 1.0])[:, None].expand(2, 4, 8)
    assert sphere_mean(error, poles).item() == pytest.approx(1.0)
    assert sphere_mean(error, torch.zeros(2, 4, 8)).item() == 0


def test_losses():
    predicted, latents = torch.zeros(1, 2, 4, 8, 3), torch.full((1, 2, 4, 8, 3), 2.0)
    assert flow_loss(predicted, latents).item() == pytest.approx(4.0)
    visibility = torch.zeros(1, 2, 4, 8)
    visibility[:, 0] = 1
    memory = torch.zeros(1, 2, 4, 8, 4)
    memory[:, 1] = 7.0
    rgbd = torch.full((1, 2, 4, 8, 4), 0.5, requires_grad=True)
    loss = consistency_loss(rgbd, memory, visibility)
    loss.backward()
    assert loss.item() == pytest.approx(0.5)
    assert (rgbd.grad[:, 0] > 0).all() and (rgbd.grad[:, 1] == 0).all()


def gaussian(mean, deviation):
    """The best prediction of data N(mean, deviation^2) from z = t x + (1 - t) noise, and the flow's own end."""

    def predict(latents, time):
        gain = deviation**2 * time / (time**2 * deviation**2 + (1 - time) ** 2)
        return mean + gain * (latents - time * mean)

    return predict, lambda noise: mean + deviation * noise


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_integrates_the_flow(sampler):
    noise = torch.randn(1, 1, 8, 16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predict, end = gaussian(0.7, 0.5)
    few, many = ((integrate(predict, noise, steps, sampler) - end(noise)).abs().max() for steps in (2, 200))
    assert many < 0.04 < 10 * many < few


def test_heun_is_the_more_accurate():
    noise = torch.randn(1, 1, 8, 16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predict, end = gaussian(0.7, 0.5)
    euler, heun = ((integrate(predict, noise, 12, sampler) - end(noise)).std() for sampler in ("euler", "heun"))
    assert heun < 0.5 * euler


@pytest.mark.parametrize("steps", [1, 3])
def test_certain_data_are_reached_in_any_number_of_steps(steps):
    data = torch.randn(1, 1, 2, 4, 3)
    assert torch.equal(integrate(lambda latents, time: data, torch.randn(data.shape), steps), data)


class CountingModel:
    """Stands for a model: predicts a number for each condition, and notes what it is asked."""

    def __init__(self):
        self.passes = []
        self.turned = set()
        self.autoencoder = Autoencoder(AutoencoderConfig())  # white noise

    def context(self, condition, filled=None):
        words, memory = bool(condition.text_mask.any()), bool(condition.visibility.any())
        frames = condition.visibility.shape[:2]
        ramp = torch.arange(8.0).view(1, 1, 1, 8, 1).expand(*frames, 4, 8, 1)
        value = torch.full((*frames, 4, 8, 1), 1.0 + 10 * words + 100 * memory)
        return Context(torch.cat((value, ramp), -1), ramp, condition.text, condition.text_mask)

    def dit(self, latents, time, context):
        self.passes.append((float(context.base[0, 0, 0, 0, 0]), float(time[0])))
        self.turned.add(int(context.tokens[0, 0, 0, 0, 0]))
        assert torch.equal(context.tokens, context.base[..., 1:])
        return context.base

    def decode(self, latents, condition, filled):
        seen = condition.visibility == 1
        assert torch.equal(filled[seen], condition.filled()[seen])
        return torch.cat((latents.repeat_interleave(4, 2).repeat_interleave(4, 3), condition.known), -1)


def test_passes_and_guidance(random_condition):
    condition = random_condition()
    model = CountingModel()
    assert (sample(model, condition, steps=3)[..., 0] == 111).all()
    assert len(model.passes) == 3, "what has a guidance of 1 takes no pass of its own"
    assert [time for _, time in model.passes] == shift_time(torch.linspace(0, 1, 4))[:3].tolist()

    model = CountingModel()
    output = sample(model, condition, steps=1, text_guidance=3.0, memory_guidance=1.5)
    assert sorted(value for value, _ in model.passes) == [11, 101, 111]
    assert (output[..., 0] == 111 + 2 * (111 - 101) + 0.5 * (111 - 11)).all()

    model = CountingModel()
    assert (sample(model, condition, steps=1, memory_guidance=0.0)[..., 0] == 11).all()
    assert len(sample_passes(condition, sampler="heun", steps=3)) == 5


def sample_passes(condition, **options):
    model = CountingModel()
    sample(model, condition, **options)
    return model.passes


def test_turns_are_random_and_undone(random_condition):
    """By tokens before each step, and by pixels all together: what is known is where it was, tokens lie anywhere."""
    model, condition, ways = CountingModel(), random_condition(), set()
    ramp = torch.arange(8.0).repeat_interleave(4)
    for seed in range(4):
        output = sample(model, condition, steps=12, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(output[..., 2:], condition.known)
        first = int((output[0, 0, 0, :, 1] - output[0, 0, 0, :, 1].roll(1)).argmin())  # column where the ramp begins
        assert torch.equal(output[..., 1], ramp.roll(first).expand(output[..., 1].shape))
        ways.add(first)
    assert len(model.turned) > 3 and len(ways) == 4 and any(first % 4 for first in ways)
    model = CountingModel()
    output = sample(model, condition, steps=12, roll=False)
    assert model.turned == {0} and torch.equal(output[..., 1], ramp.expand(output[..., 1].shape))


@pytest.mark.parametrize(("options", "name"), [({"steps": 0}, "steps"), ({"sampler": "rk4"}, "sampler")])
def test_says_what_it_cannot_do(options, name, random_condition):
    with pytest.raises(ValueError, match=f"sample: {name}: expected"):
        sample(CountingModel(), random_condition(), **options)
