"""Rectified flow from noise to latents: its times, its losses, and the samplers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .condition import Condition

if TYPE_CHECKING:
    from .dit import Context
    from .model import WorldModel

TIME_MEAN, TIME_DEVIATION = 0.0, 1.0  # of the logit of the times that are trained
UNIFORM_SHARE = 0.25  # of the times are drawn evenly: those near 0, where sampling starts, would else hardly be trained
LAST_TIME = 1 - 1e-3  # where training ends: from there on nothing is left to predict
SHIFT = 2.5  # how much denser the times of sampling lie at the noise
SMALLEST_REST = 0.05  # what 1 - t counts at least as where a velocity is divided by it
SAMPLERS = ("euler", "heun")


def sample_time(count: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Times of training, `[count]` float32 below 1: three of four are sigmoid(N(0, 1)), the others uniform.

    Example:
        >>> times = sample_time(1000, torch.Generator().manual_seed(0))
        >>> times.shape, 0 < times.min().item() < times.max().item() < 1
        (torch.Size([1000]), True)
    """
    where = device if generator is None else generator.device
    logit = TIME_MEAN + TIME_DEVIATION * torch.randn(count, generator=generator, device=where)
    uniform, choice = torch.rand(2, count, generator=generator, device=where)
    return torch.where(choice < UNIFORM_SHARE, uniform, logit.sigmoid()).clamp(max=LAST_TIME).to(device)


def add_noise(
    latents: Tensor,  # [B, T, h, w, C]
    noise: Tensor,  # [B, T, h, w, C]
    time: Tensor,  # [B]
) -> Tensor:  # [B, T, h, w, C]
    """``z = t x + (1 - t) noise``.

    Source: Liu, Gong and Liu 2023, "Flow straight and fast", section 2.
    """
    share = time.view(-1, *[1] * (latents.ndim - 1))
    return share * latents + (1 - share) * noise


def shift_time(
    time: Tensor,  # [...] 0..1
    shift: float = SHIFT,
) -> Tensor:  # [...]
    """``t / (t + shift (1 - t))``: times moved towards the noise, where the most is decided; 0 and 1 stay.

    Source: Esser et al. 2024, "Scaling rectified flow transformers for high-resolution image synthesis", section 5.3.2.

    Example:
        >>> shift_time(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist()
        [0.0, 0.25, 1.0]
    """
    return time / (time + shift * (1 - time))


def flow_loss(
    predicted: Tensor,  # [B, T, h, w, C]
    latents: Tensor,  # [B, T, h, w, C]
    weight: Tensor | None = None,  # [B, T, h, w]
) -> Tensor:  # []
    """Mean squared error of the predicted latents over the sphere, each row by the cosine of its latitude.

    Args:
        predicted, latents: `[B, T, h, w, C]`.
        weight: `[B, T, h, w]`, what else each latent counts; None: all the same.

    Returns:
        A scalar, 0 if nothing counts; gradients to predicted and latents.
    """
    error = (predicted.float() - latents.float()).square().mean(-1)
    return sphere_mean(error, weight)


def consistency_loss(
    rgbd: Tensor,  # [B, T, H, W, 4]
    memory: Tensor,  # [B, T, H, W, 4]
    visibility: Tensor,  # [B, T, H, W] 0..1
) -> Tensor:  # []
    """Mean absolute difference of decoded frames and what the memory shows, where it shows something.

    Returns:
        A scalar, 0 if the memory shows nothing; gradients to all.
    """
    return sphere_mean((rgbd.float() - memory.float()).abs().mean(-1), visibility)


def sphere_mean(
    error: Tensor,  # [..., H, W]
    weight: Tensor | None = None,  # [..., H, W]
) -> Tensor:  # []
    """Mean over panoramas by the solid angle of their pixels, cos(latitude), and by a weight; 0 if nothing counts."""
    height = error.shape[-2]
    latitude = (0.5 - (torch.arange(height, device=error.device, dtype=error.dtype) + 0.5) / height) * torch.pi
    area = latitude.cos()[:, None].expand(error.shape)
    if weight is not None:
        area = area * weight
    return (error * area).sum() / area.sum().clamp_min(torch.finfo(error.dtype).tiny)


@torch.no_grad()
def sample(
    model: WorldModel,
    condition: Condition,
    steps: int = 2,
    sampler: str = "euler",
    text_guidance: float = 1.0,
    memory_guidance: float = 1.0,
    roll: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:  # [B, T, H, W, 4]
    """RGB-D frames of a condition, from noise in a few steps.

    With x(z, t) what the model predicts, from z = noise at t = 0, over times t -> t' that `shift_time` spaces::

        velocity = (x(z, t) - z) / (1 - t),   z' = z + (t' - t) velocity                        (euler)
        z' = z + (t' - t) (velocity + velocity(z', t')) / 2                                     (heun)
        x = x_full + (text_guidance - 1) (x_full - x_no_text) + (memory_guidance - 1) (x_full - x_no_memory)

    The result is the last prediction, decoded with what is known and visible at full resolution. A guidance of 1 costs
    nothing, any other a further pass of the model a step, and heun a second pass in all steps but the last.

    Args:
        model: a `WorldModel`.
        condition: of B segments; on the model's device.
        steps: at least 1, which gives the mean of what may be there: nearest to the truth, smooth, and about the same
            whatever the seed. 2 to 4 give one of the things that may be there.
        sampler: "euler" or "heun".
        text_guidance, memory_guidance: more than 1 exaggerates what the words, or the memory, change; 0 ignores them.
        roll: turns the panoramas by a random number of pixels, and before each step by one of tokens, and back after
            it, so that what a model does differently at some columns, such as borders of tokens, lies anywhere.
        generator: of the noise and the turns; on the CPU, its numbers are the same for every device.

    Returns:
        `[B, T, H, W, 4]`, as by `encode_rgbd`.

    Raises:
        ValueError: steps below 1, or another sampler.
    """
    if steps < 1:
        raise ValueError(f"sample: steps: expected at least 1, got {steps}")
    if sampler not in SAMPLERS:
        raise ValueError(f"sample: sampler: expected one of {', '.join(SAMPLERS)}, got {sampler!r}")
    where = "cpu" if generator is None else generator.device

    def turn(ways: int) -> int:
        return int(torch.randint(ways, (), generator=generator, device=where)) if roll else 0

    columns = turn(condition.known.shape[-2])
    filled = condition.filled().roll(columns, -2)  # not of what is turned: the filling has seams of its own
    condition = condition.roll(columns)
    full = model.context(condition, filled)
    others: list[tuple[float, Context]] = []
    if text_guidance != 1:
        others.append((text_guidance - 1, model.context(condition.without_text())))
    if memory_guidance != 1:
        others.append((memory_guidance - 1, model.context(condition.without_memory())))
    batch, *shape = full.base.shape
    noise = torch.stack([model.autoencoder.noise(shape, generator) for _ in range(batch)]).to(full.base)
    tokens = full.tokens.shape[-2]
    patch = full.base.shape[-2] // tokens

    def predict(
        latents: Tensor,  # [B, T, h, w, C]
        time: Tensor,  # []
    ) -> Tensor:  # [B, T, h, w, C]
        ahead = turn(tokens)
        turned, times = latents.roll(ahead * patch, -2), time.expand(latents.shape[0])
        x = model.dit(turned, times, full.roll(ahead))
        guided = x + sum(scale * (x - model.dit(turned, times, context.roll(ahead))) for scale, context in others)
        return guided.roll(-ahead * patch, -2)

    latents = integrate(predict, noise, steps, sampler)
    return model.decode(latents, condition, filled).roll(-columns, -2)


def integrate(
    predict: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,  # [B, T, h, w, C]
    steps: int,
    sampler: str = "euler",
) -> Tensor:  # [B, T, h, w, C]
    """The flow from noise to data, of a function that predicts the data at (z, t); ends with its last prediction."""
    times = shift_time(torch.linspace(0, 1, steps + 1, device=noise.device))
    latents, x = noise, noise
    for step, (time, following) in enumerate(pairwise(times)):
        x = predict(latents, time)
        if step == steps - 1:
            break
        velocity = (x - latents) / (1 - time).clamp_min(SMALLEST_REST)
        ahead = latents + (following - time) * velocity
        if sampler == "heun":
            further = (predict(ahead, following) - ahead) / (1 - following).clamp_min(SMALLEST_REST)
            ahead = latents + (following - time) * (velocity + further) / 2
        latents = ahead
    return x
