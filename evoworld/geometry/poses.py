"""Poses: rigid camera-to-world matrices [4, 4], OpenCV camera axes (x right, y down, z forward), world z up, metres.

Products of rotations are written out as sums: a matrix multiplication may run in TF32 on a GPU, and lose centimetres.
"""

from __future__ import annotations

import torch

RIGID_TOLERANCE = 1e-3  # files round poses to 4-6 decimals; a scaled or sheared matrix is off by far more


def rotate(
    rotation: torch.Tensor,  # [..., 3, 3]
    vectors: torch.Tensor,  # [..., N, 3]
) -> torch.Tensor:
    """Rotated vectors [..., N, 3]: R v for every row v, in full precision on any device.

    Leading dimensions broadcast; differentiable in both.

    >>> rotate(torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), torch.eye(3)[:1])
    tensor([[0., 1., 0.]])
    """
    columns = rotation.mT[..., None, :, :].unbind(-2)
    return sum(component * column for component, column in zip(vectors.split(1, dim=-1), columns, strict=True))


def transform_points(
    pose: torch.Tensor,  # [..., 4, 4]
    points: torch.Tensor,  # [..., N, 3]
) -> torch.Tensor:
    """Points [..., N, 3] carried by a pose: R p + t (metres). Differentiable in both."""
    return rotate(pose[..., :3, :3], points) + pose[..., None, :3, 3]


def compose_poses(
    first: torch.Tensor,  # [..., 4, 4]
    second: torch.Tensor,  # [..., 4, 4]
) -> torch.Tensor:
    """The product first @ second [..., 4, 4]: second is applied to a point before first. Differentiable in both."""
    rotation = rotate(first[..., :3, :3], second[..., :3, :3].mT).mT
    translation = transform_points(first, second[..., None, :3, 3])[..., 0, :]
    return make_pose(rotation, translation)


def invert_pose(
    pose: torch.Tensor,  # [..., 4, 4]
) -> torch.Tensor:
    """Inverse of a rigid pose [..., 4, 4]: (R^T, -R^T t). Differentiable.

    >>> invert_pose(pose_from_euler(torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 0.0])))[:3, 3]
    tensor([-1., -2., -3.])
    """
    transposed = pose[..., :3, :3].mT
    return make_pose(transposed, -rotate(transposed, pose[..., None, :3, 3])[..., 0, :])


def relative_pose(
    reference: torch.Tensor,  # [..., 4, 4]
    pose: torch.Tensor,  # [..., 4, 4]
) -> torch.Tensor:
    """`pose` as seen from `reference` [..., 4, 4]: inverse(reference) @ pose; maps pose's axes to reference's."""
    return compose_poses(invert_pose(reference), pose)


def make_pose(
    rotation: torch.Tensor,  # [..., 3, 3]
    translation: torch.Tensor,  # [..., 3]
) -> torch.Tensor:
    """The matrix [R t; 0 1] [..., 4, 4]; leading dimensions broadcast."""
    batch = torch.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    upper = torch.cat((rotation.expand(*batch, 3, 3), translation[..., None].expand(*batch, 3, 1)), -1)
    bottom = torch.tensor([0, 0, 0, 1], dtype=upper.dtype, device=upper.device)
    return torch.cat((upper, bottom.expand(*batch, 1, 4)), -2)


def check_pose(
    pose: torch.Tensor,  # [..., 4, 4]
    name: str = "camera_to_world",
) -> None:
    """Raises ValueError unless every matrix is a finite rigid transform: R^T R = 1, det R = 1, last row 0 0 0 1.

    The message starts with `name` and says what was found, and for a batch where.

    >>> check_pose(torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))
    Traceback (most recent call last):
    ValueError: camera_to_world: not rigid: R^T R is off the identity by up to 3 (a scale or a shear?)
    """
    if not isinstance(pose, torch.Tensor) or not pose.is_floating_point():
        got = pose.dtype if isinstance(pose, torch.Tensor) else type(pose).__name__
        raise ValueError(f"{name}: expected a floating-point tensor [..., 4, 4], got {got}")
    if pose.shape[-2:] != (4, 4):
        raise ValueError(f"{name}: expected shape [..., 4, 4], got {list(pose.shape)}")
    matrices = pose.detach().double().reshape(-1, 4, 4)
    rotation = matrices[:, :3, :3]
    identity = torch.eye(3, dtype=torch.float64, device=pose.device)
    shear = (rotation.mT @ rotation - identity).abs().amax((-2, -1))
    bottom = (matrices[:, 3] - torch.eye(4, dtype=torch.float64, device=pose.device)[3]).abs().amax(-1)

    def reject(bad: torch.Tensor, why: str, amount: torch.Tensor | None = None) -> None:
        if bad.any():
            index = int(bad.int().argmax())
            where = f"[{index}]" if pose.ndim > 2 else ""
            raise ValueError(f"{name}{where}: " + why.format("" if amount is None else f"{float(amount[index]):.3g}"))

    reject(~matrices.isfinite().all(-1).all(-1), "holds NaN or infinite values")
    reject(bottom > RIGID_TOLERANCE, "not rigid: the last row must be 0 0 0 1, it is off by {}", bottom)
    reject(shear > RIGID_TOLERANCE, "not rigid: R^T R is off the identity by up to {} (a scale or a shear?)", shear)
    reject(torch.linalg.det(rotation) < 0, "not rigid: the rotation mirrors (determinant -1)")


def pose_from_euler(
    values: torch.Tensor,  # [..., 6]
) -> torch.Tensor:
    """Pose [..., 4, 4] of (tx, ty, tz, rx, ry, rz): R = Rz(rz) Ry(ry) Rx(rx), radians; t in metres. Differentiable.

    In camera axes a positive ry turns the view to the right and a positive rx tilts it up.

    >>> pose_from_euler(torch.tensor([0.0, 0.0, 0.0, 0.0, torch.pi / 2, 0.0]))[:3, 2].round()  # now looks along +x
    tensor([1., 0., -0.])
    """
    if values.shape[-1:] != (6,):
        raise ValueError(f"values: expected shape [..., 6] (tx ty tz rx ry rz), got {list(values.shape)}")
    sx, sy, sz = values[..., 3:].sin().unbind(-1)
    cx, cy, cz = values[..., 3:].cos().unbind(-1)
    rows = (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
    return make_pose(torch.stack([torch.stack(row, -1) for row in rows], -2), values[..., :3])


def euler_from_pose(
    pose: torch.Tensor,  # [..., 4, 4]
) -> torch.Tensor:
    """(tx, ty, tz, rx, ry, rz) [..., 6] with pose_from_euler(result) = pose; ry in [-pi/2, pi/2], radians.

    rz comes first, then rx from what is left after undoing rz, so the result reproduces the pose to rounding even at
    gimbal lock (ry = +-pi/2), where rz alone is arbitrary. Differentiable except there.
    Source: K. Shoemake, Euler angle conversion, Graphics Gems IV (1994).
    """
    r = pose[..., :3, :3]
    rz = torch.atan2(r[..., 1, 0], r[..., 0, 0])
    sz, cz = rz.sin(), rz.cos()
    rx = torch.atan2(sz * r[..., 0, 2] - cz * r[..., 1, 2], cz * r[..., 1, 1] - sz * r[..., 0, 1])
    ry = torch.atan2(-r[..., 2, 0], cz * r[..., 0, 0] + sz * r[..., 1, 0])
    return torch.cat((pose[..., :3, 3], torch.stack((rx, ry, rz), -1)), -1)


def look_at(
    eye: torch.Tensor,  # [..., 3]
    target: torch.Tensor,  # [..., 3]
    up: tuple[float, float, float] | torch.Tensor = (0.0, 0.0, 1.0),  # [3]
) -> torch.Tensor:
    """Camera-to-world pose [..., 4, 4] at `eye` looking at `target`, with `up` upwards in the image (metres, world).

    forward = (target - eye) / |target - eye|, right = forward x up / |...|, down = forward x right.
    Looking along `up` itself, the top of the image is world +y (or +z if that is the viewing direction).
    Differentiable in eye and target. Raises ValueError if a target coincides with its eye, or for NaN.

    >>> look_at(torch.zeros(3), torch.tensor([0.0, 2.0, 0.0]))[:3, :3]  # looking north: right is east
    tensor([[ 1.,  0.,  0.],
            [ 0.,  0.,  1.],
            [ 0., -1.,  0.]])
    """
    eye, target = torch.broadcast_tensors(eye, target)
    up = torch.as_tensor(up, dtype=eye.dtype, device=eye.device)
    offset = target - eye
    length = offset.norm(dim=-1, keepdim=True)
    if not bool((length > 0).all()):
        raise ValueError("target: must be finite and differ from eye")
    forward = offset / length
    y_axis, z_axis = torch.eye(3, dtype=eye.dtype, device=eye.device)[1:]
    substitute = torch.where(forward[..., 1:2].abs() < 0.9, y_axis, z_axis)
    along_up = torch.linalg.cross(forward, up.expand_as(forward)).norm(dim=-1, keepdim=True) < 1e-6 * up.norm()
    right = torch.linalg.cross(forward, torch.where(along_up, substitute, up))
    right = right / right.norm(dim=-1, keepdim=True)
    down = torch.linalg.cross(forward, right)
    return make_pose(torch.stack((right, down, forward), -1), eye)


def quaternion_from_rotation(
    rotation: torch.Tensor,  # [..., 3, 3]
) -> torch.Tensor:
    """Unit quaternions (w, x, y, z) [..., 4] of rotations, w >= 0. Differentiable.

    4 q q^T is linear in R: its row with the largest diagonal entry is normalised, so nothing small is divided by.
    Source: S. W. Shepperd, Quaternion from rotation matrix, J. Guidance and Control 1 (1978).

    >>> quaternion_from_rotation(torch.eye(3))
    tensor([1., 0., 0., 0.])
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotation.unbind(-2))
    outer = torch.stack(
        (
            torch.stack((1 + a + e + i, h - f, c - g, d - b), -1),
            torch.stack((h - f, 1 + a - e - i, b + d, c + g), -1),
            torch.stack((c - g, b + d, 1 - a + e - i, f + h), -1),
            torch.stack((d - b, c + g, f + h, 1 - a - e + i), -1),
        ),
        -2,
    )
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*rotation.shape[:-2], 1, 4)
    quaternion = torch.nn.functional.normalize(outer.gather(-2, largest)[..., 0, :], dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def rotation_from_quaternion(
    quaternion: torch.Tensor,  # [..., 4]
) -> torch.Tensor:
    """Rotations [..., 3, 3] of quaternions (w, x, y, z), which are normalised first. Differentiable."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def slerp(
    first: torch.Tensor,  # [..., 4]
    second: torch.Tensor,  # [..., 4]
    fraction: torch.Tensor,  # [...]
) -> torch.Tensor:
    """Unit quaternion [..., 4] on the shorter arc from `first` (fraction 0) to `second` (1), at constant angular speed.

    q = (sin((1 - s) a) q0 + sin(s a) q1) / sin a, a the angle between them. Differentiable.
    Source: K. Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """
    fraction = fraction[..., None]
    second = torch.where((first * second).sum(-1, keepdim=True) < 0, -second, second)
    # atan2 of half sum and half difference keeps full precision for small angles, where acos loses half the digits.
    angle = 2 * torch.atan2((second - first).norm(dim=-1, keepdim=True), (second + first).norm(dim=-1, keepdim=True))
    straight = angle < 1e-4  # sin a / a differs from 1 by less than 2e-9
    safe = torch.where(straight, 1, angle)
    curved = (torch.sin((1 - fraction) * safe) * first + torch.sin(fraction * safe) * second) / torch.sin(safe)
    return torch.nn.functional.normalize(torch.where(straight, torch.lerp(first, second, fraction), curved), dim=-1)


def interpolate_poses(
    poses: torch.Tensor,  # [K, 4, 4]
    times: torch.Tensor,  # [N]
    smooth: bool = True,
) -> torch.Tensor:
    """Poses [N, 4, 4] along a trajectory: time k is poses[k], times between run from one pose to the next.

    Rotations: slerp. Positions: a Catmull-Rom spline (smooth=True: continuous velocity), or straight lines.
    With p0..p3 the four nearest positions, p(s) = p1 + s/2 (p2 - p0) + s^2/2 (2 p0 - 5 p1 + 4 p2 - p3)
    + s^3/2 (3 p1 - p0 - 3 p2 + p3); beyond the ends the trajectory is continued in a straight line.

    Args:
        poses: [K, 4, 4] rigid, K >= 1.
        times: [N] in units of poses, between 0 and K - 1.
        smooth: Catmull-Rom positions, otherwise linear.

    Raises:
        ValueError: no poses, poses that are not rigid, or a time outside [0, K - 1].

    >>> a, b = torch.eye(4), pose_from_euler(torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    >>> interpolate_poses(torch.stack((a, b)), torch.tensor([0.25]))[0, 0, 3]
    tensor(0.5000)
    """
    check_pose(poses, "poses")
    if poses.ndim != 3 or len(poses) == 0:
        raise ValueError(f"poses: expected shape [K, 4, 4] with K >= 1, got {list(poses.shape)}")
    times = torch.as_tensor(times, dtype=poses.dtype, device=poses.device)
    last = len(poses) - 1
    if times.ndim != 1 or not bool(((times >= 0) & (times <= last)).all()):
        raise ValueError(f"times: expected [N] numbers between 0 and {last}, got {times.detach().cpu().numpy()}")
    start = times.detach().long().clamp(max=max(last - 1, 0))
    stop = (start + 1).clamp(max=last)
    s = times - start
    quaternions = quaternion_from_rotation(poses[:, :3, :3])
    rotation = rotation_from_quaternion(slerp(quaternions[start], quaternions[stop], s))
    position = poses[:, :3, 3]
    p1, p2, s = position[start], position[stop], s[:, None]
    if smooth:
        p0 = torch.where((start > 0)[:, None], position[(start - 1).clamp(min=0)], 2 * p1 - p2)
        p3 = torch.where((stop < last)[:, None], position[(stop + 1).clamp(max=last)], 2 * p2 - p1)
        velocity, curvature, jerk = p2 - p0, 2 * p0 - 5 * p1 + 4 * p2 - p3, 3 * (p1 - p2) + p3 - p0
        return make_pose(rotation, p1 + s / 2 * (velocity + s * (curvature + s * jerk)))
    return make_pose(rotation, torch.lerp(p1, p2, s))


def pose_from_opengl(
    matrix: torch.Tensor,  # [..., 4, 4]
) -> torch.Tensor:
    """OpenCV camera-to-world [..., 4, 4] of one with OpenGL axes (x right, y up, looking along -z).

    M diag(1, -1, -1, 1): only the camera's axes change, the world stays. Its own inverse.
    """
    return matrix * torch.tensor([1, -1, -1, 1], dtype=matrix.dtype, device=matrix.device)


def pose_from_unity(
    values: torch.Tensor,  # [..., 6]
) -> torch.Tensor:
    """Camera-to-world [..., 4, 4] in a z-up world of the EvoWorld authors' (PosX, PosY, PosZ, RotX, RotY, RotZ).

    Args:
        values: [..., 6] metres and degrees, Unity axes (left-handed, y up). Times (1, -1, 1, -1, 1, -1) they are
            OpenCV axes with R = Rz Ry Rx in a world whose y points down; turning that world about x puts z up:
            (x, y, z) -> (x, z, -y), so Unity's forward z becomes the world's y.

    >>> pose_from_unity(torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 0.0]))[:3, 3]  # 2 m up, 3 m ahead
    tensor([1., 3., 2.])
    """
    signs = torch.tensor([1, -1, 1, -1, 1, -1], dtype=values.dtype, device=values.device)
    values = values * signs
    pose = pose_from_euler(torch.cat((values[..., :3], torch.deg2rad(values[..., 3:])), -1))
    x, y, z, bottom = pose.unbind(-2)
    return torch.stack((x, z, -y, bottom), -2)
