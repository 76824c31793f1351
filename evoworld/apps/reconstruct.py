"""`evoworld reconstruct`: a capture becomes a world file."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from evoworld.apps.measure import Quality, measure
from evoworld.apps.media import atomic_path
from evoworld.apps.progress import progress_bar, track
from evoworld.data import Capture, CaptureError, Frame, read_capture
from evoworld.evaluation import reproject_points, split_frames
from evoworld.geometry import Camera
from evoworld.world import Memory

MEASURES = (("PSNR (dB)", "psnr", 2), ("SSIM", "ssim", 3), ("depth AbsRel", "abs_rel", 4), ("delta < 1.25", "delta", 3))


@dataclass(frozen=True)
class Report:
    """What a reconstruction came to."""

    capture: str
    frames: int  # observed
    held_out: int
    voxels: int
    megabytes: float  # of the memory's tensors
    seconds_per_frame: float  # to observe one
    fit_steps: int
    fit_seconds: float
    quality: Quality | None  # None: no frame was held out
    peer: Quality | None  # of the observed points reprojected; None: not asked for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument("capture", help="folder: nerfstudio (transforms.json), EvoWorld or COLMAP layout")
    parser.add_argument("--out", required=True, metavar="FILE", help="the world file to write (.safetensors)")
    parser.add_argument("--voxel-size", type=float, default=0.05, metavar="METRES", help="default 0.05")
    parser.add_argument("--fit", type=int, default=0, metavar="STEPS", help="refine by gradient descent; default 0")
    parser.add_argument(
        "--hold-out",
        type=int,
        default=8,
        metavar="N",
        help="keep every N-th frame back to measure on; 0: none; default 8",
    )
    parser.add_argument("--max-frames", type=int, metavar="N", help="use the first N frames only")
    parser.add_argument("--peer", action="store_true", help="also measure the observed points, reprojected (slower)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers of the table to this file, too")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    check_output_file(args.out)
    if args.json is not None:
        check_output_file(args.json)
    capture = read_capture(args.capture)
    if args.max_frames is not None:
        if args.max_frames < 1:
            raise ValueError(f"--max-frames: expected at least 1, got {args.max_frames}")
        capture = capture[: args.max_frames]
    memory, report = reconstruct(capture, args.voxel_size, args.fit, args.hold_out, args.peer)
    memory.save(args.out)
    print_report(report)
    if args.json is not None:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(_without_nan(asdict(report)), indent=2) + "\n", encoding="utf-8")
    print(f"World: {args.out}")
    return 0


def reconstruct(
    capture: Capture, voxel_size: float = 0.05, fit_steps: int = 0, hold_out: int = 8, peer: bool = False
) -> tuple[Memory, Report]:
    """Observes the frames of a capture into a new memory and measures it on those held out.

    Args:
        capture: with depth in every frame.
        voxel_size: in metres.
        fit_steps: steps of gradient refinement after all is observed.
        hold_out: every `hold_out`-th frame is not observed but measured on; 0: none.
        peer: also measure the observed points, reprojected to the held-out frames.

    Returns:
        The memory and what there is to say about it.

    Raises:
        ValueError: a number that cannot be, or a capture without depth or with a damaged frame.
    """
    if not capture.has_depth:
        raise CaptureError(f"{capture.name}: expected depth in every frame; reconstruction needs it")
    if fit_steps < 0:
        raise ValueError(f"fit_steps: expected 0 or more, got {fit_steps}")
    observed, held_out = split_frames(len(capture), hold_out)
    memory = Memory(voxel_size=voxel_size, feature_dim=3)
    seconds = 0.0
    for index in track(observed, "Observing"):
        frame = capture[index]
        start = time.perf_counter()
        _observe(memory, frame)
        seconds += time.perf_counter() - start
    fit_start = time.perf_counter()
    if fit_steps:
        with progress_bar("Fitting", fit_steps) as advance:
            memory.fit(FramesToFit(capture, observed), fit_steps, progress=lambda *_: advance())
    fit_seconds = time.perf_counter() - fit_start if fit_steps else 0.0
    quality = peer_quality = None
    if held_out:
        frames = track((capture[index] for index in held_out), "Measuring", len(held_out))
        quality = measure(frames, lambda frame: render_frame(memory, frame))
    if held_out and peer:
        frames = track((capture[index] for index in held_out), "Measuring the peer", len(held_out))
        observations = [capture[index] for index in observed]
        peer_quality = measure(
            frames, lambda frame: reproject_points(observations, frame.camera, frame.camera_to_world)[:2]
        )
    report = Report(
        capture=capture.name,
        frames=len(observed),
        held_out=len(held_out),
        voxels=memory.num_voxels,
        megabytes=memory.nbytes / 1e6,
        seconds_per_frame=seconds / len(observed),
        fit_steps=fit_steps,
        fit_seconds=fit_seconds,
        quality=quality,
        peer=peer_quality,
    )
    return memory, report


class FramesToFit(Sequence):
    """Some frames of a capture as `Memory.fit` takes them, read from disk when they are asked for."""

    def __init__(self, capture: Capture, indices: Sequence[int]):
        self._capture, self._indices = capture, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Camera]:
        frame = self._capture[self._indices[index]]
        return frame.image, frame.depth, frame.camera_to_world, frame.camera


def render_frame(memory: Memory, frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
    """What the memory shows of a frame's view: image `[H, W, 3]` and ranges `[H, W]` in metres."""
    view = memory.query(frame.camera, frame.camera_to_world)
    return view.features, view.depth


def print_report(report: Report) -> None:
    """Prints the table."""
    table = Table(title=report.capture, title_justify="left", box=box.SIMPLE_HEAD)
    columns = {"memory": report.quality} | ({"reprojection": report.peer} if report.peer is not None else {})
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row("frames observed", str(report.frames))
    table.add_row("frames held out", str(report.held_out))
    table.add_row("voxels", f"{report.voxels:,}")
    table.add_row("MB", f"{report.megabytes:.1f}")
    table.add_row("seconds a frame", f"{report.seconds_per_frame:.3f}")
    if report.fit_steps:
        table.add_row(f"seconds to fit {report.fit_steps} steps", f"{report.fit_seconds:.1f}")
    if report.quality is not None:
        table.add_section()
        for label, name, digits in MEASURES:
            table.add_row(label, *(f"{getattr(quality, name):.{digits}f}" for quality in columns.values()))
    Console().print(table)


def check_output_file(path: str) -> None:
    """Raises OSError or ValueError before a long job where its result could not be written; makes missing folders."""
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{path}: expected the name of a file, got a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target.parent))


def _observe(memory: Memory, frame: Frame) -> None:
    try:
        memory.observe(frame.image, frame.depth, frame.camera_to_world, frame.camera)
    except ValueError as error:
        raise ValueError(f"frame {frame.name}: {error}") from error


def _without_nan(numbers: dict) -> dict:
    """JSON knows no NaN: null."""
    cleaned = {}
    for key, value in numbers.items():
        if isinstance(value, dict):
            value = _without_nan(value)
        elif isinstance(value, float) and not math.isfinite(value):
            value = None
        cleaned[key] = value
    return cleaned
