import dataclasses
import json
import math

import pytest
import torch

from evoworld.geometry import CUBEMAP_FACES, Cubemap, Panorama, Pinhole, camera_from_config, look_at, pose_from_euler

CAMERAS = [
    Panorama(1, 2),
    Panorama(7, 14),
    Panorama(256, 512),
    Pinhole(5, 9, fx=4.0, fy=6.5, cx=3.25, cy=2.0),
    Cubemap(1),
    Cubemap(5),
    Cubemap(64),
]
DIRECTION_OF_FACE = {
    "front": (0, 0, 1),
    "right": (1, 0, 0),
    "back": (0, 0, -1),
    "left": (-1, 0, 0),
    "up": (0, -1, 0),
    "down": (0, 1, 0),
}


def pixel_centres(camera, dtype=torch.float32):
    v, u = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    return torch.stack((u, v), -1).reshape(-1, 2).to(dtype)


@pytest.mark.parametrize("camera", CAMERAS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_project_inverts_directions(camera, dtype):
    directions = camera.directions(dtype)
    assert directions.shape == (camera.num_rays, 3) and directions.dtype == dtype
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(camera.num_rays, dtype=dtype), rtol=0, atol=3e-7)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    for distance in (1e-3, 1.0, 300.0):
        error = (camera.project(directions * distance) - pixel_centres(camera, dtype)).abs().max()
        assert error < tolerance


def test_large_panorama_projects_in_float32():
    camera = Panorama(1024, 2048)
    assert (camera.project(camera.directions()) - pixel_centres(camera)).abs().max() < 1e-3


def test_panorama_directions_follow_the_formula():
    height, width = 3, 6
    directions = Panorama(height, width).directions(torch.float64).reshape(height, width, 3)
    for v in range(height):
        for u in range(width):
            lon = ((u + 0.5) / width - 0.5) * 2 * math.pi
            lat = (0.5 - (v + 0.5) / height) * math.pi
            expected = (math.cos(lat) * math.sin(lon), -math.sin(lat), math.cos(lat) * math.cos(lon))
            assert directions[v, u].tolist() == pytest.approx(expected, abs=1e-15)


def test_panorama_projects_known_directions():
    camera = Panorama(4, 8)
    points = torch.tensor([[0, 0, 2], [3, 0, 0], [-3, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, 0], [0, -1, 1]]).double()
    expected = torch.tensor([[4, 2], [6, 2], [2, 2], [4, 0], [4, 4], [4, 2], [4, 1]]).double()
    torch.testing.assert_close(camera.project(points), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("height", [3, 256, 1000])
def test_panorama_seam_stays_inside_the_image(height, dtype):
    x = torch.tensor([0.0, -0.0, 1e-12, -1e-12, 1e-7, -1e-7, 1e-45, -1e-45], dtype=dtype)
    points = torch.stack((x, torch.zeros_like(x), -torch.ones_like(x)), -1)
    u = Panorama(height, 2 * height).project(points)[:, 0]
    assert ((u >= 0) & (u < 2 * height)).all()
    distance_to_seam = torch.minimum(u, 2 * height - u)
    assert distance_to_seam.max() < 1e-3


def test_panorama_gradients_are_finite_at_poles_and_zero():
    points = torch.tensor([[0.0, -1, 0], [0, 1, 0], [0, 0, 0], [0, 0, -1], [1e-6, 1, 0]], requires_grad=True)
    u, v = Panorama(4, 8).project(points).unbind(-1)
    (u_gradient,) = torch.autograd.grad(u.sum(), points, retain_graph=True)
    (v_gradient,) = torch.autograd.grad(v.sum(), points)
    assert u.isfinite().all() and v.isfinite().all()
    assert (u_gradient[:3] == 0).all() and u_gradient.isfinite().all()
    assert v_gradient.isfinite().all()


@pytest.mark.parametrize("face", CUBEMAP_FACES)
def test_cubemap_faces_look_where_they_say(face):
    camera = Cubemap(3)
    image = camera.directions(torch.float64).reshape(3, 6, 3, 3)
    middle = image[1, CUBEMAP_FACES.index(face), 1]
    torch.testing.assert_close(middle, torch.tensor(DIRECTION_OF_FACE[face], dtype=torch.float64))


@pytest.mark.parametrize(
    "first, second",
    [
        (("front", 0, 1), ("right", 0, -1)),
        (("right", 0, 1), ("back", 0, -1)),
        (("back", 0, 1), ("left", 0, -1)),
        (("left", 0, 1), ("front", 0, -1)),
        (("up", 1, 0), ("front", -1, 0)),
        (("front", 1, 0), ("down", -1, 0)),
    ],
    ids=lambda edge: edge[0],
)
def test_cubemap_faces_touch(first, second):
    """Pixels on both sides of an edge look almost the same way; moving out of one face enters the other."""
    size = 65
    image = Cubemap(size).directions(torch.float64).reshape(size, 6, size, 3)

    def middle_of_edge(name, down, right):
        half = size // 2
        return image[half + half * down, CUBEMAP_FACES.index(name), half + half * right]

    assert middle_of_edge(*first) @ middle_of_edge(*second) > math.cos(1.1 / size)


def test_cubemap_is_six_pinholes():
    size = 4
    ahead = Pinhole(size, size, size / 2, size / 2, size / 2, size / 2).directions()
    front = Cubemap(size).directions().reshape(size, 6, size, 3)[:, 0].reshape(-1, 3)
    torch.testing.assert_close(front, ahead)


def test_cubemap_project_of_special_points():
    camera = Cubemap(4)
    pixels = camera.project(torch.tensor([[0.0, 0, 0], [math.nan, 1, 1], [1, 1, 1], [-1, -1, -1]]))
    assert pixels[0].tolist() == [2, 2]
    assert pixels[1].isnan().all()
    assert ((pixels[2:] >= 0) & (pixels[2:] <= torch.tensor([24.0, 4.0]))).all()


def test_pinhole_projects_by_the_formula_and_hides_what_is_behind():
    camera = Pinhole(4, 6, fx=3.0, fy=5.0, cx=2.5, cy=1.5)
    points = torch.tensor([[1.0, 2, 4], [0, 0, -1], [1, 1, 0], [-9, 0, 1], [0, 0, math.nan]], requires_grad=True)
    pixels = camera.project(points)
    assert pixels[0].tolist() == [3.25, 4.0]
    assert pixels[[1, 2, 4]].isnan().all()
    assert pixels[3].tolist() == [-24.5, 1.5], "beside the image is not behind it"
    pixels[[0, 3]].sum().backward()
    assert points.grad.isfinite().all()


def test_pinhole_from_fov_sees_the_field_of_view():
    camera = Pinhole.from_fov(3, 5, 1.2)
    edge = torch.tensor([math.tan(0.6), 0, 1], dtype=torch.float64)
    assert camera.project(edge).tolist() == pytest.approx([5, 1.5])


@pytest.mark.parametrize("camera", [Panorama(3, 6), Pinhole(3, 4, 2.0, 2.5, 1.5, 1.0), Cubemap(3)], ids=str)
def test_project_and_rays_gradcheck(camera):
    torch.manual_seed(0)
    pose = torch.tensor([1.0, 2, 3, 0.3, -0.5, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: camera.rays(pose_from_euler(p)), (pose,))
    points = (camera.directions(torch.float64) * 2 + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(camera.project, (points,))


@pytest.mark.parametrize("camera", CAMERAS, ids=str)
def test_rays_carry_directions_into_the_world(camera):
    poses = pose_from_euler(torch.tensor([[1.0, 2, 3, 0.1, 0.2, 0.3], [4, 5, 6, -2, 1, 0.5]], dtype=torch.float64))
    origins, directions = camera.rays(poses[:, None])
    assert origins.shape == directions.shape == (2, 1, camera.num_rays, 3)
    assert origins.is_contiguous()
    expected = camera.directions(torch.float64) @ poses[1, :3, :3].T
    torch.testing.assert_close(directions[1, 0], expected)
    torch.testing.assert_close(origins[1, 0], poses[1, :3, 3].expand_as(expected))


def test_rays_of_a_camera_looking_east():
    pose = look_at(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 2.0, 3.0]))
    origins, directions = Panorama(2, 4).rays(pose)
    image = directions.reshape(2, 4, 3)
    assert (image[0, :, 2] > 0).all() and (image[1, :, 2] < 0).all(), "the upper half of the image is up"
    assert (image[:, 1:3, 0] > 0).all() and (image[:, [0, 3], 0] < 0).all(), "the middle of the image is ahead"
    assert (image[:, :2, 1] > 0).all() and (image[:, 2:, 1] < 0).all(), "the left half is north of a view to the east"
    assert origins[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("camera", [Panorama(5, 10), Pinhole(5, 7, 3.0, 4.0, 2.0, 3.0), Cubemap(5)], ids=str)
def test_range_and_depth(camera):
    depth = torch.rand(2, camera.height, camera.width, dtype=torch.float64) + 0.5
    depth[:, 0, 0] = 0
    ranges = camera.range_from_depth(depth)
    assert (ranges[:, 0, 0] == 0).all()
    torch.testing.assert_close(camera.depth_from_range(ranges), depth)
    if isinstance(camera, Panorama):
        assert torch.equal(ranges, depth)
    if isinstance(camera, Pinhole):
        points = camera.directions(torch.float64) * ranges[0].reshape(-1, 1)
        torch.testing.assert_close(points[:, 2], depth[0].reshape(-1))


@pytest.mark.parametrize("camera", [Panorama(1, 2), Panorama(33, 66), Cubemap(1), Cubemap(17)], ids=str)
def test_solid_angles_cover_the_sphere(camera):
    angle = camera.solid_angle(torch.float64)
    assert angle.shape == (camera.height, camera.width)
    assert (angle > 0).all()
    assert angle.sum().item() == pytest.approx(4 * math.pi, rel=1e-12)


def test_solid_angle_of_a_pinhole_is_that_of_a_cube_face():
    face = Pinhole(6, 6, 3.0, 3.0, 3.0, 3.0).solid_angle(torch.float64)
    assert face.sum().item() == pytest.approx(4 * math.pi / 6)
    torch.testing.assert_close(Cubemap(6).solid_angle(torch.float64)[:, 30:], face)
    small = Pinhole(1, 1, 1000.0, 1000.0, 0.5, 0.5).solid_angle(torch.float64)
    assert small.item() == pytest.approx(1e-6, rel=1e-5)


@pytest.mark.parametrize("camera", CAMERAS, ids=str)
def test_config_round_trip_through_json(camera):
    assert camera_from_config(json.loads(json.dumps(camera.to_config()))) == camera


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Panorama(256, 500), "width must be 2 \\* height, got height=256, width=500"),
        (lambda: Panorama(0, 0), "height must be a positive integer, got 0"),
        (lambda: Panorama(2.5, 5), "height must be a positive integer, got 2.5"),
        (lambda: Panorama(True, 2), "height must be a positive integer, got True"),
        (lambda: Cubemap(-1), "size must be a positive integer, got -1"),
        (lambda: Pinhole(4, 0, 1, 1, 1, 1), "width must be a positive integer"),
        (lambda: Pinhole(4, 4, 0.0, 1, 1, 1), "fx must be positive and finite, got 0.0"),
        (lambda: Pinhole(4, 4, 1, math.nan, 1, 1), "fy must be positive and finite, got nan"),
        (lambda: Pinhole(4, 4, 1, 1, math.inf, 1), "cx must be finite, got inf"),
        (lambda: Pinhole(4, 4, 1, 1, 1, "a"), "cy must be a number, got 'a'"),
        (lambda: Pinhole.from_fov(4, 4, 4.0), "horizontal_fov must be between 0 and pi"),
        (lambda: camera_from_config({"kind": "fisheye"}), "kind panorama, pinhole or cubemap, got {'kind': 'fisheye'}"),
        (lambda: camera_from_config({"kind": []}), "kind panorama, pinhole or cubemap"),
        (lambda: camera_from_config([]), "expected a dictionary"),
        (lambda: camera_from_config({"kind": "panorama", "size": 3}), "needs exactly \\['height', 'width'\\]"),
        (lambda: Panorama(2, 4).rays(torch.eye(3)), "camera_to_world: expected shape \\[..., 4, 4\\], got \\[3, 3\\]"),
        (lambda: Panorama(2, 4).rays(torch.eye(4).long()), "camera_to_world: expected a floating-point tensor"),
        (lambda: Panorama(2, 4).project(torch.ones(4)), "points: expected shape \\[..., 3\\], got \\[4\\]"),
        (lambda: Cubemap(2).range_from_depth(torch.ones(2, 2)), "depth: expected shape \\[..., 2, 12\\]"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_cameras_are_frozen_and_hashable():
    assert len({Panorama(2, 4), Panorama(2, 4), Cubemap(2)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Cubemap(2).size = 3


def test_cached_tables_survive_inference_mode():
    camera = Panorama(11, 22)
    with torch.inference_mode():
        camera.directions()
        camera.solid_angle()
        Cubemap(11).range_from_depth(torch.ones(11, 66))
    pose = torch.eye(4, requires_grad=True)
    camera.rays(pose)[1].sum().backward()
    depth = torch.ones(11, 66, requires_grad=True)
    (Cubemap(11).range_from_depth(depth).sum() + camera.solid_angle().sum()).backward()
    assert pose.grad.isfinite().all() and depth.grad.isfinite().all()


def test_directions_are_computed_once():
    camera = Panorama(64, 128)
    assert camera.directions() is camera.directions()
    assert camera.directions().data_ptr() != camera.directions(torch.float64).data_ptr()


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_rays_compile():
    compiled = torch.compile(Panorama(3, 6).rays, fullgraph=True, backend="eager")
    pose = pose_from_euler(torch.rand(6))
    torch.testing.assert_close(compiled(pose), Panorama(3, 6).rays(pose))
