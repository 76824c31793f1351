"""The fused ops. Each picks its backend by the tensors' device, or by ``with evoworld.backend(name)``."""

from evoworld import _native

from .backend import available, backend, select
from .sphere_attention import sphere_attention
from .sphere_attention_fold import fold
from .volume_render import volume_render
from .voxel_scatter import voxel_scatter, voxel_scatter_

from . import sparse_grid  # isort: skip  (its schemas, like the others', come before the libraries)

_native.load()

__all__ = [
    "available",
    "backend",
    "fold",
    "select",
    "sparse_grid",
    "sphere_attention",
    "volume_render",
    "voxel_scatter",
    "voxel_scatter_",
]
