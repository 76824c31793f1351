"""The Panorama DiT: a transformer over the tokens of T panoramas that predicts their latents from noisy ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evoworld.nn import SphericalAttention, SphericalConv2d, SphericalRotaryEmbedding
from evoworld.nn.attention import panorama_grid
from evoworld.nn.plucker import RAY_CHANNELS, ray_embedding

from .condition import Condition
from .rgbd import per_channel

CONDITION_CHANNELS = 15  # filled 4, known 4 and its masks 2, memory 4 and its visibility
TIME_CHANNELS = 128
TIME_SCALE = 1000.0  # the sinusoids are made for steps of a thousand


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a `PanoramaDiT`; a token is ``token_size`` pixels wide and high, ``patch_size`` latents."""

    token_size: int = 4  # a power of two
    patch_size: int = 1
    latent_channels: int = 16
    dim: int = 256
    num_heads: int = 4
    depth: int = 5  # blocks; in those of odd number tokens also attend to the words
    mlp_ratio: int = 3
    stem_dim: int = 64
    text_dim: int = 384  # E of the text's tokens
    feature_dim: int = 16  # F of the learned memory's features; 0: there are none
    rotary_width: int = 32  # tokens around the panorama, by which the frequencies are chosen
    head_dim: int = 0  # channels of two convolutions that join what the patches say; 0: there are none
    joint: bool = True  # blocks of odd number attend to all frames at once; else to each frame, then through time
    checkpointing: bool = False  # computes blocks again in the backward pass, instead of keeping what is in them

    def __post_init__(self) -> None:
        if self.token_size < 2 or self.token_size & (self.token_size - 1):
            raise ValueError(f"DiTConfig: token_size: expected a power of two from 2 on, got {self.token_size}")
        if self.token_size % self.patch_size:
            raise ValueError(
                f"DiTConfig: patch_size: expected a divisor of token_size {self.token_size}, got {self.patch_size}"
            )


@dataclass(frozen=True)
class Context:
    """What the blocks are given besides the noisy latents; the same at every step of sampling."""

    base: Tensor  # [B, T, h, w, C] latents of the prediction without a network
    tokens: Tensor  # [B, T, H, W, dim] of the condition, H x W tokens
    text: Tensor  # [B, S + 1, dim] first a token that stands for no words
    text_mask: Tensor  # [B, S + 1] bool

    def roll(self, tokens: int) -> Context:
        """The same for panoramas turned to the right by whole tokens."""
        patch = self.base.shape[-2] // self.tokens.shape[-2]
        return Context(self.base.roll(tokens * patch, -2), self.tokens.roll(tokens, -2), self.text, self.text_mask)


class ConditionStem(nn.Module):
    """Pixels of the condition to one token for each ``token_size`` squared of them."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        halvings = config.token_size.bit_length() - 1
        widths = [min(config.stem_dim << i, config.dim) for i in range(halvings - 1)] + [config.dim]
        layers: list[nn.Module] = []
        for before, after in zip([CONDITION_CHANNELS, *widths], widths):
            layers += [SphericalConv2d(before, after, 4, stride=2), nn.GELU(), SphericalConv2d(after, after, 3)]
            layers += [nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(
        self,
        condition: Condition,
        filled: Tensor,  # [B, T, H, W, 4]
    ) -> Tensor:  # [B, T, H / token, W / token, dim]
        visibility = condition.visibility[..., None]
        mask = condition.known_mask
        known = condition.known * per_channel(mask)
        pixels = torch.cat((filled, known, mask, condition.memory * visibility, visibility), -1)
        tokens = self.layers(pixels.flatten(0, 1).movedim(-1, 1))
        return tokens.movedim(1, -1).unflatten(0, pixels.shape[:2])


class TimeEmbedding(nn.Module):
    """Sinusoids of the flow's time, and a small network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(TIME_CHANNELS, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(
        self,
        time: Tensor,  # [B]
    ) -> Tensor:  # [B, dim]
        octaves = torch.arange(TIME_CHANNELS // 2, device=time.device, dtype=torch.float32) / (TIME_CHANNELS // 2)
        phase = TIME_SCALE * time.float()[:, None] * torch.exp(-math.log(10_000) * octaves)
        return self.layers(torch.cat((phase.cos(), phase.sin()), -1).to(self.layers[0].weight.dtype))


class TemporalAttention(nn.Module):
    """Attention among the T tokens of one direction; in what order the frames come makes no difference."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        tokens: Tensor,  # [B, T, H, W, C]
    ) -> Tensor:  # [B, T, H, W, C]
        rows = tokens.movedim(1, 3)  # [B, H, W, T, C]
        query, key, value = self.qkv(rows).flatten(0, 2).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        output = F.scaled_dot_product_attention(query, key, value)  # [B H W, N, T, D]
        return self.out(output.transpose(1, 2).flatten(2)).view(rows.shape).movedim(3, 1)


class TextAttention(nn.Module):
    """Attention of the panoramas' tokens to those of the words; it adds nothing before training."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        tokens: Tensor,  # [B, T, H, W, C]
        text: Tensor,  # [B, S, C]
        text_mask: Tensor,  # [B, S] bool
    ) -> Tensor:  # [B, T, H, W, C]
        query = self.query(tokens.flatten(1, 3)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.key_value(text).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        output = F.scaled_dot_product_attention(query, key, value, text_mask[:, None, None])  # [B, N, L, D]
        return self.out(output.transpose(1, 2).flatten(2)).view(tokens.shape)


class Block(nn.Module):
    """Attention over the sphere, through time, to the words, and an MLP, each modulated by the flow's time."""

    def __init__(self, config: DiTConfig, rotary: SphericalRotaryEmbedding, odd: bool) -> None:
        super().__init__()
        dim, heads = config.dim, config.num_heads
        self.joint = config.joint and odd
        self.sphere = SphericalAttention(dim, heads, rotary=rotary)
        self.temporal = None if self.joint else TemporalAttention(dim, heads)
        self.text = TextAttention(dim, heads) if odd else None
        self.text_norm = nn.LayerNorm(dim) if odd else None
        hidden = config.mlp_ratio * dim
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))
        self.modulation = nn.Parameter(torch.zeros(2 if self.joint else 3, 3, dim))  # shift, scale and gate of each

    def forward(
        self,
        tokens: Tensor,  # [B, T, H, W, C]
        modulation: Tensor,  # [B, 3, 3, C]
        text: Tensor,  # [B, S, C]
        text_mask: Tensor,  # [B, S] bool
    ) -> Tensor:  # [B, T, H, W, C]
        own = self.modulation + modulation[:, : self.modulation.shape[0]]
        mlp, sphere, *temporal = own[:, :, :, None, None, None].unbind(1)  # each [B, 3, 1, 1, 1, C]
        tokens = modulated(tokens, self.attend, *sphere.unbind(1))
        if self.temporal is not None:
            tokens = modulated(tokens, self.temporal, *temporal[0].unbind(1))
        if self.text is not None:
            tokens = tokens + self.text(self.text_norm(tokens), text, text_mask)
        return modulated(tokens, self.mlp, *mlp.unbind(1))

    def attend(
        self,
        tokens: Tensor,  # [B, T, H, W, C]
    ) -> Tensor:  # [B, T, H, W, C]
        if not self.joint:
            return self.sphere(tokens)
        frames = tokens.shape[1]
        directions, log_area = panorama_grid(*tokens.shape[2:4], tokens)
        joint = self.sphere(tokens.flatten(1, 3), directions.repeat(frames, 1), log_area.repeat(frames))
        return joint.view(tokens.shape)


class LatentHead(nn.Module):
    """A correction of predicted latents by their neighbours, across the borders of patches; nothing before training."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        last = SphericalConv2d(dim, channels, 3)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(SphericalConv2d(3 * channels, dim, 3), nn.GELU(), last)

    def forward(
        self,
        latents: Tensor,  # [B, T, h, w, C]
        inputs: Tensor,  # [B, T, h, w, 2 C]
    ) -> Tensor:  # [B, T, h, w, C]
        planes = torch.cat((latents, inputs), -1).flatten(0, 1).movedim(-1, 1)
        return self.layers(planes).movedim(1, -1).unflatten(0, latents.shape[:2])


class PanoramaDiT(nn.Module):
    """Predicts the clean latents of T panoramas from noisy ones and their condition.

    With z the noisy latents at the flow's time t and b those of the prediction without a network (`Condition.filled`)::

        tokens = stem(condition) + Linear([t z / (t^2 + (1 - t)^2), b]) + Linear(rays) + Linear(features)
        x = b + Linear(blocks(tokens, t, text)),    x + head(x, z, b) if there is a head

    where the last layer starts at zero, and z counts as much as it says of latents as strong as the noise: nothing at
    t = 0 (at the unit variance of Karras et al. 2022, "Elucidating", an early model could not see past the noise).
    Blocks attend over all of the sphere (of a frame, or of all frames at once), through the frames, and to the words;
    adaLN-zero brings in t and the words' mean. Where frames lie is known by their rays, relative to the first; their
    order is not. Rolling all inputs by whole tokens rolls the output.

    Args:
        config: the sizes.

    Shape: latents ``[B, T, h, w, C]``, time ``[B]`` from 0 (noise) to 1 (data) and a `Context` to ``[B, T, h, w, C]``.

    Source: Peebles and Xie 2023, "Scalable diffusion models with transformers"; one modulation shared by all blocks as
    in Chen et al. 2024, "PixArt-alpha".

    Example:
        >>> config = DiTConfig(latent_channels=8, dim=32, num_heads=2, depth=2, rotary_width=8, feature_dim=0)
        >>> dit = PanoramaDiT(config)
        >>> latents, text = torch.randn(1, 2, 4, 8, 8), torch.zeros(1, 0, 384)
        >>> images = {"known": torch.zeros(1, 2, 16, 32, 4), "memory": torch.zeros(1, 2, 16, 32, 4)}
        >>> seen = {"known_mask": torch.zeros(1, 2, 16, 32, 2), "visibility": torch.zeros(1, 2, 16, 32)}
        >>> nothing = Condition(**images, **seen, position=torch.zeros(1, 2, 3), text=text, text_mask=text[..., 0] > 0)
        >>> context = dit.context(nothing, nothing.filled(), base=torch.ones(1, 2, 4, 8, 8))
        >>> bool((dit(latents, torch.zeros(1), context) == context.base).all())  # before training
        True
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.latent_channels * config.patch_size**2
        self.stem = ConditionStem(config)
        self.latents_in = nn.Linear(2 * patch, dim)
        self.rays_in = nn.Linear(RAY_CHANNELS, dim)
        self.features_in = nn.Linear(config.feature_dim, dim, bias=False) if config.feature_dim else None
        self.text_in = nn.Linear(config.text_dim, dim)
        self.no_text = nn.Parameter(0.02 * torch.randn(dim))
        self.time = TimeEmbedding(dim)
        self.text_mean = nn.Linear(dim, dim)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 9 * dim))
        rotary = SphericalRotaryEmbedding(dim // config.num_heads, config.rotary_width)
        self.blocks = nn.ModuleList(Block(config, rotary, odd=i % 2 == 1) for i in range(config.depth))
        self.last_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.last = nn.Linear(dim, patch)
        self.head = LatentHead(config.latent_channels, config.head_dim) if config.head_dim else None
        for layer in (self.modulation[1], self.last_modulation[1], self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def context(
        self,
        condition: Condition,
        filled: Tensor,  # [B, T, H, W, 4]
        base: Tensor,  # [B, T, h, w, C]
    ) -> Context:
        """What depends on the condition alone: its tokens, at which the base's and the rays' are, and the text's."""
        tokens = self.stem(condition, filled)  # [B, T, H, W, dim]
        rays = ray_embedding(*tokens.shape[2:4], condition.position.float())
        tokens = tokens + self.rays_in(rays.to(base.dtype))
        if self.features_in is not None:
            features = condition.features
            if features is None:
                features = base.new_zeros(*tokens.shape[:-1], self.config.feature_dim)
            tokens = tokens + self.features_in(features)
        words = self.text_in(condition.text)
        nothing = self.no_text.to(words.dtype).expand(words.shape[0], 1, -1)
        mask = F.pad(condition.text_mask, (1, 0), value=True)
        return Context(base, tokens, torch.cat((nothing, words), 1), mask)

    def forward(
        self,
        latents: Tensor,  # [B, T, h, w, C]
        time: Tensor,  # [B]
        context: Context,
    ) -> Tensor:  # [B, T, h, w, C]
        patch = self.config.patch_size
        certain = (time / (time.square() + (1 - time).square())).to(latents)[:, None, None, None, None]
        inputs = torch.cat((certain * latents, context.base), -1)
        tokens = context.tokens + self.latents_in(to_patches(inputs, patch))
        weight = context.text_mask[..., None].to(context.text.dtype)
        mean = (context.text * weight).sum(1) / weight.sum(1)
        embedding = self.time(time) + self.text_mean(mean)  # [B, dim]
        modulation = self.modulation(embedding).unflatten(-1, (3, 3, -1))
        for block in self.blocks:
            arguments = tokens, modulation, context.text, context.text_mask
            if self.config.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, *arguments, use_reentrant=False)
            else:
                tokens = block(*arguments)
        shift, scale = self.last_modulation(embedding)[:, None, None, None].chunk(2, -1)
        output = self.last(torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:]), 1 + scale))
        predicted = context.base + from_patches(output, patch)
        return predicted if self.head is None else predicted + self.head(predicted, inputs)


def modulated(
    tokens: Tensor,  # [B, T, H, W, C]
    branch: nn.Module,
    shift: Tensor,  # [B, 1, 1, 1, C]
    scale: Tensor,  # [B, 1, 1, 1, C]
    gate: Tensor,  # [B, 1, 1, 1, C]
) -> Tensor:  # [B, T, H, W, C]
    """tokens + gate * branch(norm(tokens) (1 + scale) + shift)."""
    inputs = torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:]), 1 + scale)
    return torch.addcmul(tokens, gate, branch(inputs))


def to_patches(
    latents: Tensor,  # [B, T, h, w, C]
    patch: int,
) -> Tensor:  # [B, T, h / patch, w / patch, patch patch C]
    cells = latents.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [B, T, H, patch, W, patch, C]
    return cells.transpose(3, 4).flatten(4)


def from_patches(
    tokens: Tensor,  # [B, T, H, W, patch patch C]
    patch: int,
) -> Tensor:  # [B, T, H patch, W patch, C]
    cells = tokens.unflatten(-1, (patch, patch, -1)).transpose(3, 4)
    return cells.flatten(4, 5).flatten(2, 3)
