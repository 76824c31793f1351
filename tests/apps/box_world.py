"""A small world whose every view is known: a box with smooth colours on its walls, and a closed walk inside it."""

import math

import torch

from evoworld.apps.trajectories import level_pose
from evoworld.cli import main
from evoworld.data import Frame
from evoworld.geometry import Panorama

HALF_SIZE = torch.tensor([1.5, 1.2, 1.0])  # of the box, in metres
CAMERA = Panorama(32, 64)
NUM_FRAMES = 9


def box_frame(pose, camera=CAMERA, name="frame"):
    """What a camera inside the box sees: exact ranges, and colours that vary smoothly over the walls."""
    origins, directions = camera.rays(pose)
    distance = ((directions.sign() * HALF_SIZE - origins) / directions).amin(-1)
    points = origins + distance[:, None] * directions
    image = 0.5 + 0.4 * torch.sin(2 * points + torch.tensor([0.0, 1.0, 2.0]))
    shape = (camera.height, camera.width)
    return Frame(image.view(*shape, 3), camera.depth_from_range(distance.view(shape)), pose, camera, name)


def box_walk(num_frames=NUM_FRAMES):
    angle = torch.arange(num_frames) / num_frames * 2 * math.pi
    positions = torch.stack((0.5 * angle.cos(), 0.4 * angle.sin(), 0.1 * angle.sin()), -1)
    return level_pose(positions, angle)


def error_of(capsys, *arguments):
    """Exit code and the one line that a failing command says."""
    code = main([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert code != 0 and err.startswith("evoworld: error: ") and err.count("\n") == 1, err
    return code, err
