"""The world models there are, by name."""

from __future__ import annotations

from .autoencoder import AutoencoderConfig
from .dit import DiTConfig
from .memory_encoder import MemoryEncoderConfig
from .model import WorldModelConfig

CONFIGS = {
    # 64 x 128, tokens 8 x 16 of pixels: 16 MB as float16, runs and trains on a CPU. A frame at a time: for the time of
    # segments of 4 it sees three times as many places, and a walk's next frame is made knowing the one before.
    "tiny": WorldModelConfig(
        num_frames=1,
        autoencoder=AutoencoderConfig(kind="none", latent_channels=64),
        dit=DiTConfig(token_size=8, patch_size=2, latent_channels=64, rotary_width=16, head_dim=128),
        memory=MemoryEncoderConfig(token=8),
    ),
    # 256 x 512, tokens 32 x 64: for one card.
    "base": WorldModelConfig(
        height=256,
        num_frames=8,
        autoencoder=AutoencoderConfig(factor=8, dim=64, refiner_dim=64),
        dit=DiTConfig(
            token_size=8, dim=768, num_heads=12, depth=16, mlp_ratio=4, stem_dim=128, rotary_width=64, feature_dim=32
        ),
        memory=MemoryEncoderConfig(
            height=256, token=8, feature_dim=32, voxel_size=0.1, frame_dim=64, voxel_dim=32, brick_dim=128
        ),
        voxel_size=0.05,
    ),
    # 512 x 1024, tokens 32 x 64 of 2 x 2 latents: for many cards.
    "large": WorldModelConfig(
        height=512,
        num_frames=16,
        autoencoder=AutoencoderConfig(factor=8, dim=96, refiner_dim=96),
        dit=DiTConfig(
            token_size=16,
            patch_size=2,
            dim=1280,
            num_heads=20,
            depth=28,
            mlp_ratio=4,
            stem_dim=128,
            rotary_width=64,
            feature_dim=32,
            checkpointing=True,
        ),
        memory=MemoryEncoderConfig(
            height=512, token=16, feature_dim=32, voxel_size=0.1, frame_dim=96, voxel_dim=32, brick_dim=128
        ),
        voxel_size=0.025,
    ),
}
