"""Cameras: where each pixel looks, and where a point lands.

Every camera works in OpenCV axes (x right, y down, z forward). Pixel (v, u) of row v and column u has its centre at
(v + 0.5, u + 0.5), so the image covers [0, height] x [0, width]. Rays are row-major over the image.

Tables that depend only on the camera (directions, ray lengths, solid angles) are computed once in float64, rounded,
and cached for each device; the cached tensors are shared, so treat them as read-only.
"""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

import torch

from .poses import rotate

_CACHED_TABLES = 16  # a few cameras in two precisions; a 1024x2048 panorama costs 25 MB an entry
CUBEMAP_FACES = ("front", "right", "back", "left", "up", "down")

# Rows of a face are its right, down and forward axes in camera axes. Going right from front passes right, back, left;
# the bottom of `up` and the top of `down` touch the top and the bottom of `front`.
_FACE_FROM_CAMERA = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
)
_FACE_OF_AXIS = ((3, 1), (4, 5), (2, 0))  # [axis of the largest component][it is positive]


class Camera:
    """What all cameras share; use Panorama, Pinhole or Cubemap."""

    height: int
    width: int
    kind: ClassVar[str]

    @property
    def num_rays(self) -> int:
        """Number of pixels, R = height * width."""
        return self.height * self.width

    def directions(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> torch.Tensor:
        """Unit viewing directions [R, 3] in camera axes, row-major; cached and shared, do not write into it."""
        return _directions(self, dtype, torch.device(device))

    def rays(
        self,
        camera_to_world: torch.Tensor,  # [..., 4, 4]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """World rays of all pixels: origin = t, direction = R d for camera_to_world = [R t; 0 1].

        Args:
            camera_to_world: [..., 4, 4] rigid poses, metres; its dtype and device are those of the result.

        Returns:
            origins [..., R, 3] in metres and unit directions [..., R, 3], both differentiable in camera_to_world.

        Raises:
            ValueError: camera_to_world is not a floating-point tensor [..., 4, 4].

        >>> origins, directions = Panorama(2, 4).rays(torch.eye(4))
        >>> origins.shape, directions.shape
        (torch.Size([8, 3]), torch.Size([8, 3]))
        """
        _check_tensor("camera_to_world", camera_to_world, (4, 4))
        directions = self.directions(camera_to_world.dtype, camera_to_world.device)
        directions = rotate(camera_to_world[..., :3, :3], directions)
        origins = camera_to_world[..., None, :3, 3].expand_as(directions).contiguous()
        return origins, directions

    def project(
        self,
        points: torch.Tensor,  # [..., 3]
    ) -> torch.Tensor:
        """Pixel coordinates [..., 2] as (u, v) of points in camera axes; the inverse of `directions`."""
        raise NotImplementedError

    def solid_angle(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> torch.Tensor:
        """Solid angle of every pixel [H, W] in steradians, exact; cached and shared, do not write into it."""
        return _solid_angle(self, dtype, torch.device(device))

    def pixel_angle(self) -> float:
        """Width of the largest pixel, radians: the root of its solid angle.

        >>> Panorama(180, 360).pixel_angle() < math.radians(1)  # 1 degree wide; the poles' pixels are smaller
        True
        """
        return _pixel_angle(self)

    def range_from_depth(
        self,
        depth: torch.Tensor,  # [..., H, W]
    ) -> torch.Tensor:
        """Euclidean range along each ray [..., H, W] of this camera's depth image (metres); 0 stays 0.

        A panorama's depth is the range already; the depth of a pinhole or cubemap face is z: range = z / cos(angle
        between the ray and the optical axis). Resample ranges, never z-depths: only the range is the same in every
        camera that stands at the same place.

        >>> Pinhole(1, 3, fx=1.0, fy=1.0, cx=0.5, cy=0.5).range_from_depth(torch.ones(1, 3))
        tensor([[1.0000, 1.4142, 2.2361]])
        """
        return depth * self._lengths_for("depth", depth)

    def depth_from_range(
        self,
        range_image: torch.Tensor,  # [..., H, W]
    ) -> torch.Tensor:
        """This camera's depth image [..., H, W] of ranges along each ray (metres): inverse of range_from_depth."""
        return range_image / self._lengths_for("range_image", range_image)

    def to_config(self) -> dict[str, Any]:
        """Plain dictionary (json) that camera_from_config turns back into this camera.

        >>> camera_from_config(Panorama(2, 4).to_config())
        Panorama(height=2, width=4)
        """
        return {"kind": self.kind, **asdict(self)}

    def _lengths_for(self, name: str, image: torch.Tensor) -> torch.Tensor:
        _check_tensor(name, image, (self.height, self.width))
        return _ray_lengths(self, image.dtype, image.device)

    def _unscaled_directions(self) -> torch.Tensor:
        """[H, W, 3] float64 in camera axes, scaled so that range = depth * length."""
        raise NotImplementedError

    def _exact_solid_angle(self) -> torch.Tensor:
        """[H, W] float64."""
        raise NotImplementedError


@dataclass(frozen=True)
class Panorama(Camera):
    """Equirectangular camera: sees every direction once; longitude along columns, latitude along rows.

    lon = ((u + 0.5) / W - 0.5) 2 pi,  lat = (0.5 - (v + 0.5) / H) pi,
    direction = (cos lat sin lon, -sin lat, cos lat cos lon).

    Raises ValueError unless height > 0 and width = 2 * height.

    >>> Panorama(256, 512).project(torch.tensor([0.0, 0.0, 1.0]))  # straight ahead is the centre of the image
    tensor([256., 128.])
    """

    height: int
    width: int
    kind: ClassVar[str] = "panorama"

    def __post_init__(self) -> None:
        _set_sizes(self, "height", "width")
        if self.width != 2 * self.height:
            raise ValueError(f"Panorama: width must be 2 * height, got height={self.height}, width={self.width}")

    def project(
        self,
        points: torch.Tensor,  # [..., 3]
    ) -> torch.Tensor:
        """Pixel coordinates [..., 2] as (u, v) of points in camera axes: u in [0, W), v in [0, H].

        u = (atan2(x, z) / 2 pi + 0.5) W,  v = (0.5 + atan2(y, sqrt(x^2 + z^2)) / pi) H.
        Straight up and down have longitude 0, the zero vector is straight ahead; gradients there are finite too (the
        longitude's is 0). Points that hold NaN give NaN.
        """
        _check_tensor("points", points, (3,))
        x, y, z = points.unbind(-1)
        horizontal = torch.linalg.vector_norm(torch.stack((x, z), -1), dim=-1)  # gradient 0 at 0, unlike hypot's NaN
        u = (torch.atan2(x, z) / (2 * math.pi) + 0.5) * self.width
        u = torch.where(u >= self.width, u - self.width, u).clamp(min=0)
        v = (torch.atan2(y, horizontal) / math.pi + 0.5) * self.height
        return torch.stack((u, v), -1)

    def _unscaled_directions(self) -> torch.Tensor:
        lon = (_centres(self.width) / self.width - 0.5) * (2 * math.pi)
        lat = (0.5 - _centres(self.height) / self.height)[:, None] * math.pi
        shape = (self.height, self.width)
        return torch.stack((lat.cos() * lon.sin(), -lat.sin().expand(shape), lat.cos() * lon.cos()), -1)

    def _exact_solid_angle(self) -> torch.Tensor:
        edges = torch.sin((0.5 - torch.arange(self.height + 1, dtype=torch.float64) / self.height) * math.pi)
        return ((edges[:-1] - edges[1:]) * (2 * math.pi / self.width))[:, None].repeat(1, self.width)


@dataclass(frozen=True)
class Pinhole(Camera):
    """Perspective camera without distortion: u = fx x / z + cx, v = fy y / z + cy (pixels).

    Raises ValueError unless the sizes are positive, the focal lengths positive and all four numbers finite.

    >>> Pinhole(2, 2, fx=1.0, fy=1.0, cx=1.0, cy=1.0).project(torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, -2.0]]))
    tensor([[1., 1.],
            [nan, nan]])
    """

    height: int
    width: int
    fx: float
    fy: float
    cx: float
    cy: float
    kind: ClassVar[str] = "pinhole"

    def __post_init__(self) -> None:
        _set_sizes(self, "height", "width")
        for name in ("fx", "fy", "cx", "cy"):
            value = getattr(self, name)
            try:
                value = float(value)
            except (TypeError, ValueError):
                raise ValueError(f"Pinhole: {name} must be a number, got {value!r}") from None
            if not math.isfinite(value) or (name in ("fx", "fy") and value <= 0):
                expected = "positive and finite" if name in ("fx", "fy") else "finite"
                raise ValueError(f"Pinhole: {name} must be {expected}, got {value}")
            object.__setattr__(self, name, value)

    @classmethod
    def from_fov(cls, height: int, width: int, horizontal_fov: float) -> Pinhole:
        """Square-pixel camera, centred, whose left and right image edges are horizontal_fov (radians, < pi) apart.

        >>> Pinhole.from_fov(2, 4, math.pi / 2).fx
        2.0
        """
        if not 0 < horizontal_fov < math.pi:
            raise ValueError(f"Pinhole: horizontal_fov must be between 0 and pi radians, got {horizontal_fov}")
        focal = round(width / (2 * math.tan(horizontal_fov / 2)), 9)
        return cls(height, width, focal, focal, width / 2, height / 2)

    def project(
        self,
        points: torch.Tensor,  # [..., 3]
    ) -> torch.Tensor:
        """Pixel coordinates [..., 2] as (u, v) of points in camera axes.

        NaN where z <= 0 (behind the camera). Points in front but beside the image get coordinates outside
        [0, W] x [0, H]: the caller cuts. Differentiable in points.
        """
        _check_tensor("points", points, (3,))
        x, y, z = points.unbind(-1)
        behind = ~(z > 0)
        z = torch.where(behind, 1, z)
        pixels = torch.stack((self.fx * x / z + self.cx, self.fy * y / z + self.cy), -1)
        return torch.where(behind[..., None], math.nan, pixels)

    def _unscaled_directions(self) -> torch.Tensor:
        return _plane((_centres(self.width) - self.cx) / self.fx, (_centres(self.height) - self.cy) / self.fy)

    def _exact_solid_angle(self) -> torch.Tensor:
        x = (torch.arange(self.width + 1, dtype=torch.float64) - self.cx) / self.fx
        y = (torch.arange(self.height + 1, dtype=torch.float64) - self.cy) / self.fy
        return _plane_solid_angle(x, y)


@dataclass(frozen=True)
class Cubemap(Camera):
    """Six 90 degree views side by side, [S, 6 S]: front, right, back, left, up, down, as seen from the centre; the
    bottom of `up` and the top of `down` touch `front`. Depth is z in each face.

    Raises ValueError unless size > 0.

    >>> Cubemap(4).project(torch.tensor([1.0, 0.0, 0.0]))  # the centre of the second face
    tensor([6., 2.])
    """

    size: int
    kind: ClassVar[str] = "cubemap"

    def __post_init__(self) -> None:
        _set_sizes(self, "size")

    @property
    def height(self) -> int:  # type: ignore[override]
        """Rows: size."""
        return self.size

    @property
    def width(self) -> int:  # type: ignore[override]
        """Columns of the six faces together: 6 * size."""
        return 6 * self.size

    def project(
        self,
        points: torch.Tensor,  # [..., 3]
    ) -> torch.Tensor:
        """Pixel coordinates [..., 2] as (u, v), u in [0, 6 S], v in [0, S], of points in camera axes.

        The zero vector is taken for straight ahead. Differentiable in points. Points that hold NaN give NaN.
        """
        face, u, v = self.face_coordinates(points)
        return torch.stack((face * self.size + u, v), -1)

    def face_coordinates(
        self,
        points: torch.Tensor,  # [..., 3]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Face index [...] int64 and pixel coordinates within that face, u [...] and v [...], both in [0, S]."""
        _check_tensor("points", points, (3,))
        ahead = torch.tensor([0, 0, 1], dtype=points.dtype, device=points.device)
        points = torch.where((points == 0).all(-1, keepdim=True), ahead, points)
        axis = points.abs().argmax(-1, keepdim=True)
        positive = (points.gather(-1, axis) > 0).long()
        face = torch.tensor(_FACE_OF_AXIS, device=points.device)[axis, positive].squeeze(-1)
        face_from_camera = torch.tensor(_FACE_FROM_CAMERA, device=points.device)  # one +-1 in each row
        source, sign = face_from_camera.abs().argmax(-1)[face], face_from_camera.sum(-1)[face]
        right, down, forward = (points.gather(-1, source) * sign).unbind(-1)
        half = self.size / 2
        return face, (right / forward + 1) * half, (down / forward + 1) * half

    def _unscaled_directions(self) -> torch.Tensor:
        faces = cube_faces(2 * _centres(self.size) / self.size - 1)
        return faces.transpose(0, 1).reshape(self.height, self.width, 3)

    def _exact_solid_angle(self) -> torch.Tensor:
        x = 2 * torch.arange(self.size + 1, dtype=torch.float64) / self.size - 1
        return _plane_solid_angle(x, x).repeat(1, 6)


def camera_from_config(config: dict[str, Any]) -> Panorama | Pinhole | Cubemap:
    """The camera that camera.to_config() described; ValueError when the dictionary describes none.

    >>> camera_from_config({"kind": "cubemap", "size": 8})
    Cubemap(size=8)
    """
    values = dict(config) if isinstance(config, dict) else {}
    kind = values.pop("kind", None)
    for camera in (Panorama, Pinhole, Cubemap):
        if kind == camera.kind:
            names = [field.name for field in fields(camera)]
            if sorted(values) != sorted(names):
                raise ValueError(f"camera config: {kind} needs exactly {names}, got {sorted(values)}")
            return camera(**values)
    raise ValueError(f"camera config: expected a dictionary with kind panorama, pinhole or cubemap, got {config!r}")


@lru_cache(maxsize=_CACHED_TABLES)
def _directions(camera: Camera, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # an inference tensor in the cache would break autograd later
        directions = camera._unscaled_directions().reshape(-1, 3)
        return torch.nn.functional.normalize(directions, dim=-1).to(device, dtype, non_blocking=True)


@lru_cache(maxsize=_CACHED_TABLES)
def _ray_lengths(camera: Camera, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        if isinstance(camera, Panorama):
            return torch.ones((), dtype=dtype, device=device)
        return camera._unscaled_directions().norm(dim=-1).to(device, dtype, non_blocking=True)


@lru_cache(maxsize=_CACHED_TABLES)
def _solid_angle(camera: Camera, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return camera._exact_solid_angle().to(device, dtype, non_blocking=True)


@lru_cache(maxsize=_CACHED_TABLES)
def _pixel_angle(camera: Camera) -> float:
    return camera.solid_angle().max().sqrt().item()


def cube_faces(
    ticks: torch.Tensor,  # [N]
) -> torch.Tensor:
    """Points [6, N, N, 3] in camera axes on the six planes of the cube [-1, 1]^3, at `ticks` along both face axes."""
    camera_from_face = torch.tensor(_FACE_FROM_CAMERA, dtype=ticks.dtype).mT
    return rotate(camera_from_face, _plane(ticks, ticks).flatten(0, 1)).reshape(6, len(ticks), len(ticks), 3)


def _centres(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float64) + 0.5


def _plane(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Points (x, y, 1) [H, W, 3] of the image plane at distance 1, from x [W] and y [H]."""
    shape = (y.numel(), x.numel())
    return torch.stack((x.expand(shape), y[:, None].expand(shape), torch.ones(shape, dtype=x.dtype)), -1)


def _plane_solid_angle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Solid angles [H, W] of the rectangles between the lines x [W + 1], y [H + 1] of the plane at distance 1."""
    y = y[:, None]
    return torch.atan(x * y / torch.sqrt(x * x + y * y + 1)).diff(dim=0).diff(dim=1)


def _set_sizes(camera: Camera, *names: str) -> None:
    """Turns the named fields into positive Python integers, or raises ValueError."""
    for name in names:
        value = getattr(camera, name)
        try:
            size = operator.index(value)
        except TypeError:
            size = 0
        if isinstance(value, bool) or size <= 0:
            raise ValueError(f"{type(camera).__name__}: {name} must be a positive integer, got {value!r}")
        object.__setattr__(camera, name, size)


def _check_tensor(name: str, tensor: torch.Tensor, trailing: tuple[int, ...]) -> None:
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: expected a floating-point tensor, got {got}")
    if tuple(tensor.shape[-len(trailing) :]) != trailing:
        expected = ", ".join(map(str, trailing))
        raise ValueError(f"{name}: expected shape [..., {expected}], got {list(tensor.shape)}")
