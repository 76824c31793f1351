"""Which layout a capture has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .colmap import find_model, read_colmap
from .evoworld_layout import find_episodes, read_evoworld
from .files import CaptureError, one_line
from .nerfstudio import TRANSFORMS, read_nerfstudio

if TYPE_CHECKING:
    from .capture import Capture

_LAYOUTS = (
    "transforms.json (nerfstudio), camera_poses.txt and panorama/ or episode_* folders of them (EvoWorld), "
    "or sparse/0 and images/ (COLMAP)"
)


def read_capture(path: str | Path) -> Capture:
    """Read a capture of any layout that is understood.

    Args:
        path: a folder, or a nerfstudio `.json` file. The folder holds one of

            * `transforms.json`: nerfstudio, see read_nerfstudio;
            * `camera_poses.txt` and `panorama/`, or `episode_*` folders of these: EvoWorld, see read_evoworld;
            * `sparse/0` (or `sparse`) and `images/`: a COLMAP model, see read_colmap.

    Returns:
        a Capture: poses and cameras are read and checked, files exist and have the right size; images are decoded
        frame by frame, when indexed.

    Raises:
        CaptureError: not a capture, or a broken one; the message is one line and names the file.

    >>> capture = read_capture("examples/living_room")
    >>> len(capture), capture.camera, capture.has_depth
    (32, Panorama(height=256, width=512), True)
    >>> capture[0].image.shape, capture[0].depth.shape
    (torch.Size([256, 512, 3]), torch.Size([256, 512]))
    """
    path = Path(path)
    try:
        if path.is_file() and path.suffix.lower() == ".json":
            return read_nerfstudio(path)
        if not path.exists():
            raise CaptureError(f"{path}: no such file or folder; expected a folder with {_LAYOUTS}")
        if (path / TRANSFORMS).is_file():
            return read_nerfstudio(path / TRANSFORMS)
        if find_episodes(path):
            return read_evoworld(path)
        if find_model(path) is not None:
            return read_colmap(path)
    except OSError as error:  # a folder that may not be listed
        raise CaptureError(f"{path}: {one_line(error)}") from error
    raise CaptureError(f"{path}: not a capture; expected a folder with {_LAYOUTS}")
