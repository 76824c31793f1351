import pytest
import torch

from evoworld.data import Walk
from evoworld.data.walk import level_poses
from evoworld.geometry import check_pose, pose_from_euler


def parts(**change):
    return {
        "image": torch.rand(3, 4, 8, 3),
        "depth": torch.rand(3, 4, 8),
        "camera_to_world": level_poses(torch.rand(3, 3), 0.4),
        "captions": ("a", "b", "c"),
        "name": "hall",
        "object_id": torch.zeros(3, 4, 8, dtype=torch.int64),
        **change,
    }


def test_frames_can_be_selected_in_any_order():
    walk = Walk(**parts())
    chosen = walk.select([2, 0, 2])
    assert len(chosen) == 3 and chosen.height == 4 and chosen.captions == ("c", "a", "c")
    for name in ("image", "depth", "camera_to_world", "object_id"):
        assert getattr(chosen, name).equal(getattr(walk, name)[[2, 0, 2]])


def test_depth_and_objects_may_be_unknown():
    walk = Walk(**parts(depth=None, object_id=None)).select(range(2)).to("cpu")
    assert walk.depth is None and walk.object_id is None and len(walk) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(3, 4, 9, 3)}, r"hall: image: expected \[T, H, 2H, 3\].*got \[3, 4, 9, 3\]"),
        ({"image": torch.zeros(0, 4, 8, 3)}, "T at least 1"),
        ({"depth": torch.zeros(3, 4, 4)}, r"depth: expected \[3, 4, 8\], got \[3, 4, 4\]"),
        ({"camera_to_world": torch.eye(4)}, r"camera_to_world: expected \[3, 4, 4\]"),
        ({"captions": ("a",)}, r"captions: expected one a frame \(3\), got 1"),
        ({"camera_to_world": torch.full((3, 4, 4), torch.nan)}, "expected level"),
        ({"camera_to_world": level_poses(torch.full((3, 3), torch.nan), 0.4)}, "expected level"),
        ({"camera_to_world": pose_from_euler(torch.tensor([0, 0, 0, 0.1, 0, 0.0])).expand(3, 4, 4)}, "expected level"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        Walk(**parts(**change))


def test_level_poses_look_along_their_yaw():
    poses = level_poses(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([0.0, torch.pi / 2]))
    check_pose(poses)
    torch.testing.assert_close(poses[:, :3, 2], torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    assert poses[:, :3, 3].tolist() == [[1, 2, 3], [4, 5, 6]]
