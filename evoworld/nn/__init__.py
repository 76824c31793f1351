"""Modules for panoramas, to drop into other models.

Convolutions take torch's layout [B, C, H, W]; an image is equirectangular, H rows from pole to pole, W columns around.
Attention takes tokens, [B, T, H, W, C] or [B, L, C] with a direction for each.
"""

from .attention import SphericalAttention
from .conv import EquiConv2d, SphericalConv2d, replace_conv2d
from .encoding import SphericalPositionalEncoding, SphericalRotaryEmbedding
from .pad import SphericalPad2d, spherical_pad
from .patch import patch_attention, unpatch_attention

__all__ = [
    "EquiConv2d",
    "SphericalAttention",
    "SphericalConv2d",
    "SphericalPad2d",
    "SphericalPositionalEncoding",
    "SphericalRotaryEmbedding",
    "patch_attention",
    "replace_conv2d",
    "spherical_pad",
    "unpatch_attention",
]
