"""A scene of coloured points, pictured and posed by formulas that share nothing with the readers.

The world has z up. A station stands somewhere, turned by yaw (counter-clockwise seen from above, 0 looks along +x) and
pitched up; right, up and forward are its axes in the world. Each landmark in view becomes one pixel.
"""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from evoworld.data import CaptureError, read_capture

LANDMARKS = {
    (255, 0, 0): (4.0, 0.5, 1.0),
    (0, 255, 0): (-0.5, 3.0, 2.0),
    (0, 0, 255): (-5.0, -1.0, 0.5),
    (255, 255, 0): (1.0, -4.0, 1.5),
    (255, 0, 255): (0.6, 0.4, 6.0),
    (0, 255, 255): (0.8, -0.3, -3.0),
    (128, 64, 32): (2.0, 3.0, 0.2),
    (32, 128, 64): (3.0, -1.5, 3.0),
    (64, 32, 128): (-3.0, 2.0, 0.4),
    (200, 100, 0): (-3.5, -0.6, 2.9),
    (100, 0, 200): (-1.5, -3.0, 0.3),
    (0, 200, 100): (0.2, -3.5, 3.6),
    (50, 150, 250): (-3.0, 3.5, -0.5),
}
SIZE = (64, 128)
FOCAL = (34.0, 30.0, 66.0, 30.0)  # fx fy cx cy of the pinhole


@dataclass(frozen=True)
class Station:
    position: tuple[float, float, float]
    yaw: float
    pitch: float = 0.0

    @property
    def axes(self) -> np.ndarray:
        """Rows right, up, forward in the world."""
        forward = np.array(
            [math.cos(self.pitch) * math.cos(self.yaw), math.cos(self.pitch) * math.sin(self.yaw), math.sin(self.pitch)]
        )
        right = np.array([math.sin(self.yaw), -math.cos(self.yaw), 0.0])
        return np.stack([right, np.cross(right, forward), forward])


STATIONS = (
    Station((0.1, -0.2, 1.6), yaw=0.3),
    Station((-0.4, 0.3, 1.2), yaw=2.4, pitch=-0.4),
    Station((0.5, 0.2, 1.9), yaw=-1.9, pitch=0.25),
)


def picture(station: Station, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image [H, W, 3] uint8, range and z-depth [H, W] of the landmarks a station sees."""
    height, width = SIZE
    image = np.zeros((height, width, 3), np.uint8)
    distance, depth = np.zeros(SIZE), np.zeros(SIZE)
    for colour, position in LANDMARKS.items():
        offset = np.array(position) - station.position
        right, up, forward = station.axes @ offset
        if kind == "panorama":
            u = (math.atan2(right, forward) / (2 * math.pi) + 0.5) * width
            v = (0.5 - math.asin(up / np.linalg.norm(offset)) / math.pi) * height
        else:
            fx, fy, cx, cy = FOCAL
            if forward <= 0:
                continue
            u, v = fx * right / forward + cx, cy - fy * up / forward
            if not (0 <= u < width and 0 <= v < height):
                continue
        image[int(v), int(u)] = colour
        distance[int(v), int(u)], depth[int(v), int(u)] = np.linalg.norm(offset), forward
    return image, distance, depth


def assert_sees_landmarks(frame, station, kind, with_depth=True):
    """Every landmark lies where the frame's pixel of its colour looks, at the frame's depth of it."""
    origins, directions = frame.camera.rays(frame.camera_to_world)
    assert torch.allclose(origins[0], torch.tensor(station.position), atol=1e-5)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(()), atol=1e-6)
    painted = picture(station, kind)[0]
    colours = {colour for colour in LANDMARKS if (painted == colour).all(-1).any()}
    assert len(colours) == len(LANDMARKS) if kind == "panorama" else len(colours) >= 3
    for colour in colours:
        seen = ((frame.image * 255).round() == torch.tensor(colour)).all(-1).flatten().nonzero()
        assert seen.numel() == 1
        landmark = torch.tensor(LANDMARKS[colour])
        offset = landmark - origins[0]
        assert torch.dot(directions[seen.item()], offset / offset.norm()) > math.cos(1.5 * math.pi / SIZE[1])
        if with_depth:
            reach = frame.camera.range_from_depth(frame.depth).flatten()[seen.item()]
            assert reach == pytest.approx(offset.norm().item(), rel=0.03 if kind == "pinhole" else 1e-3)
    if with_depth:
        assert (frame.depth > 0).sum() == len(colours)


def save_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def save_depth(path, depth, unit=0.001):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, (depth / unit).astype(np.float32))
    else:
        Image.fromarray((depth / unit).round().astype(np.uint16)).save(path)


def write_nerfstudio(folder, kind="panorama", depth_type=None, unit=0.001, suffix=".png", depth=True):
    """The stations in nerfstudio's layout; returns the content of transforms.json."""
    content = {"w": SIZE[1], "h": SIZE[0], "depth_unit_scale_factor": unit, "frames": []}
    if kind == "panorama":
        content["camera_model"] = "EQUIRECTANGULAR"
    else:
        content |= {"camera_model": "OPENCV", "k1": 0.0, "p2": 0}
        content |= dict(zip(("fl_x", "fl_y", "cx", "cy"), FOCAL, strict=True))
    if depth_type:
        content["depth_type"] = depth_type
    for index, station in enumerate(STATIONS):
        image, distance, z = picture(station, kind)
        matrix = np.eye(4)
        right, up, forward = station.axes
        matrix[:3] = np.stack([right, up, -forward, station.position], 1)
        frame = {"file_path": f"rgb/{index}.png", "transform_matrix": matrix.tolist()}
        save_image(folder / frame["file_path"], image)
        if depth:
            frame["depth_file_path"] = f"depth/{index}{suffix}"
            save_depth(folder / frame["depth_file_path"], distance if depth_type == "range" else z, unit)
        content["frames"].append(frame)
    write_json(folder, content)
    return content


def write_json(folder, content):
    (folder / "transforms.json").write_text(json.dumps(content))


def refused(path, *parts):
    """Reading and decoding the capture fails with one line that holds all parts."""
    with pytest.raises(CaptureError) as caught:
        for _ in read_capture(path):
            pass
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
