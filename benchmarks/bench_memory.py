"""The memory: seconds to observe and query a panorama, and how good held-out frames are against reprojected points."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.harness import Row, Target
from benchmarks.inputs import CHANNELS, VOXEL_SIZE, lift
from evoworld.data import Capture, Frame
from evoworld.evaluation import depth_metrics, fill_holes, psnr, reproject_points, split_frames, ssim
from evoworld.world import Memory

HOLD_OUT = 8
SECONDS_TARGET, FIT_GAIN_TARGET, ABS_REL_TARGET = 0.25, 3.0, 0.02

View = Callable[[Frame], tuple[Tensor, Tensor]]  # frame -> image [H, W, 3], range [H, W]


def run_speed(capture: Capture, max_frames: int) -> tuple[list[Row], list[Target]]:
    """Observe frame after frame with 16 channels, and after each query the pose half way on, which was not observed."""
    count = min(len(capture), 2 * max_frames)
    frames = [capture[i] for i in range(count)]
    frames[0].camera.rays(frames[0].camera_to_world)  # fills the camera's tables, which last
    memory = Memory(voxel_size=VOXEL_SIZE, feature_dim=CHANNELS)
    observe = Row("memory 256x512, C = 16", "observe")
    query = Row("memory 256x512, C = 16", "query")
    both = Row("memory 256x512, C = 16", "observe + query", note="growth and carving included")
    for frame, between in zip(frames[::2], frames[1::2], strict=False):
        features = lift(frame.image)
        start = time.perf_counter()
        memory.observe(features, frame.depth, frame.camera_to_world, frame.camera)
        middle = time.perf_counter()
        view = memory.query(between.camera, between.camera_to_world)
        end = time.perf_counter()
        if view.features.shape != (*frame.image.shape[:2], CHANNELS) or not torch.isfinite(view.features).all():
            query.refused = f"features came back as {tuple(view.features.shape)} or not finite"
        observe.seconds.append(middle - start)
        query.seconds.append(end - middle)
        both.seconds.append(end - start)
    note = f"slowest {max(both.seconds):.3g} s of {len(both.seconds)}; {memory.num_voxels:,} voxels at the end"
    measured = float("nan") if query.refused else both.median
    target = Target("observe + query of 256x512, C = 16", measured, SECONDS_TARGET, False, "s", note)
    return [observe, query, both], [target]


def run_quality(captures: Sequence[Capture], fit_steps: int) -> tuple[list[dict[str, str | float]], list[Target]]:
    """A row for each capture and way to render its held-out frames, and the targets over all captures."""
    table = []
    for capture in captures:
        table += _quality(capture, fit_steps)

    def gains(name: str) -> list[float]:
        peer = {row["capture"]: row["PSNR"] for row in table if row["by"] == "reprojection"}
        return [row["PSNR"] - peer[row["capture"]] for row in table if row["by"] == name]

    fitted = f"memory, fit {fit_steps}"
    targets = []
    for name, limit in (("memory", 0.0), (fitted, FIT_GAIN_TARGET)):
        found = gains(name)
        errors = [row["AbsRel"] for row in table if row["by"] == name]
        if not found:
            continue
        note = f"least {min(found):.2f} dB of {len(found)}"
        claim = f"PSNR on held-out frames, {name} minus reprojection"
        targets.append(Target(claim, statistics.mean(found), limit, True, "dB", note))
        note = f"largest {max(errors):.4f}"
        targets.append(Target(f"AbsRel, {name}", statistics.mean(errors), ABS_REL_TARGET, False, "", note))
    return table, targets


def _quality(capture: Capture, fit_steps: int) -> list[dict[str, str | float]]:
    observed, held_out = split_frames(len(capture), HOLD_OUT)
    frames = [capture[i] for i in observed]
    targets = [capture[i] for i in held_out]
    memory = Memory(voxel_size=VOXEL_SIZE, feature_dim=3)
    for frame in frames:
        memory.observe(frame.image, frame.depth, frame.camera_to_world, frame.camera)

    def by_memory(frame: Frame) -> tuple[Tensor, Tensor]:
        view = memory.query(frame.camera, frame.camera_to_world)
        return view.features, view.depth

    points = {frame.name: reproject_points(frames, frame.camera, frame.camera_to_world) for frame in targets}

    def filled(frame: Frame) -> tuple[Tensor, Tensor]:
        found = points[frame.name]
        return fill_holes(found.image, found.mask), fill_holes(found.depth[..., None], found.mask)[..., 0]

    def score(name: str, view: View) -> dict[str, str | float]:
        return {"capture": capture.name, "by": name, **_scores(targets, view, [points[f.name].mask for f in targets])}

    rows = [
        score("reprojection", lambda frame: points[frame.name][:2]),
        score("reprojection, holes filled", filled),
        score("memory", by_memory),
    ]
    if fit_steps:
        fit_frames = [(f.image, f.depth, f.camera_to_world, f.camera) for f in frames]
        start = time.perf_counter()
        memory.fit(fit_frames, fit_steps)
        rows.append(score(f"memory, fit {fit_steps}", by_memory) | {"fit s": time.perf_counter() - start})
    for row in rows:
        row.setdefault("fit s", float("nan"))
    return rows


def _scores(frames: Sequence[Frame], view: View, covered: Sequence[Tensor]) -> dict[str, float]:
    """Means over frames. "where covered": only the pixels that a reprojected point reaches, where the peer is best."""
    scores = []
    for frame, mask in zip(frames, covered, strict=True):
        image, distance = view(frame)
        depth = depth_metrics(distance, frame.camera.range_from_depth(frame.depth))
        scores.append(
            {
                "PSNR": psnr(image, frame.image),
                "where covered": psnr(image, frame.image, mask.double()),
                "WS-PSNR": psnr(image, frame.image, frame.camera.solid_angle(torch.float64)),
                "SSIM": ssim(image, frame.image),
                "AbsRel": depth.abs_rel,
                "delta<1.25": depth.delta,
            }
        )
    return {key: statistics.mean(score[key] for score in scores) for key in scores[0]}
