import math

import pytest
import torch

from evoworld.geometry import (
    check_pose,
    compose_poses,
    euler_from_pose,
    interpolate_poses,
    invert_pose,
    look_at,
    make_pose,
    pose_from_euler,
    pose_from_opengl,
    pose_from_unity,
    quaternion_from_rotation,
    relative_pose,
    rotate,
    rotation_from_quaternion,
    slerp,
    transform_points,
)

DOUBLE = torch.float64


def random_poses(count, seed=0, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, 6, generator=generator, dtype=DOUBLE) * 12 - 6
    return pose_from_euler(values).to(dtype)


def axis_rotation(axis, angle):
    """Right-handed rotation about a coordinate axis, written independently of pose_from_euler."""
    rotation = torch.eye(3, dtype=DOUBLE)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation[i, i] = rotation[j, j] = math.cos(angle)
    rotation[j, i], rotation[i, j] = math.sin(angle), -math.sin(angle)
    return rotation


def rotation_angle(first, second):
    cosine = ((first.mT @ second).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return cosine.clamp(-1, 1).acos()


def test_euler_is_rz_ry_rx():
    pose = pose_from_euler(torch.tensor([1.0, 2, 3, 0.4, -0.7, 1.9], dtype=DOUBLE))
    expected = axis_rotation(2, 1.9) @ axis_rotation(1, -0.7) @ axis_rotation(0, 0.4)
    torch.testing.assert_close(pose[:3, :3], expected)
    assert pose[:3, 3].tolist() == [1, 2, 3]
    assert pose[3].tolist() == [0, 0, 0, 1]


def test_euler_directions():
    """Positive ry turns to the right, positive rx looks up (OpenCV axes: right is +x, up is -y)."""
    ahead = torch.tensor([[0.0, 0.0, 1.0]], dtype=DOUBLE)
    right = rotate(pose_from_euler(torch.tensor([0, 0, 0, 0, math.pi / 2, 0], dtype=DOUBLE))[:3, :3], ahead)
    up = rotate(pose_from_euler(torch.tensor([0, 0, 0, math.pi / 2, 0, 0], dtype=DOUBLE))[:3, :3], ahead)
    torch.testing.assert_close(right[0], torch.tensor([1.0, 0, 0], dtype=DOUBLE), rtol=0, atol=1e-15)
    torch.testing.assert_close(up[0], torch.tensor([0, -1.0, 0], dtype=DOUBLE), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (DOUBLE, 1e-14)])
def test_euler_round_trip(dtype, tolerance):
    poses = random_poses(500, dtype=dtype)
    torch.testing.assert_close(pose_from_euler(euler_from_pose(poses)), poses, rtol=0, atol=tolerance)
    values = euler_from_pose(poses)
    assert (values[:, 4].abs() <= math.pi / 2 + 1e-6).all()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (DOUBLE, 1e-14)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("offset", [0.0, 1e-8, 1e-5, 1e-3])
def test_euler_round_trip_at_gimbal_lock(sign, offset, dtype, tolerance):
    values = torch.tensor([0, 0, 0, 0.6, sign * (math.pi / 2 - offset), -1.1], dtype=dtype)
    pose = pose_from_euler(values)
    back = euler_from_pose(pose)
    assert back.isfinite().all()
    torch.testing.assert_close(pose_from_euler(back), pose, rtol=0, atol=tolerance)


def test_euler_and_pose_gradients():
    values = torch.tensor([1, 2, 3, 0.5, -0.4, 2.5], dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(pose_from_euler, (values,))
    assert torch.autograd.gradcheck(lambda v: euler_from_pose(pose_from_euler(v)), (values,))


def test_pose_algebra_agrees_with_matrices():
    first, second = random_poses(8, 1), random_poses(8, 2)
    points = torch.randn(8, 5, 3, dtype=DOUBLE)
    torch.testing.assert_close(invert_pose(first), torch.linalg.inv(first))
    torch.testing.assert_close(compose_poses(first, second), first @ second)
    torch.testing.assert_close(relative_pose(first, second), torch.linalg.inv(first) @ second)
    homogeneous = torch.cat((points, torch.ones_like(points[..., :1])), -1)
    torch.testing.assert_close(transform_points(first, points), (homogeneous @ first.mT)[..., :3])
    torch.testing.assert_close(make_pose(first[:, :3, :3], first[:, :3, 3]), first)


@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (0.3, 0.2, 5.0)])
def test_look_at(up):
    generator = torch.Generator().manual_seed(3)
    eye, target = torch.randn(2, 50, 3, generator=generator, dtype=DOUBLE)
    pose = look_at(eye, target, up)
    check_pose(pose)
    torch.testing.assert_close(pose[:, :3, 3], eye)
    torch.testing.assert_close(pose[:, :3, 2], torch.nn.functional.normalize(target - eye, dim=-1))
    up = torch.tensor(up, dtype=DOUBLE)
    assert (pose[:, :3, 0] @ up).abs().max() < 1e-12, "the horizon is level"
    assert (pose[:, :3, 1] @ up < 0).all(), "up is up"


@pytest.mark.parametrize("direction", [(0, 0, 1), (0, 0, -1)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_look_at_straight_up_and_down(direction, dtype):
    eye = torch.tensor([1.0, 2, 3], dtype=dtype, requires_grad=True)
    pose = look_at(eye, eye.detach() + 4 * torch.tensor(direction, dtype=dtype))
    check_pose(pose)
    assert pose[:3, 2].tolist() == list(direction)
    assert (-pose[:3, 1]).tolist() == [0, 1, 0], "the top of the image is world +y"
    pose.sum().backward()
    assert eye.grad.isfinite().all()


def test_look_at_along_another_up():
    pose = look_at(torch.zeros(3), torch.tensor([0.0, 5, 0]), up=(0, 2, 0))
    check_pose(pose)
    assert (-pose[:3, 1]).tolist() == [0, 0, 1]


def test_look_at_gradients():
    eye, target = torch.randn(2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)).requires_grad_().unbind(0)
    assert torch.autograd.gradcheck(look_at, (eye.detach().requires_grad_(), target.detach().requires_grad_()))


def test_look_at_rejects_its_own_eye():
    with pytest.raises(ValueError, match="target: must be finite and differ from eye"):
        look_at(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="target: must be finite"):
        look_at(torch.ones(3), torch.tensor([math.nan, 0, 0]))


def test_quaternion_round_trip():
    rotations = random_poses(300)[:, :3, :3]
    half_turns = torch.stack(
        [torch.diag(torch.tensor(d, dtype=DOUBLE)) for d in ((1, -1, -1), (-1, 1, -1), (-1, -1, 1))]
    )
    nearly = half_turns @ axis_rotation(0, 1e-7) @ axis_rotation(2, 1e-9)
    rotations = torch.cat((rotations, half_turns, nearly))
    quaternions = quaternion_from_rotation(rotations)
    torch.testing.assert_close(quaternions.norm(dim=-1), torch.ones(len(rotations), dtype=DOUBLE))
    assert (quaternions[:, 0] >= 0).all()
    torch.testing.assert_close(rotation_from_quaternion(quaternions), rotations, rtol=0, atol=1e-14)


def test_quaternion_of_a_known_rotation():
    expected = torch.tensor([math.cos(0.35), 0, math.sin(0.35), 0], dtype=DOUBLE)
    torch.testing.assert_close(quaternion_from_rotation(axis_rotation(1, 0.7)), expected)
    torch.testing.assert_close(rotation_from_quaternion(3 * expected), axis_rotation(1, 0.7))


@pytest.mark.parametrize("angle", [1e-9, 1e-5, 0.02, 0.3, 2.0, math.pi - 1e-6])
def test_slerp_turns_at_constant_speed(angle):
    first = quaternion_from_rotation(axis_rotation(0, 0.9))
    second = quaternion_from_rotation(axis_rotation(0, 0.9) @ axis_rotation(2, angle))
    fractions = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=DOUBLE)
    for end in (second, -second):  # both stand for the same rotation: the way is the shorter one
        turned = rotation_from_quaternion(slerp(first.expand(4, 4), end.expand(4, 4), fractions))
        expected = torch.stack([axis_rotation(0, 0.9) @ axis_rotation(2, angle * f) for f in fractions.tolist()])
        torch.testing.assert_close(turned, expected, rtol=0, atol=1e-13)


def test_slerp_gradients():
    first, second = torch.nn.functional.normalize(torch.randn(2, 4, dtype=DOUBLE), dim=-1)
    fraction = torch.tensor(0.3, dtype=DOUBLE)
    inputs = [x.clone().requires_grad_() for x in (first, second, fraction)]
    assert torch.autograd.gradcheck(slerp, inputs)
    same = first.clone().requires_grad_()
    slerp(same, first, fraction).sum().backward()
    assert same.grad.isfinite().all()


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_interpolation_passes_through_its_poses(smooth, dtype):
    poses = random_poses(6, 4, dtype)
    result = interpolate_poses(poses, torch.arange(6), smooth)
    torch.testing.assert_close(result, poses, rtol=0, atol=2e-5 if dtype == torch.float32 else 1e-12)
    check_pose(interpolate_poses(poses, torch.linspace(0, 5, 41), smooth))


def test_interpolation_of_a_steady_walk_is_steady():
    """Poses at equal steps of a straight line and of a turn: what lies between continues both."""
    steps = torch.arange(5, dtype=DOUBLE)
    zero = torch.zeros_like(steps)
    walk = pose_from_euler(torch.stack((2 * steps, -steps, zero, zero, 0.8 * steps, zero), -1))
    times = torch.linspace(0, 4, 33, dtype=DOUBLE)
    zero = torch.zeros_like(times)
    expected = pose_from_euler(torch.stack((2 * times, -times, zero, zero, 0.8 * times, zero), -1))
    for smooth in (True, False):
        torch.testing.assert_close(interpolate_poses(walk, times, smooth), expected, rtol=0, atol=1e-12)


def test_smooth_interpolation_has_no_kinks():
    poses = random_poses(6, 5)
    times = torch.linspace(0, 5, 2001, dtype=DOUBLE)
    kinks = {}
    for smooth in (True, False):
        velocity = interpolate_poses(poses, times, smooth)[:, :3, 3].diff(dim=0) / times.diff()[:, None]
        kinks[smooth] = velocity.diff(dim=0).norm(dim=-1).max().item()
    assert kinks[False] > 5
    assert kinks[True] < 0.2


def test_interpolation_takes_the_shorter_way():
    poses = pose_from_euler(torch.tensor([[0.0, 0, 0, 0, 0, 3.0], [0, 0, 0, 0, 0, -3.0]], dtype=DOUBLE))
    middle = interpolate_poses(poses, torch.tensor([0.5]))[0, :3, :3]
    assert rotation_angle(middle, axis_rotation(2, math.pi)) < 1e-6


def test_interpolation_of_one_pose_and_of_no_times():
    pose = random_poses(1)
    torch.testing.assert_close(interpolate_poses(pose, torch.tensor([0.0])), pose)
    assert interpolate_poses(pose, torch.zeros(0)).shape == (0, 4, 4)


def test_interpolation_gradients():
    values = (torch.rand(4, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) * 2).requires_grad_()
    times = torch.tensor([0.3, 1.5, 2.9], dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, t: interpolate_poses(pose_from_euler(v), t), (values, times))


@pytest.mark.parametrize("times", [[-0.1], [1.5], [math.nan]])
def test_interpolation_rejects_times_outside(times):
    with pytest.raises(ValueError, match=r"times: expected .* between 0 and 1, got"):
        interpolate_poses(random_poses(2), torch.tensor(times))


def broken(row, column, value, count=None):
    pose = torch.eye(4) if count is None else torch.eye(4).repeat(count, 1, 1)
    pose.reshape(-1, 4, 4)[-1, row, column] = value
    return pose


@pytest.mark.parametrize(
    "pose, message",
    [
        (torch.eye(3), r"^camera_to_world: expected shape \[..., 4, 4\], got \[3, 3\]"),
        (torch.eye(4).tolist(), "^camera_to_world: expected a floating-point tensor .*, got list"),
        (torch.eye(4, dtype=torch.int32), "^camera_to_world: .* got torch.int32"),
        (broken(0, 3, math.nan), "^camera_to_world: holds NaN or infinite values"),
        (broken(1, 1, math.inf), "^camera_to_world: holds NaN or infinite values"),
        (broken(2, 3, math.inf, 3), r"^camera_to_world\[2\]: holds NaN or infinite values"),
        (broken(0, 0, 1.1), "^camera_to_world: not rigid: R.T R is off the identity by up to 0.21"),
        (broken(0, 0, -1, 2), r"^camera_to_world\[1\]: not rigid: the rotation mirrors"),
        (broken(3, 0, 0.5), "^camera_to_world: not rigid: the last row must be 0 0 0 1, it is off by 0.5"),
    ],
)
def test_check_pose_says_what_is_wrong(pose, message):
    with pytest.raises(ValueError, match=message):
        check_pose(pose)


def test_check_pose_accepts_rounded_matrices_and_uses_the_name():
    check_pose((random_poses(50) * 1e4).round() / 1e4)
    check_pose(torch.eye(4).expand(0, 4, 4))
    with pytest.raises(ValueError, match=r"^frame 7: holds NaN"):
        check_pose(broken(0, 0, math.nan), "frame 7")


def test_opengl_axes():
    """An OpenGL camera of the identity looks along -z with y up: in OpenCV axes forward is -z and down is -y."""
    pose = pose_from_opengl(torch.eye(4))
    assert pose[:3, 0].tolist() == [1, 0, 0]
    assert pose[:3, 1].tolist() == [0, -1, 0]
    assert pose[:3, 2].tolist() == [0, 0, -1]
    poses = random_poses(4)
    torch.testing.assert_close(pose_from_opengl(pose_from_opengl(poses)), poses)
    torch.testing.assert_close(pose_from_opengl(poses), poses @ torch.diag(torch.tensor([1.0, -1, -1, 1]).double()))


@pytest.mark.parametrize(
    "rotation, forward, up",
    [
        ((0, 0, 0), (0, 1, 0), (0, 0, 1)),  # Unity's forward z is north
        ((0, 90, 0), (1, 0, 0), (0, 0, 1)),  # a positive RotY turns right, to the east
        ((90, 0, 0), (0, 0, -1), (0, 1, 0)),  # a positive RotX looks down
        ((0, 0, 90), (0, 1, 0), (-1, 0, 0)),  # a positive RotZ tips the head to the left
    ],
)
def test_unity_axes(rotation, forward, up):
    pose = pose_from_unity(torch.tensor([1.0, 2, 3, *rotation], dtype=DOUBLE))
    check_pose(pose)
    assert pose[:3, 3].tolist() == [1, 3, 2], "Unity's height y is the world's z"
    torch.testing.assert_close(pose[:3, 2], torch.tensor(forward, dtype=DOUBLE), rtol=0, atol=1e-15)
    torch.testing.assert_close(-pose[:3, 1], torch.tensor(up, dtype=DOUBLE), rtol=0, atol=1e-15)
