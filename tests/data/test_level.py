import pytest
import torch

from evoworld.data.level import level_panorama
from evoworld.geometry import Panorama, pose_from_euler, rotate


def seen(height, rotation):
    """Smooth colours and ranges of directions, as a camera turned by the rotation sees them."""
    directions = rotate(rotation, Panorama(height, 2 * height).directions()).view(height, 2 * height, 3)
    x, y, z = directions.unbind(-1)
    return 0.5 + 0.25 * torch.stack((x, y + 0.3 * z, z * x), -1), 3 + x - 0.5 * y


@pytest.mark.parametrize("height", [64, 16, 13])
def test_a_turned_camera_sees_the_same_world(height):
    turned = pose_from_euler(torch.tensor([0, 0, 0, 0.4, -1.1, 0.3]))[:3, :3]
    image, depth = level_panorama(*seen(64, turned), turned.T, height)
    expected_image, expected_depth = seen(height, torch.eye(3))
    assert image.shape == (height, 2 * height, 3) and depth.shape == (height, 2 * height)
    assert (image - expected_image).abs().max() < 0.03
    assert (depth - expected_depth).abs().max() < 0.08


def test_nothing_is_blurred_where_nothing_changes():
    image, depth = torch.rand(8, 16, 3), torch.rand(8, 16)
    same_image, same_depth = level_panorama(image, depth, torch.eye(3), 8)
    assert same_image.equal(image) and same_depth.equal(depth)


def test_colours_are_averaged_and_depths_are_not():
    image = torch.rand(16, 32, 3)
    depth = torch.randint(1, 5, (16, 32)).float()
    small, nearest = level_panorama(image, depth, torch.eye(3), 4)
    torch.testing.assert_close(small, image.unflatten(1, (8, 4)).unflatten(0, (4, 4)).mean((1, 3)))
    assert set(nearest.unique().tolist()) <= {1.0, 2.0, 3.0, 4.0}


def test_small_pictures_grow():
    image, depth = level_panorama(*seen(16, torch.eye(3)), torch.eye(3), 32)
    assert (image - seen(32, torch.eye(3))[0]).abs().max() < 0.03 and depth.shape == (32, 64)
    assert level_panorama(image, None, torch.eye(3), 8)[1] is None
