"""`evoworld render`: a walk through a world, as a capture that can be read back, stills, depth in colours and video."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch

from evoworld.apps.media import add_gpano, check_video, depth_preview, depth_unit, open_video, write_still
from evoworld.apps.progress import track
from evoworld.apps.trajectories import middle_pose, orbit, read_path
from evoworld.data import Frame, read_capture, write_capture
from evoworld.data.nerfstudio import TRANSFORMS
from evoworld.geometry import Camera, Panorama, Pinhole
from evoworld.world import Memory

PREVIEWS = "depth_preview"
SMALLEST_HEIGHT = 16  # pixels
PINHOLE_ASPECT = 16 / 9
# The walk called orbit: its radius is this share of the free space around the middle of the world, within bounds.
ORBIT_SHARE, ORBIT_SMALLEST, ORBIT_LARGEST = 0.4, 0.1, 1.5
CLEARANCE_CAMERA = Panorama(32, 64)
CLEARANCE_BAND = math.radians(30)  # above and below the horizon


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument("world", help="a world file, from evoworld reconstruct")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the frames")
    parser.add_argument(
        "--trajectory",
        default="orbit",
        metavar="orbit|FILE.json|CAPTURE",
        help="a short closed walk (default), a path file, or the poses of a capture",
    )
    parser.add_argument("--frames", type=int, default=96, metavar="N", help="frames of orbit or a path; default 96")
    parser.add_argument("--height", type=int, default=512, metavar="PIXELS", help="default 512")
    parser.add_argument("--camera", choices=("panorama", "pinhole"), default="panorama", help="default panorama")
    parser.add_argument("--fov", type=float, default=90.0, metavar="DEGREES", help="of pinhole, horizontal; default 90")
    parser.add_argument("--video", metavar="FILE.mp4", help="also write a video; a panorama's is marked as 360°")
    parser.add_argument("--fps", type=float, default=24.0, help="frames a second of the video; default 24")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    camera = camera_of(args.camera, args.height, args.fov)
    if args.video is not None:
        check_video(args.video, camera.height, camera.width, args.fps)
    check_output_folder(args.out)
    memory = Memory.load(args.world)
    poses = trajectory(args.trajectory, memory, args.frames, turn=args.camera == "pinhole")
    render(memory, camera, poses, args.out, args.video, args.fps)
    print(f"Frames: {args.out} ({len(poses)} of {camera.height} x {camera.width}; {TRANSFORMS} makes it a capture)")
    if args.video is not None:
        print(f"Video: {args.video}")
    return 0


def render(
    memory: Memory,
    camera: Camera,
    poses: torch.Tensor,  # [N, 4, 4]
    out: str | Path,
    video: str | Path | None = None,
    fps: float = 24.0,
) -> None:
    """Renders a walk into a folder: `rgb/`, `depth/` (16 bit), `depth_preview/` and `transforms.json`; and a video.

    The folder is a capture: `evoworld.data.read_capture` reads it, `transforms.json` says the unit of its depth.

    Args:
        memory: what to walk through.
        camera: a Panorama or Pinhole.
        poses: `[N, 4, 4]` camera-to-world.
        out: the folder; it may hold an older rendering, but no capture from elsewhere.
        video: where to write an MP4, if anywhere.
        fps: its frames a second; also sets the times in `transforms.json`.

    Raises:
        ValueError: a camera, pose or folder that cannot be.
        OSError: a file cannot be written.
    """
    out = Path(out)
    check_output_folder(out)
    (out / PREVIEWS).mkdir(parents=True, exist_ok=True)
    (out / TRANSFORMS).unlink(missing_ok=True)  # written last: it tells that the folder is complete
    unit = depth_unit(_largest_distance(memory, poses))
    panorama = isinstance(camera, Panorama)
    recording = open_video(video, camera.height, camera.width, fps, panorama) if video is not None else nullcontext()
    with recording as write_frame:
        views = _views(memory, camera, poses, out, write_frame, fps)
        write_capture(out, camera, views, unit)
    if panorama:
        for index in range(len(poses)):
            add_gpano(out / "rgb" / f"{index:04d}.png")


def _views(
    memory: Memory, camera: Camera, poses: torch.Tensor, out: Path, write_frame: Callable | None, fps: float
) -> Iterator[Frame]:
    """The frames of the walk; those that nothing is seen in have no depth."""
    near = far = None
    for index, pose in enumerate(track(poses, "Rendering")):
        view = memory.query(camera, pose)
        image = view.features.clamp(0, 1)
        if near is None and bool((view.depth > 0).any()):  # one scale for the whole walk
            near, far = (float(view.depth[view.depth > 0].quantile(q)) for q in (0.01, 0.99))
        write_still(out / PREVIEWS / f"{index:04d}.png", depth_preview(view.depth, near, far), panorama=False)
        if write_frame is not None:
            write_frame(image)
        depth = camera.depth_from_range(view.depth) if bool((view.depth > 0).any()) else None
        yield Frame(image, depth, pose, camera, f"{index:04d}", index / fps)


def camera_of(kind: str, height: int, fov: float) -> Panorama | Pinhole:
    """The camera of the command's options; `fov` in degrees, for a pinhole.

    Raises:
        ValueError: a height or angle that cannot be.

    Example:
        >>> camera_of("panorama", 512, 90.0)
        Panorama(height=512, width=1024)
    """
    if height < SMALLEST_HEIGHT or height % 2:
        raise ValueError(f"--height: expected an even number of at least {SMALLEST_HEIGHT}, got {height}")
    if kind == "panorama":
        return Panorama(height, 2 * height)
    if not 0 < fov < 180:
        raise ValueError(f"--fov: expected degrees between 0 and 180, got {fov:g}")
    return Pinhole.from_fov(height, 2 * round(height * PINHOLE_ASPECT / 2), math.radians(fov))


def trajectory(name: str, memory: Memory, num_frames: int, turn: bool) -> torch.Tensor:
    """The poses `[N, 4, 4]` of `orbit`, of a path file or of a capture.

    Args:
        name: `orbit`, a JSON file in the format of `evoworld.apps.trajectories`, or a capture (folder or
            `transforms.json`).
        memory: the world that orbit is to walk in.
        num_frames: frames of orbit, and of a path file that does not say; a capture has its own.
        turn: whether orbit looks along its way.

    Raises:
        ValueError: none of the three, or a damaged one.
    """
    if name == "orbit":
        return short_walk(memory, num_frames, turn)
    path = Path(name)
    if path.suffix.lower() == ".json" and path.name != TRANSFORMS:
        return read_path(path, num_frames)
    if not path.exists():
        raise ValueError(f"--trajectory: expected orbit, a path file (.json) or a capture; there is no {name}")
    return read_capture(path).camera_to_world


def short_walk(memory: Memory, num_frames: int, turn: bool) -> torch.Tensor:
    """A closed walk `[num_frames, 4, 4]` around the middle of where the memory was observed from, in its free space."""
    center = middle_pose(memory.poses)
    return orbit(center, walk_radius(memory, center), num_frames, turn)


def walk_radius(memory: Memory, center: torch.Tensor) -> float:
    """Radius in metres of a circle around a pose that stays clear of what the memory holds."""
    view = memory.query(CLEARANCE_CAMERA, center)
    height = CLEARANCE_CAMERA.height
    latitude = (0.5 - (torch.arange(height) + 0.5) / height) * math.pi
    band = view.depth[latitude.abs() <= CLEARANCE_BAND]
    seen = band[band > 0]
    free = float(seen.min()) if len(seen) else math.inf
    return min(max(ORBIT_SHARE * free, min(ORBIT_SMALLEST, free / 2)), ORBIT_LARGEST)


def check_output_folder(out: str | Path) -> None:
    """Raises ValueError if a rendering into the folder would overwrite a capture, or if it is a file."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder, got a file")
    if (out / TRANSFORMS).exists() and not (out / PREVIEWS).is_dir():
        raise ValueError(f"{out}: holds a capture that is not a rendering; choose another folder")
    out.mkdir(parents=True, exist_ok=True)


def _largest_distance(memory: Memory, poses: torch.Tensor) -> float:
    """The distance from any of the poses to the furthest corner of the box around all voxels, in metres."""
    bricks = memory.grid.brick_coordinates
    if len(bricks) == 0:
        return 0.0
    corners = torch.stack((bricks.amin(0), bricks.amax(0) + 1)).cpu() * memory.grid.edge * memory.grid.voxel_size
    corners = corners + torch.tensor(memory.grid.origin)
    furthest = (poses[:, None, :3, 3].cpu() - corners).abs().amax(1)  # along each axis
    return float(furthest.norm(dim=-1).max())
