"""The world model: autoencoder, Panorama DiT and learned memory under one configuration, in one file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from .autoencoder import AutoencoderConfig, make_autoencoder
from .condition import Condition
from .dit import Context, DiTConfig, PanoramaDiT
from .fill import among_seen
from .flow import sample
from .memory_encoder import MemoryEncoder, MemoryEncoderConfig
from .model_file import load_model, save_model
from .rgbd import per_channel
from .text import NoTextEncoder, load_text_encoder


@dataclass(frozen=True)
class WorldModelConfig:
    """Everything that a `WorldModel` is built from; the sizes of its parts must fit."""

    height: int = 64  # H of the panoramas, W = 2 H
    num_frames: int = 4  # T of the segments that it is trained on; others work
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    dit: DiTConfig = field(default_factory=DiTConfig)
    memory: MemoryEncoderConfig | None = field(default_factory=MemoryEncoderConfig)  # None: no learned memory
    text: str = "minilm"  # as for `load_text_encoder`
    voxel_size: float = 0.1  # metres, of the memory that frames are observed into
    uses_memory: bool = True  # False: trained without, and then not shown it either

    def __post_init__(self) -> None:
        token = self.autoencoder.factor * self.dit.patch_size
        expected = {
            "dit.token_size": (self.dit.token_size, token, "autoencoder.factor * dit.patch_size"),
            "dit.latent_channels": (
                self.dit.latent_channels,
                self.autoencoder.latent_channels,
                "autoencoder.latent_channels",
            ),
            "dit.feature_dim": (self.dit.feature_dim, self.memory.feature_dim if self.memory else 0, "the memory's"),
        }
        if self.memory is not None:
            expected["memory.height"] = self.memory.height, self.height, "height"
            expected["memory.token"] = self.memory.token, token, "dit.token_size"
        for name, (found, wanted, why) in expected.items():
            if found != wanted:
                raise ValueError(f"WorldModelConfig: {name}: expected {wanted} ({why}), got {found}")
        if self.height < token or self.height % token:
            raise ValueError(f"WorldModelConfig: height: expected a multiple of {token}, got {self.height}")
        if self.num_frames < 1:
            raise ValueError(f"WorldModelConfig: num_frames: expected at least 1, got {self.num_frames}")


class WorldModel(nn.Module):
    """Makes RGB-D panoramas from a `Condition`: what is known of them, what the memory shows, and words.

    ``forward`` is what the flow trains, `sample` makes frames; both are equivariant: rolling the condition (and the
    noise) by whole tokens rolls the result. The parts are ``autoencoder``, ``dit`` and ``memory_encoder``.

    Args:
        config: the sizes; see `evoworld.world.configs` for those there are.

    Example:
        >>> dit = DiTConfig(latent_channels=8, dim=32, num_heads=2, depth=1, feature_dim=0)
        >>> config = WorldModelConfig(16, 2, AutoencoderConfig(latent_channels=8, dim=8), dit, memory=None, text="none")
        >>> model = WorldModel(config)
        >>> tokens, mask = model.encode_text([""])
        >>> still, nothing = torch.zeros(1, 2, 3), torch.zeros(1, 2, 16, 32, 4)
        >>> condition = Condition(nothing, nothing[..., :2], nothing, nothing[..., 0], still, tokens, mask)
        >>> model.sample(condition, steps=2).shape
        torch.Size([1, 2, 16, 32, 4])
    """

    # Options of `sample` where words are all there is; chosen with captions of the validation split.
    from_words: ClassVar[dict[str, float]] = {"steps": 6, "text_guidance": 3.0}

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = make_autoencoder(config.autoencoder)
        self.dit = PanoramaDiT(config.dit)
        self.memory_encoder = MemoryEncoder(config.memory) if config.memory else None
        self._text_encoder = None

    @property
    def device(self) -> torch.device:
        return self.dit.last.weight.device

    def forward(
        self,
        latents: Tensor,  # [B, T, h, w, C]
        time: Tensor,  # [B]
        condition: Condition,
    ) -> Tensor:  # [B, T, h, w, C]
        """The clean latents that are predicted from noisy ones at the flow's time; gradients to all parts."""
        return self.dit(latents, time, self.context(condition))

    def context(
        self,
        condition: Condition,
        filled: Tensor | None = None,  # [B, T, H, W, 4]
    ) -> Context:
        """What the DiT is given of a condition, and of its `Condition.filled`."""
        filled = condition.filled() if filled is None else filled
        return self.dit.context(condition, filled, self.autoencoder.encode(filled))

    def decode(
        self,
        latents: Tensor,  # [B, T, h, w, C]
        condition: Condition,
        filled: Tensor | None = None,  # [B, T, H, W, 4]
    ) -> Tensor:  # [B, T, H, W, 4]
        """RGB-D of latents, with what the condition knows and sees at full resolution; gradients to latents.

        Holes of up to half a token's width, of which the network sees little, are as they are filled without one.
        """
        filled = condition.filled() if filled is None else filled
        seen = condition.seen()
        made = self.autoencoder.decode(latents, filled, seen)
        narrow = among_seen(seen, self.config.dit.token_size // 2)
        return torch.where(per_channel(narrow), filled.to(made), made)

    def sample(self, condition: Condition, **options) -> Tensor:  # [B, T, H, W, 4]
        """RGB-D frames of a condition; the options are those of `evoworld.world.flow.sample`."""
        return sample(self, condition, **options)

    def encode_text(
        self,
        prompts: list[str],
    ) -> tuple[Tensor, Tensor]:  # [B, S, E], [B, S] bool
        """Tokens of prompts by the text encoder, which is loaded when it is first needed; on the model's device."""
        if self._text_encoder is None:
            name, dim = self.config.text, self.config.dit.text_dim
            encoder = NoTextEncoder(dim) if name == "none" else load_text_encoder(name)
            if encoder.dim != dim:
                raise ValueError(f"WorldModel: dit.text_dim: expected {encoder.dim}, the width of {name!r}, got {dim}")
            self._text_encoder = encoder
        tokens, mask = self._text_encoder.encode(prompts)
        return tokens.to(self.device), mask.to(self.device)

    def save(self, path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
        """Writes weights and configuration to one safetensors file; see `evoworld.world.model_file.save_model`."""
        save_model(self, path, dtype)

    @staticmethod
    def load(path: str | os.PathLike, device: torch.device | str = "cpu") -> WorldModel:
        """Reads a file that `save` wrote; see `evoworld.world.model_file.load_model`."""
        return load_model(WorldModel, WorldModelConfig, path, device)
