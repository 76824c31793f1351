"""Resampling, against known directions and against py360convert.

py360convert agrees in the order and orientation of cube faces and in the pixel centres of a panorama, but puts the
outermost pixel centres of faces and views on their edges. The tests pick sizes and focal lengths for which both ask
for the same directions; then even noise must agree to rounding.
"""

import math

import numpy as np
import pytest
import torch

from evoworld.geometry import (
    CUBEMAP_FACES,
    Cubemap,
    Panorama,
    Pinhole,
    cubemap_to_panorama,
    panorama_to_cubemap,
    panorama_to_pinhole,
    pinhole_to_panorama,
    pose_from_euler,
    rotate,
    rotate_panorama,
    sample_cubemap,
    sample_panorama,
    sample_pinhole,
)

DOUBLE = torch.float64


@pytest.fixture
def py360convert(monkeypatch):
    module = pytest.importorskip("py360convert")
    monkeypatch.setattr("py360convert.utils.cv2", None)  # OpenCV's bilinear weights are rounded to 1/32
    return module


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def random_directions(*shape, seed=1):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def random_rotation(seed):
    angles = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE) * 3
    return pose_from_euler(angles)[:3, :3]


def smooth(directions):
    """A band-limited function on the sphere [..., 3]: a polynomial of degree 3, slopes of a few units a radian."""
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    return torch.stack((x * y - z, x * x * z + y, x * y * z - 0.5 * x), -1)


def smooth_image(camera, dtype=DOUBLE):
    return smooth(camera.directions(dtype)).reshape(camera.height, camera.width, 3)


def rotation(pitch=0.0, yaw=0.0, roll=0.0):
    return pose_from_euler(torch.tensor([0, 0, 0, pitch, yaw, roll], dtype=DOUBLE))[:3, :3]


# against py360convert


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("height, size", [(16, 8), (33, 12), (64, 5)])
def test_panorama_to_cubemap_is_py360converts(py360convert, height, size, mode):
    """Its faces of 2 S + 1 pixels, corner to corner, have our S pixel centres at their odd pixels."""
    image = noise(height, 2 * height, 2)
    faces = py360convert.e2c(image.numpy(), 2 * size + 1, mode=mode, cube_format="list")
    expected = np.concatenate([face[1::2, 1::2] for face in faces], axis=1)
    difference = np.abs(panorama_to_cubemap(image, size, mode).numpy() - expected).max(-1)
    if mode == "bilinear":
        assert difference.max() < 5e-5
    else:  # a pixel centre that falls on the border of two pixels may go either way
        assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("yaw, pitch, fov", [(0, 0, 90), (37, 20, 100), (180, -60, 60), (-120, 90, 75), (10, -90, 120)])
def test_panorama_to_pinhole_is_py360converts(py360convert, yaw, pitch, fov):
    """Its outermost pixel centres, not the image's edges, span the field of view; yaw to the right, pitch up."""
    height, width = 21, 31
    image = noise(32, 64, 2)
    expected = py360convert.e2p(image.numpy(), (fov, fov * 0.7), yaw, pitch, (height, width))
    fx = (width - 1) / 2 / math.tan(math.radians(fov) / 2)
    fy = (height - 1) / 2 / math.tan(math.radians(fov * 0.7) / 2)
    camera = Pinhole(height, width, fx, fy, width / 2, height / 2)
    result = panorama_to_pinhole(image, camera, rotation(math.radians(pitch), math.radians(yaw)))
    difference = np.abs(result.numpy() - expected).max(-1)
    if abs(pitch) == 90:
        difference[height // 2, width // 2] = 0  # the pole itself: its longitude is a matter of rounding
    assert difference.max() < 2e-4


def test_cubemap_to_panorama_is_py360converts(py360convert):
    """Its panorama has pixel centres on the poles and on both sides of the seam, and it reads its faces half a pixel
    too far right and down (its sampler adds the pad of one pixel to coordinates that start at the edge of the face,
    not at the centre of the first pixel); its corners are not filled."""
    size, height, width = 16, 24, 48
    cubemap = noise(size, 6 * size, 1)
    sampler = py360convert.utils.CubeFaceSampler.from_equirec(size, height, width, 1)
    half_pixel_back = type(sampler)(
        sampler._tp, sampler._coor_x - 1.5, sampler._coor_y - 1.5, 1, size, size
    )  # the constructor adds 1 again
    expected = half_pixel_back(np.stack(np.split(cubemap[..., 0].numpy(), 6, axis=1)))
    lon = torch.linspace(-math.pi, math.pi, width, dtype=DOUBLE)
    lat = torch.linspace(math.pi / 2, -math.pi / 2, height, dtype=DOUBLE)[:, None]
    shape = (height, width)
    directions = torch.stack((lat.cos() * lon.sin(), -lat.sin().expand(shape), lat.cos() * lon.cos()), -1)
    face, u, v = Cubemap(size).face_coordinates(directions)
    near_corner = ((u - size / 2).abs() > size / 2 - 0.5) & ((v - size / 2).abs() > size / 2 - 0.5)
    # Its table of faces is rounded to pixels, so along the edges it reads a face that does not see the direction.
    comparable = ~near_corner & (face == torch.tensor(sampler._tp))
    assert comparable.double().mean() > 0.9
    difference = (sample_cubemap(cubemap, directions)[..., 0] - torch.from_numpy(expected)).abs()
    assert difference[comparable].max() < 5e-5


def test_cubemap_to_panorama_is_near_py360converts_on_a_smooth_image(py360convert):
    size, height = 128, 64
    cubemap = smooth_image(Cubemap(size), torch.float32)
    expected = torch.from_numpy(py360convert.c2e(cubemap.numpy(), height, 2 * height, cube_format="horizon"))
    # Pixel centres differ by up to half a panorama pixel, faces by half a face pixel, and slopes are below 3.
    assert (cubemap_to_panorama(cubemap, height) - expected).abs().max() < 3 * (math.pi / height / 2 + 2 / size / 2)


# known values


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_pixel_centres_return_the_pixels(mode, dtype):
    panorama, cubemap, camera = Panorama(9, 18), Cubemap(7), Pinhole(5, 8, 4.0, 5.0, 3.0, 2.0)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-13
    image = noise(9, 18, 3, dtype=dtype)
    result = sample_panorama(image, panorama.directions(dtype), mode)
    torch.testing.assert_close(result, image.reshape(-1, 3), rtol=0, atol=tolerance)
    image = noise(7, 42, 3, dtype=dtype)
    result = sample_cubemap(image, cubemap.directions(dtype), mode)
    torch.testing.assert_close(result, image.reshape(-1, 3), rtol=0, atol=tolerance)
    image = noise(5, 8, 3, dtype=dtype)
    result, inside = sample_pinhole(image, camera, 3 * camera.directions(dtype), mode)
    torch.testing.assert_close(result, image.reshape(-1, 3), rtol=0, atol=tolerance)
    assert inside.all()


def test_panorama_seam():
    image = torch.zeros(4, 8)
    image[:, 0], image[:, -1] = 1, 3
    behind = torch.tensor([[0.0, 0.0, -1.0], [-0.0, 0.0, -1.0], [1e-6, 0.0, -1.0], [-1e-6, 0.0, -1.0]])
    torch.testing.assert_close(sample_panorama(image, behind), torch.full((4,), 2.0), rtol=0, atol=1e-5)
    nearest = sample_panorama(image, torch.tensor([[0.01, 0.0, -1.0], [-0.01, 0.0, -1.0]]), "nearest")
    assert nearest.tolist() == [3, 1]


def test_panorama_poles():
    """Half-way between the pole and the centre of the first row lies a quarter of the opposite column's value."""
    height, width = 4, 8
    image = torch.zeros(height, width)
    image[0, 2], image[0, 2 + 4] = 8, 16
    image[3, 1], image[3, 1 + 4] = 8, 16
    lon = [((u + 0.5) / width - 0.5) * 2 * math.pi for u in range(width)]

    def value(u, lat):
        direction = [math.cos(lat) * math.sin(lon[u]), -math.sin(lat), math.cos(lat) * math.cos(lon[u])]
        return sample_panorama(image, torch.tensor(direction)).item()

    quarter_row = (0.5 - 0.25 / height) * math.pi
    assert value(2, quarter_row) == pytest.approx(0.75 * 8 + 0.25 * 16, abs=1e-4)
    assert value(6, quarter_row) == pytest.approx(0.75 * 16 + 0.25 * 8, abs=1e-4)
    assert value(1, -quarter_row) == pytest.approx(0.75 * 8 + 0.25 * 16, abs=1e-4)
    assert value(3, quarter_row) == 0


def test_panorama_at_the_pole_is_the_same_from_every_side():
    image = noise(4, 8)
    angle = torch.linspace(0, 2 * math.pi, 9, dtype=DOUBLE)
    for sign in (1, -1):
        around = torch.stack((1e-9 * angle.sin(), torch.full_like(angle, sign), 1e-9 * angle.cos()), -1)
        opposite = around * torch.tensor([-1, 1, -1])
        torch.testing.assert_close(sample_panorama(image, around), sample_panorama(image, opposite))


def colours_of_faces(size):
    return torch.arange(6.0).repeat_interleave(size).expand(size, 6 * size)


def test_panorama_of_coloured_faces_and_back():
    size = 8
    panorama = cubemap_to_panorama(colours_of_faces(size), 32, "nearest")
    row_up, row_down, middle = panorama[0], panorama[-1], panorama[16]
    assert (row_up == CUBEMAP_FACES.index("up")).all() and (row_down == CUBEMAP_FACES.index("down")).all()
    expected = [name for name in ("back", "left", "front", "right", "back") for _ in range(8 if name == "back" else 16)]
    assert [CUBEMAP_FACES[int(value)] for value in middle] == expected
    back = panorama_to_cubemap(panorama, size, "nearest")
    assert (back == colours_of_faces(size)).double().mean() > 0.97


def test_cubemap_edges_and_corners_are_continuous():
    size = 5
    cubemap = noise(size, 6 * size, 2, dtype=DOUBLE)
    along = torch.linspace(-1, 1, 41, dtype=DOUBLE)
    one = torch.ones_like(along)
    for axes in (
        (0, 1, 2),
        (1, 2, 0),
        (2, 0, 1),
    ):  # two coordinates that are +-1, one free
        for first in (1, -1):
            for second in (1, -1):
                edge = torch.empty(41, 3, dtype=DOUBLE)
                edge[:, axes[0]], edge[:, axes[1]], edge[:, axes[2]] = first * one, second * one, along
                sides = []
                for nudged in axes[:2]:
                    side = edge.clone()
                    side[:, nudged] *= 1 + 1e-9
                    sides.append(sample_cubemap(cubemap, side))
                torch.testing.assert_close(sides[0], sides[1], rtol=0, atol=1e-7)
    for corner in torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=DOUBLE)] * 3):
        sides = corner * (1 + 1e-9 * torch.eye(3, dtype=DOUBLE))
        values = sample_cubemap(cubemap, sides)
        torch.testing.assert_close(values, values[:1].expand(3, 2), rtol=0, atol=1e-7)


def test_pinhole_mask_and_border():
    camera = Pinhole(2, 2, 1.0, 1.0, 1.0, 1.0)
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    directions = torch.tensor([[-0.99, -0.99, 1], [0, 0, 1], [1.01, 0, 1], [0, 0, -1], [math.nan, 0, 1], [0, 0, 0]])
    values, inside = sample_pinhole(image, camera, directions)
    assert inside.tolist() == [True, True, False, False, False, False]
    assert values.tolist() == [1.0, 2.5, 0, 0, 0, 0]


# round trips and rotations


def test_round_trips_of_a_smooth_image():
    panorama, cubemap = Panorama(128, 256), Cubemap(64)
    image = smooth_image(panorama)
    faces = panorama_to_cubemap(image, 64)
    assert (faces - smooth_image(cubemap)).abs().max() < 2e-3
    assert (cubemap_to_panorama(faces, 128) - image).abs().max() < 4e-3
    camera, turn = Pinhole.from_fov(96, 128, 1.5), random_rotation(4)
    view = panorama_to_pinhole(image, camera, turn)
    expected = smooth(rotate(turn, camera.directions(DOUBLE))).reshape(view.shape)
    assert (view - expected).abs().max() < 2e-3
    back, mask = pinhole_to_panorama(view, camera, 128, turn.T)
    assert (back - image)[mask].abs().max() < 2e-2  # the outer half pixel of the view holds its border's value
    assert (back[~mask] == 0).all()
    share = camera.solid_angle(DOUBLE).sum() / (4 * math.pi)
    assert (mask * panorama.solid_angle(DOUBLE)).sum() / (4 * math.pi) == pytest.approx(share.item(), rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_rotated_panorama(seed):
    panorama, turn = Panorama(128, 256), random_rotation(seed)
    expected = smooth(rotate(turn, panorama.directions(DOUBLE))).reshape(128, 256, 3)
    assert (rotate_panorama(smooth_image(panorama), turn) - expected).abs().max() < 2e-3


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("columns", [1, 5, 16, -3])
def test_yaw_by_whole_columns_is_a_roll(columns, mode):
    image = noise(16, 32, 3, dtype=DOUBLE)
    turned = rotate_panorama(image, rotation(yaw=columns * 2 * math.pi / 32), mode)
    torch.testing.assert_close(turned, image.roll(-columns, dims=1))


def test_depth_travels_as_range():
    """A plane at z = 2 seen by a panorama and by a pinhole that stands at the same place."""
    panorama, camera = Panorama(64, 128), Pinhole.from_fov(24, 32, 1.2)
    z = panorama.directions(DOUBLE)[:, 2].reshape(64, 128)
    ranges = torch.where(z > 0.05, 2 / z, 0)
    for mode, tolerance in (("bilinear", 2e-3), ("nearest", 0.1)):
        depth = camera.depth_from_range(panorama_to_pinhole(ranges, camera, mode=mode))
        assert (depth - 2).abs().max() < tolerance
    back, mask = pinhole_to_panorama(camera.range_from_depth(torch.full((24, 32), 2.0)), camera, 64)
    assert (back - ranges)[mask].abs().max() < 2e-2


def test_nearest_invents_no_depth():
    image = torch.where(noise(16, 32) > 0.5, 1.0, 9.0)
    views = [panorama_to_cubemap(image, 9, "nearest"), rotate_panorama(image, random_rotation(1), "nearest")]
    views.append(panorama_to_pinhole(image, Pinhole.from_fov(9, 9, 1.0), mode="nearest"))
    views.append(cubemap_to_panorama(views[0], 11, "nearest"))
    for view in views:
        assert set(view.unique().tolist()) == {1.0, 9.0}


# gradients, shapes, dtypes, bad input


def test_gradients():
    directions = random_directions(5).requires_grad_()
    panorama = noise(3, 6, 2, dtype=DOUBLE).requires_grad_()
    cubemap = noise(2, 12, 2, dtype=DOUBLE).requires_grad_()
    assert torch.autograd.gradcheck(sample_panorama, (panorama, directions))
    assert torch.autograd.gradcheck(sample_cubemap, (cubemap, directions))
    camera = Pinhole(3, 4, 3.0, 3.0, 2.0, 1.5)
    view = noise(3, 4, 2, dtype=DOUBLE).requires_grad_()
    ahead = (camera.directions(DOUBLE)[[0, 5, 6]] + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, d: sample_pinhole(i, camera, d)[0], (view, ahead))


def test_rotation_gets_a_gradient():
    angles = torch.tensor([0, 0, 0, 0.2, 0.1, -0.3], dtype=DOUBLE, requires_grad=True)
    image = smooth_image(Panorama(8, 16))
    rotate_panorama(image, pose_from_euler(angles)[:3, :3]).square().sum().backward()
    assert (angles.grad[3:].abs() > 1e-3).all()


@pytest.mark.parametrize("trailing", [(), (1,), (3,), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE])
def test_shapes_and_dtypes(trailing, dtype):
    directions = random_directions(2, 5)
    for sample, width in ((sample_panorama, 8), (sample_cubemap, 24)):
        image = noise(4, width, *trailing, dtype=dtype)
        exact = sample(image.double(), directions)
        result = sample(image, directions)
        assert result.shape == (2, 5, *trailing) and result.dtype == dtype
        torch.testing.assert_close(result.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)
        assert sample(image, torch.zeros(0, 3)).shape == (0, *trailing)
        assert sample(image, directions[0, 0], "nearest").shape == trailing


def test_integer_images_are_sampled_nearest():
    labels = torch.arange(32).reshape(4, 8).to(torch.uint8)
    result = sample_panorama(labels, Panorama(4, 8).directions(), "nearest")
    assert torch.equal(result, labels.reshape(-1))


def test_unknown_directions():
    directions = torch.tensor([[math.nan, 0, 1], [0, 0, 0], [0, 0, 1]])
    for sample, width in ((sample_panorama, 8), (sample_cubemap, 24)):
        result = sample(noise(4, width, 2), directions)
        assert result[0].isnan().all() and result[1:].isfinite().all()
        assert sample(torch.ones(4, width, dtype=torch.int32), directions, "nearest").tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sample_panorama(torch.ones(4, 9, 3), torch.ones(3)), r"a panorama is \[H, 2H, C\], got \[4, 9, 3\]"),
        (lambda: sample_panorama(torch.ones(8), torch.ones(3)), r"expected \[H, W, C\] or \[H, W\], got \[8\]"),
        (lambda: sample_panorama(torch.ones(0, 0, 3), torch.ones(3)), r"expected \[H, W, C\] or \[H, W\]"),
        (lambda: sample_panorama(torch.ones(4, 8), torch.ones(2)), r"points: expected shape \[..., 3\], got \[2\]"),
        (lambda: sample_panorama(torch.ones(4, 8), torch.ones(3), "cubic"), "mode: expected one of .*, got 'cubic'"),
        (
            lambda: sample_panorama(torch.ones(4, 8).byte(), torch.ones(3)),
            "bilinear needs floating point, got torch.uint8",
        ),
        (lambda: sample_cubemap(torch.ones(4, 8), torch.ones(3)), r"cubemap: expected \[S, 6S, C\], got \[4, 8\]"),
        (
            lambda: sample_pinhole(torch.ones(4, 8), Pinhole(4, 7, 1, 1, 1, 1), torch.ones(3)),
            r"the camera expects \[4, 7, C\], got \[4, 8\]",
        ),
        (lambda: rotate_panorama(torch.ones(4, 8), torch.eye(4)), r"rotation: expected shape \[3, 3\], got \[4, 4\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
