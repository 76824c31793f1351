"""What the library learns from and is measured on: walks through procedural worlds, captures and photographs.

Readers take 360° and perspective captures: folders of images, poses and, if there are any, depth images.
"""

from .cached import CachedWalks
from .capture import Capture, Frame, FrameFiles
from .capture_walks import CaptureWalks
from .colmap import read_colmap
from .evoworld_layout import read_evoworld
from .files import CaptureError
from .nerfstudio import read_nerfstudio, write_capture
from .photos import PhotoPanoramas
from .procedural import ProceduralWalks
from .read import read_capture
from .walk import Walk

__all__ = [
    "CachedWalks",
    "Capture",
    "CaptureError",
    "CaptureWalks",
    "Frame",
    "FrameFiles",
    "PhotoPanoramas",
    "ProceduralWalks",
    "Walk",
    "read_capture",
    "read_colmap",
    "read_evoworld",
    "read_nerfstudio",
    "write_capture",
]
