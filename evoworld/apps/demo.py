"""`evoworld demo`: the capture that ships with the project becomes a world, and a short walk through it a video."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch

import evoworld
from evoworld.apps.media import Tile, check_video, contact_sheet, depth_preview, write_still
from evoworld.apps.progress import track
from evoworld.apps.reconstruct import Report, print_report, reconstruct
from evoworld.apps.render import check_output_folder, render
from evoworld.apps.trajectories import closed_path, level_pose, yaw_of
from evoworld.data import Capture, Frame, read_capture
from evoworld.evaluation import psnr, split_frames
from evoworld.geometry import Panorama, Pinhole
from evoworld.world import Memory

EXAMPLE = Path("examples/living_room")
HOLD_OUT = 8
FPS = 12
KEYS = 8  # poses of the capture that the walk runs through
STILLS = 4
ERROR_GAIN = 4  # makes the difference of two images visible
STILL_PITCH = math.radians(-8)
STILL_CAMERA = Pinhole.from_fov(480, 640, math.radians(90))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument("--out", default="out", metavar="DIR", help="folder for the results; default out")
    parser.add_argument("--capture", metavar="CAPTURE", help="another capture than the one that ships with the project")
    parser.add_argument("--fit", type=int, default=60, metavar="STEPS", help="refine by gradient descent; default 60")
    parser.add_argument("--frames", type=int, default=48, metavar="N", help="frames of the walk; default 48")
    parser.add_argument("--height", type=int, default=512, metavar="PIXELS", help="of the walk; default 512")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    start = time.perf_counter()
    capture = read_capture(args.capture or find_example())
    out = Path(args.out)
    camera = Panorama(args.height, 2 * args.height)
    check_video("walk.mp4", camera.height, camera.width, FPS)
    check_output_folder(out / "walk")
    memory, report = reconstruct(capture, fit_steps=args.fit, hold_out=HOLD_OUT)
    memory.save(out / "world.safetensors")
    walk = walk_along(capture, args.frames)
    render(memory, camera, walk, out / "walk", out / "walk.mp4", FPS)
    stills = write_stills(memory, camera, walk, out / "stills")
    write_sheet(out / "contact_sheet.png", memory, capture, report, stills)
    print_report(report)
    print(f"Done in {time.perf_counter() - start:.0f} s:")
    results = {
        "world.safetensors": "the world; evoworld render walks through it",
        "walk.mp4": "a 360° video",
        "walk": "its frames and their depth; itself a capture",
        "stills": "360° and perspective views",
        "contact_sheet.png": "all at a glance",
    }
    for name, what in results.items():
        print(f"  {out / name!s:<32}  {what}")
    return 0


def find_example() -> Path:
    """The capture that lies in the project's repository, beside the package.

    Raises:
        FileNotFoundError: the package was installed without the repository.
    """
    repository = Path(evoworld.__file__).resolve().parent.parent
    for folder in (repository / EXAMPLE, EXAMPLE):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"{EXAMPLE} is not here: it lies in the project's repository, not in the installed package; "
        "run the demo in a clone, or name a capture with --capture"
    )


def walk_along(capture: Capture, num_frames: int) -> torch.Tensor:
    """A smooth closed walk `[num_frames, 4, 4]` along the way the capture was taken, looking one way throughout.

    Where the capture does not end near its beginning, the walk goes there and back: a wall may lie between the two.
    """
    poses = capture.camera_to_world
    keys = poses[torch.linspace(0, len(poses) - 1, min(KEYS, len(poses) - 1) + 1).round().long()]
    steps = (poses.roll(-1, 0) - poses)[:, :3, 3].norm(dim=-1)
    closed = steps[-1] <= 2 * steps[:-1].max() if len(poses) > 1 else True
    keys = keys[:-1] if closed and len(keys) > 1 else torch.cat((keys, keys[1:-1].flip(0)))
    return closed_path(level_pose(keys[:, :3, 3], yaw_of(poses[0]).expand(len(keys))), num_frames)


def write_stills(memory: Memory, camera: Panorama, walk: torch.Tensor, folder: Path) -> list[torch.Tensor]:
    """Writes panoramas and perspective views from places along the walk; returns the perspective ones."""
    views = []
    places = torch.linspace(0, len(walk), STILLS + 1)[:-1].long()
    for number, place in enumerate(track(places, "Taking stills"), 1):
        pose = walk[place]
        write_still(folder / f"panorama_{number}.jpg", memory.query(camera, pose).features, panorama=True)
        around = yaw_of(pose) + 2 * math.pi * (number - 1) / STILLS  # each looks another way
        view = memory.query(STILL_CAMERA, level_pose(pose[:3, 3], around, STILL_PITCH)).features
        write_still(folder / f"view_{number}.jpg", view, panorama=False)
        views.append(view)
    return views


def write_sheet(path: Path, memory: Memory, capture: Capture, report: Report, stills: list[torch.Tensor]) -> None:
    """Writes the contact sheet: a held-out frame beside its rendering, depth, difference, and views along the walk."""
    frame = _frame_to_show(capture)
    view = memory.query(frame.camera, frame.camera_to_world)
    near, far = (float(frame.depth[frame.depth > 0].quantile(q)) for q in (0.01, 0.99))
    scale = f"{near:.1f} m red, {far:.1f} m blue"
    summary = f"{report.frames} panoramas with depth became {report.voxels:,} voxels ({report.megabytes:.0f} MB)"
    if report.quality is not None:
        summary += (
            f". On {report.held_out} panoramas kept back: PSNR {report.quality.psnr:.1f} dB, "
            f"SSIM {report.quality.ssim:.2f}, depth error {100 * report.quality.abs_rel:.1f} %"
        )
    rows = [
        [
            Tile(frame.image, f"What the camera saw (frame {frame.name}, kept back from the memory)"),
            Tile(view.features, f"What the memory shows there, PSNR {psnr(view.features, frame.image):.1f} dB"),
        ],
        [
            Tile(depth_preview(view.depth, near, far), f"The memory's depth ({scale})"),
            Tile(ERROR_GAIN * (view.features - frame.image).abs(), f"Difference of the two above, times {ERROR_GAIN}"),
        ],
        [Tile(still, f"On the walk, view {number}") for number, still in enumerate(stills, 1)],
    ]
    contact_sheet(path, f"EvoWorld · {capture.name.replace('_', ' ')}", summary, rows)


def _frame_to_show(capture: Capture) -> Frame:
    _, held_out = split_frames(len(capture), HOLD_OUT)
    return capture[held_out[len(held_out) // 2] if held_out else 0]
