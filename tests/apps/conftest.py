"""The capture and the world that the commands' tests share."""

import pytest
from box_world import CAMERA, box_frame, box_walk

from evoworld.cli import main
from evoworld.data import write_capture


@pytest.fixture(scope="session")
def capture_folder(tmp_path_factory):
    """The capture on disk, in nerfstudio's layout; tests must not change it."""
    folder = tmp_path_factory.mktemp("captures") / "box"
    write_capture(folder, CAMERA, (box_frame(pose) for pose in box_walk()))
    return folder


@pytest.fixture(scope="session")
def world_file(capture_folder, tmp_path_factory):
    """A world made of the capture; tests must not change it."""
    path = tmp_path_factory.mktemp("worlds") / "box.safetensors"
    assert main(["reconstruct", str(capture_folder), "--out", str(path), "--voxel-size", "0.1"]) == 0
    return path
