"""Readers for 360° and perspective captures: folders of images, poses and, if there are any, depth images."""

from .capture import Capture, Frame, FrameFiles
from .colmap import read_colmap
from .evoworld_layout import read_evoworld
from .files import CaptureError
from .nerfstudio import read_nerfstudio, write_capture
from .read import read_capture

__all__ = [
    "Capture",
    "CaptureError",
    "Frame",
    "FrameFiles",
    "read_capture",
    "read_colmap",
    "read_evoworld",
    "read_nerfstudio",
    "write_capture",
]
