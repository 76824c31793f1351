"""RGB-D panoramas to latents and back; the way back takes what is known at full resolution as a skip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evoworld.nn import SphericalConv2d

from .flow import sphere_mean
from .noise import panorama_noise
from .rgbd import per_channel

KINDS = ("vae", "none", "diffusers")
GROUPS = 8  # of the group normalisations
LOG_VARIANCE = (-12.0, 4.0)  # of a latent, that exp() is asked for
STATISTICS_MOMENTUM = 0.01  # of the mean and deviation of the latents, a training step
SMALLEST_DEVIATION = 1e-3
PIXEL_DEVIATION = 0.5  # about that of RGB-D values of -1 to 1; a power of two, so that dividing by it is exact


@dataclass(frozen=True)
class AutoencoderConfig:
    """Which autoencoder, and its sizes."""

    kind: str = "vae"  # "vae": ours; "none": pixels; "diffusers": one from a folder
    factor: int = 4  # pixels a latent is wide and high; a power of two
    latent_channels: int = 16  # "none": 4 factor^2; "diffusers": twice the folder's
    dim: int = 32  # channels at full resolution, twice as many at each halving
    refiner_dim: int = 32
    kl_weight: float = 1e-4
    folder: str = ""  # of a diffusers AutoencoderKL

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"AutoencoderConfig: kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.factor < 2 or self.factor & (self.factor - 1):
            raise ValueError(f"AutoencoderConfig: factor: expected a power of two from 2 on, got {self.factor}")
        if self.kind == "none" and self.latent_channels != 4 * self.factor**2:
            channels = f"4 factor^2 = {4 * self.factor**2} with kind 'none'"
            raise ValueError(f"AutoencoderConfig: latent_channels: expected {channels}, got {self.latent_channels}")


class ResidualBlock(nn.Module):
    """x + conv(gelu(norm(conv(gelu(norm(x)))))), spherically padded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        first, second = SphericalConv2d(dim, dim, 3), SphericalConv2d(dim, dim, 3)
        self.layers = nn.Sequential(
            nn.GroupNorm(GROUPS, dim), nn.GELU(), first, nn.GroupNorm(GROUPS, dim), nn.GELU(), second
        )

    def forward(
        self,
        planes: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # [B, C, H, W]
        return planes + self.layers(planes)


class Refiner(nn.Module):
    """What is visible instead of the draft, and a correction of both that is zero before training.

    ``mixed = draft + visibility (skip - draft)``, ``output = mixed + convs([mixed, draft, skip, visibility])``. Four
    small convolutions without normalisation: a pixel's correction depends on what is around it alone.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        last = SphericalConv2d(dim, 4, 3)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        layers = [SphericalConv2d(14, dim, 3), SphericalConv2d(dim, dim, 3), SphericalConv2d(dim, dim, 3)]
        self.layers = nn.Sequential(*(x for layer in layers for x in (layer, nn.GELU())), last)

    def forward(
        self,
        draft: Tensor,  # [B, T, H, W, 4]
        skip: Tensor,  # [B, T, H, W, 4]
        visibility: Tensor,  # [B, T, H, W] or [B, T, H, W, 2]
    ) -> Tensor:  # [B, T, H, W, 4]
        visibility = colour_and_depth(visibility)
        mixed = torch.lerp(draft, skip.to(draft.dtype), per_channel(visibility).to(draft.dtype))
        correction = self.layers(to_planes(torch.cat((mixed, draft, skip, visibility), -1)))
        return mixed + from_planes(correction, draft.shape[:2])


class Autoencoder(nn.Module):
    """What all autoencoders share: `encode` and `decode`.

    Latents ``[B, T, H / factor, W / factor, C]`` have about zero mean and unit variance; ``posterior`` and
    ``draft_raw``, what an autoencoder is made of, lie before that normalisation. `decode` gives a draft from the
    latents alone; with a skip, RGB-D at full resolution that is to be kept where it is visible, the `Refiner`'s output.
    Rolling by multiples of ``factor`` pixels commutes with both.
    """

    def __init__(self, config: AutoencoderConfig, deviation: float = 1.0, mean: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.refiner = Refiner(config.refiner_dim)
        self.register_buffer("latent_mean", torch.full((config.latent_channels,), mean))
        self.register_buffer("latent_deviation", torch.full((config.latent_channels,), deviation))

    def encode(
        self,
        rgbd: Tensor,  # [B, T, H, W, 4]
    ) -> Tensor:  # [B, T, h, w, C]
        """Latents of panoramas, without noise; gradients to rgbd."""
        factor, shape = self.config.factor, rgbd.shape
        if len(shape) != 5 or shape[-1] != 4 or shape[2] % factor or shape[3] % (2 * factor):
            expected = f"[B, T, H, W, 4] with H and W / 2 multiples of {factor}"
            raise ValueError(f"{type(self).__name__}: rgbd: expected {expected}, got {list(shape)}")
        return (self.posterior(rgbd)[0] - self.latent_mean) / self.latent_deviation

    def decode(
        self,
        latents: Tensor,  # [B, T, h, w, C]
        skip: Tensor | None = None,  # [B, T, H, W, 4]
        visibility: Tensor | None = None,  # [B, T, H, W] or, of colour and depth, [B, T, H, W, 2]
    ) -> Tensor:  # [B, T, H, W, 4]
        """Panoramas of latents; gradients to all arguments."""
        if (skip is None) != (visibility is None):
            raise ValueError(f"{type(self).__name__}: skip and visibility: expected both or neither, got one")
        draft = self.draft(latents)
        return draft if skip is None else self.refiner(draft, skip, visibility)

    def draft(
        self,
        latents: Tensor,  # [B, T, h, w, C]
    ) -> Tensor:  # [B, T, H, W, 4]
        """What the latents alone say."""
        return self.draft_raw(latents * self.latent_deviation + self.latent_mean)

    def loss(
        self,
        rgbd: Tensor,  # [B, T, H, W, 4]
        skip: Tensor | None = None,  # [B, T, H, W, 4]
        visibility: Tensor | None = None,  # [B, T, H, W] or [B, T, H, W, 2]
        known: Tensor | None = None,  # [B, T, H, W] or [B, T, H, W, 2]
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:  # each []
        """The parts of the training loss, which is their sum: "draft", "refined" (with a skip) and "kl" (of a VAE).

        Args:
            rgbd: what is to come out again.
            skip, visibility: what the decoder is given besides the latents.
            known: 0..1, how much the colour and the depth of each pixel count; None: 1. A photograph has no depth.
            generator: of the latents' noise, on the device of rgbd.
        """
        raw, log_variance = self.posterior(rgbd)
        parts = {}
        if log_variance is not None:
            parts["kl"] = self.config.kl_weight * divergence(raw, log_variance)
            noise = torch.randn(raw.shape, generator=generator, device=raw.device, dtype=raw.dtype)
            if self.training:
                self.note_statistics(raw.detach())
            raw = raw + torch.exp(0.5 * log_variance) * noise
        draft = self.draft_raw(raw)
        parts["draft"] = reconstruction_loss(draft, rgbd, known)
        if skip is not None:
            parts["refined"] = reconstruction_loss(self.refiner(draft, skip, visibility), rgbd, known)
        return parts

    def noise(
        self,
        shape: Sequence[int],  # [T, h, w, C]
        generator: torch.Generator | None = None,
    ) -> Tensor:  # [T, h, w, C]
        """What a flow to the latents of T frames starts from, of unit variance; on the device of the generator."""
        return torch.randn(*shape, generator=generator, device="cpu" if generator is None else generator.device)

    def posterior(
        self,
        rgbd: Tensor,  # [B, T, H, W, 4]
    ) -> tuple[Tensor, Tensor | None]:  # [B, T, h, w, C] both
        """Mean of the latents, and the logarithm of their variance; None where they are certain."""
        raise NotImplementedError

    def draft_raw(
        self,
        raw: Tensor,  # [B, T, h, w, C]
    ) -> Tensor:  # [B, T, H, W, 4]
        raise NotImplementedError

    @torch.no_grad()
    def note_statistics(
        self,
        raw: Tensor,  # [B, T, h, w, C]
    ) -> None:
        rows = raw.flatten(0, -2)
        deviation = rows.std(0, correction=0).clamp_min(SMALLEST_DEVIATION)
        self.latent_mean.lerp_(rows.mean(0), STATISTICS_MOMENTUM)
        self.latent_deviation.lerp_(deviation, STATISTICS_MOMENTUM)


class PanoramaVAE(Autoencoder):
    """A variational autoencoder of convolutions that know neither seam nor pole.

    Its latents are normalised by their running mean and deviation, which `loss` keeps up to date in training mode and
    which are buffers: what follows the weights (an average of them, a checkpoint) must take them along.

    Source: Kingma and Welling 2014; the shape of a latent diffusion model's as in Rombach et al. 2022.

    Example:
        >>> vae = PanoramaVAE(AutoencoderConfig(latent_channels=8, dim=8))
        >>> latents = vae.encode(torch.rand(1, 2, 16, 32, 4))
        >>> latents.shape, vae.decode(latents).shape
        (torch.Size([1, 2, 4, 8, 8]), torch.Size([1, 2, 16, 32, 4]))
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        halvings = config.factor.bit_length() - 1
        dims = [config.dim << i for i in range(halvings + 1)]
        layers: list[nn.Module] = [SphericalConv2d(4, dims[0], 3)]
        for before, after in pairwise(dims):
            layers += [ResidualBlock(before), SphericalConv2d(before, after, 4, stride=2)]
        layers += [ResidualBlock(dims[-1]), nn.GroupNorm(GROUPS, dims[-1]), nn.GELU()]
        self.encoder = nn.Sequential(*layers, SphericalConv2d(dims[-1], 2 * config.latent_channels, 1))

        layers = [SphericalConv2d(config.latent_channels, dims[-1], 3), ResidualBlock(dims[-1])]
        for before, after in pairwise(dims[::-1]):
            layers += [nn.Upsample(scale_factor=2), SphericalConv2d(before, after, 3), ResidualBlock(after)]
        layers += [nn.GroupNorm(GROUPS, dims[0]), nn.GELU(), SphericalConv2d(dims[0], 4, 3)]
        self.decoder = nn.Sequential(*layers)

    def posterior(
        self,
        rgbd: Tensor,  # [B, T, H, W, 4]
    ) -> tuple[Tensor, Tensor]:  # [B, T, h, w, C] both
        coded = from_planes(self.encoder(to_planes(rgbd)).float(), rgbd.shape[:2])
        mean, log_variance = coded.chunk(2, -1)
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def draft_raw(
        self,
        raw: Tensor,  # [B, T, h, w, C]
    ) -> Tensor:  # [B, T, H, W, 4]
        return from_planes(self.decoder(to_planes(raw)), raw.shape[:2])


class PixelAutoencoder(Autoencoder):
    """No autoencoder: a latent is a square of pixels; the way back, without a skip, is exact.

    Example:
        >>> pixels = PixelAutoencoder(AutoencoderConfig(kind="none", latent_channels=64))
        >>> rgbd = torch.rand(1, 1, 8, 16, 4)
        >>> torch.equal(pixels.decode(pixels.encode(rgbd)), rgbd)
        True
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config, deviation=PIXEL_DEVIATION)

    def noise(
        self,
        shape: Sequence[int],  # [T, h, w, 4 factor^2]
        generator: torch.Generator | None = None,
    ) -> Tensor:  # [T, h, w, 4 factor^2]
        """That of `panorama_noise`."""
        pixels = panorama_noise(shape[0], shape[1] * self.config.factor, generator)
        return self.posterior(pixels[None])[0][0]

    def posterior(
        self,
        rgbd: Tensor,  # [B, T, H, W, 4]
    ) -> tuple[Tensor, None]:  # [B, T, h, w, 4 factor^2]
        return from_planes(F.pixel_unshuffle(to_planes(rgbd), self.config.factor), rgbd.shape[:2]), None

    def draft_raw(
        self,
        raw: Tensor,  # [B, T, h, w, 4 factor^2]
    ) -> Tensor:  # [B, T, H, W, 4]
        return from_planes(F.pixel_shuffle(to_planes(raw), self.config.factor), raw.shape[:2])


def make_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """The autoencoder that a configuration asks for."""
    if config.kind == "diffusers":
        from .diffusers_autoencoder import DiffusersAutoencoder

        return DiffusersAutoencoder(config)
    return {"vae": PanoramaVAE, "none": PixelAutoencoder}[config.kind](config)


def divergence(
    mean: Tensor,  # [B, T, h, w, C]
    log_variance: Tensor,  # [B, T, h, w, C]
) -> Tensor:  # []
    """Kullback-Leibler divergence from N(0, 1), mean over channels and the sphere, in nats."""
    return sphere_mean(0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(-1))


def reconstruction_loss(
    output: Tensor,  # [B, T, H, W, 4]
    rgbd: Tensor,  # [B, T, H, W, 4]
    known: Tensor | None = None,  # [B, T, H, W] or [B, T, H, W, 2]
) -> Tensor:  # []
    """Mean absolute error over the sphere of colour (three quarters) and log-depth (one quarter).

    Each pixel counts by the cosine of its latitude and by `known`, for colour and depth apart. Gradients to output.
    """
    error = (output.float() - rgbd.float()).abs()
    weight = colour_and_depth(known if known is not None else error.new_ones(()).expand(error.shape[:-1]))
    colour = sphere_mean(error[..., :3].mean(-1), weight[..., 0])
    return 0.75 * colour + 0.25 * sphere_mean(error[..., 3], weight[..., 1])


def colour_and_depth(
    weight: Tensor,  # [B, T, H, W] or [B, T, H, W, 2]
) -> Tensor:  # [B, T, H, W, 2]
    return weight if weight.ndim == 5 else torch.stack((weight, weight), -1)


def to_planes(
    images: Tensor,  # [B, T, H, W, C]
) -> Tensor:  # [B T, C, H, W]
    return images.flatten(0, 1).movedim(-1, 1)


def from_planes(
    planes: Tensor,  # [B T, C, H, W]
    batch: torch.Size,  # [B, T]
) -> Tensor:  # [B, T, H, W, C]
    return planes.movedim(1, -1).unflatten(0, batch)
