"""Every op as straight-line PyTorch: the specification. Any device, float64 too, gradients by autograd."""

from .sphere_attention import sphere_attention
from .volume_render import volume_render
from .voxel_scatter import voxel_scatter

__all__ = ["sphere_attention", "volume_render", "voxel_scatter"]
