"""What `evoworld generate` writes: the walk as a capture and a video, stills, and a contact sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from evoworld.apps import render
from evoworld.apps.media import Tile, add_gpano, contact_sheet, depth_preview, depth_unit, open_video, write_still
from evoworld.data import Frame as CaptureFrame
from evoworld.data import read_capture, write_capture
from evoworld.data.nerfstudio import TRANSFORMS
from evoworld.geometry import Panorama, Pinhole, panorama_to_pinhole, pose_from_euler
from evoworld.world.evolve import Frame
from evoworld.world.rgbd import FAR, NEAR

VIDEO_HEIGHT = 512  # rows that a video has at least: players show smaller ones badly
SHOWN = 4  # places along the walk that are shown
FOLDERS = ("rgb", "depth", render.PREVIEWS)  # of a walk
VIEW = Pinhole.from_fov(240, 320, math.radians(90))


def write_walk(out: Path, camera: Panorama, frames: Iterable[Frame], fps: float, known: list[float]) -> None:
    """Writes `walk/` (`rgb/`, `depth/` with 16 bits, `depth_preview/`, `transforms.json`) and `walk.mp4`, as they come.

    What an earlier walk left there is removed. Where the frames, or the writing of one, stop with an error, the walk up
    to there is completed first.

    Args:
        out: the folder.
        camera: of the frames.
        frames: as `World.walk` gives them; may be none.
        fps: of the video.
        known: is given, frame by frame, the share that the memory knew before.

    Raises:
        OSError: a file cannot be written.
        Exception: what stopped the frames.
    """
    folder, stopped = out / "walk", []
    (folder / render.PREVIEWS).mkdir(parents=True, exist_ok=True)
    (folder / TRANSFORMS).unlink(missing_ok=True)  # written last: it tells that the folder is complete
    for old in folder.glob("*/*.png"):
        if old.parent.name in FOLDERS and old.stem.isdecimal():
            old.unlink()
    scale = max(-(-VIDEO_HEIGHT // camera.height), 1)
    size = (scale * camera.height, scale * camera.width)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return

    def views(write_frame) -> Iterator[CaptureFrame]:
        for index, frame in enumerate(_chain(first, frames)):
            image, depth = frame.image.cpu().clamp(0, 1), frame.depth.cpu()
            name = f"{index:04d}"
            write_still(folder / render.PREVIEWS / f"{name}.png", depth_preview(depth, NEAR, FAR / 4), panorama=False)
            write_frame(enlarged(image, size))
            yield CaptureFrame(image, depth if bool((depth > 0).any()) else None, frame.camera_to_world.cpu(), camera,
                               name, index / fps)  # fmt: skip
            known.append(float(frame.visibility.mean()))
            add_gpano(folder / "rgb" / f"{name}.png")

    def finished(write_frame) -> Iterator[CaptureFrame]:
        """The frames up to what stops them, which is raised when the rest is written."""
        try:
            yield from views(write_frame)
        except (Exception, KeyboardInterrupt) as error:
            stopped.append(error)
            if not known:
                raise

    with open_video(out / "walk.mp4", *size, fps, panorama=True) as write_frame:
        write_capture(folder, camera, finished(write_frame), depth_unit(FAR))
    if stopped:
        raise stopped[0]


def write_pictures(out: Path, known: list[float], asked: dict, photo: Tensor | None) -> None:  # [h, w, 3]
    """Writes `stills/` and `contact_sheet.png` from places along the walk that `write_walk` wrote."""
    walk = read_capture(out / "walk")
    count = len(walk)
    places = torch.linspace(0, count - 1, min(SHOWN, count)).round().long().tolist()
    panoramas, views = [], []
    for number in range(len(places) + 1, SHOWN + 1):  # of an earlier, longer walk
        for name in ("panorama", "view"):
            (out / "stills" / f"{name}_{number}.jpg").unlink(missing_ok=True)
    for number, place in enumerate(places, 1):
        frame = walk[place]
        image = frame.image
        write_still(out / "stills" / f"panorama_{number}.jpg", image, panorama=True)
        turn = pose_from_euler(torch.tensor([0, 0, 0, 0, 2 * math.pi * (number - 1) / SHOWN, 0]))[:3, :3]
        view = panorama_to_pinhole(enlarged(image, (256, 512)), VIEW, turn).clamp(0, 1)
        write_still(out / "stills" / f"view_{number}.jpg", view, panorama=False)
        depth = torch.zeros(image.shape[:2]) if frame.depth is None else frame.depth
        panoramas.append((place, image, depth_preview(depth, NEAR, FAR / 4), f"{100 * known[place]:.0f} % remembered"))
        views.append(Tile(view, f"Frame {place + 1}, to one side"))
    rows = [
        [Tile(image, f"Frame {place + 1} of {count} ({share})"), Tile(depth, f"Its depth: {NEAR} m red, 16 m blue")]
        for place, image, depth, share in panoramas
    ]
    if photo is not None:
        rows.insert(0, [Tile(photo, "What it began with"), Tile(rows[0][0].image, "What the model made of it")])
    title = f"“{asked['prompt']}”" if asked["prompt"] else Path(asked["image"] or asked["world"]).name
    summary = f"{asked['trajectory']}, {count} frames, seed {asked['seed']}, model {asked['model']}"
    contact_sheet(out / "contact_sheet.png", f"EvoWorld · {title}", summary, [*rows, views])


def enlarged(image: Tensor, size: tuple[int, int]) -> Tensor:  # [H, W, 3] -> [*size, 3]
    """A panorama with more pixels, smooth across the seam."""
    height, width = image.shape[:2]
    if size == (height, width):
        return image
    planes = torch.nn.functional.pad(image.permute(2, 0, 1)[None], (2, 2, 0, 0), mode="circular")
    scale = size[0] / height
    planes = torch.nn.functional.interpolate(planes, scale_factor=scale, mode="bicubic", align_corners=False)
    beside = round(2 * scale)
    return planes[0, :, :, beside : beside + size[1]].permute(1, 2, 0).clamp(0, 1)


def _chain(first: Frame, rest: Iterator[Frame]) -> Iterator[Frame]:
    yield first
    yield from rest
