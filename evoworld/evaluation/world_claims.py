"""What is claimed of the world model, as numbers with limits, and the table of what was measured against them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .world_model import FILL_ONLY, LOOKED_AT, Measured, Plan

Value = Callable[[Measured, str], float]
CPU_SECONDS, GPU_SECONDS = 0.5, 1 / 60


@dataclass(frozen=True)
class Claim:
    """A number that a contestant reaches or does not."""

    text: str
    value: Value
    limit: float
    at_least: bool
    unit: str = ""

    def verdict(self, value: float) -> str:
        """ "met", "missed" or "not measured"."""
        if math.isnan(value):
            return "not measured"
        return "met" if (value >= self.limit if self.at_least else value <= self.limit) else "missed"


def claims(on_gpu: bool) -> list[Claim]:
    """All claims; the speed is that of the device."""
    seconds = GPU_SECONDS if on_gpu else CPU_SECONDS
    return [
        Claim("closed walk, last frame against the first", _mean("lap", "last_first"), 33, True, "dB"),
        Claim("closed walk, poses between its own: before and after", _mean("lap", "revisit"), 27, True, "dB"),
        Claim("closed walk, all frames between against the truth", _mean("lap", "truth"), 25, True, "dB"),
        Claim("closed walk, worst of the three against fill-only, of all walks", _worst, 0, True, "dB"),
        Claim("wedge of 110°, PSNR above fill-only", _above("wedge", "psnr"), 0.5, True, "dB"),
        Claim("wedge of 110°, delta < 1.25", _mean("wedge", "delta"), 0.80, True),
        Claim("wedge of 110°, Fréchet distance over fill-only's", _share("wedge as a whole"), 0.5, False),
        Claim("new rooms, PSNR above fill-only", _above("new room", "psnr"), 0.5, True, "dB"),
        Claim("new rooms, delta < 1.25", _mean("new room", "delta"), 0.80, True),
        Claim("new rooms, Fréchet distance over fill-only's", _share("new room as a whole"), 0.5, False),
        Claim("long walk, revisited views against those of the closed walk", _long_revisit, -2, True, "dB"),
        Claim("long walk, time of late frames over early ones", _mean("long", "slowdown"), 1.1, False),
        Claim("long walk, world file", _mean("long", "megabytes"), 50, False, "MB"),
        Claim("depth of segments with a hole, all pixels, delta < 1.25", _all_pixels, 0.72, True),
        Claim("depth along a closed walk, delta < 1.25", _mean("lap", "delta"), 0.72, True),
        Claim("the same where fill-only's memory shows something", _mean("lap", "delta_visible"), 0.95, True),
        Claim("depth of a panorama without depth, AbsRel", _mean("panorama", "abs_rel"), 0.15, False),
        Claim("gradient across the seam over that elsewhere", _seam, 1.05, False),
        Claim("what turning the input by whole tokens changes, RGB-D of -1..1", _most("roll", "error"), 1e-3, False),
        Claim("captions recognised by their worlds", _mean("text", "right"), 0.60, True),
        Claim("time a frame", _mean("lap", "seconds"), seconds, False, "s"),
    ]


def markdown(measured: Measured, names: Sequence[str], plan: Plan, machine: dict[str, str], command: str) -> str:
    """The table: a row a claim, a column a contestant; the verdict is of the first that is no baseline."""
    judged = next((name for name in names if name != FILL_ONLY), FILL_ONLY)
    columns = [*names, "truth"]
    rows = []
    for claim in claims(machine.get("device", "cpu") != "cpu"):
        values = {name: claim.value(measured, name) for name in columns}
        if all(math.isnan(value) for value in values.values()):
            continue
        target = f"{'>=' if claim.at_least else '<='} {claim.limit:.3g} {claim.unit}".strip()
        rows.append(
            [claim.text, target, *(_number(values[n], claim.unit) for n in columns), claim.verdict(values[judged])]
        )
    absolute = [
        [text, *(_number(_mean(case, key)(measured, name), unit) for name in columns)]
        for text, case, key, unit in (
            ("wedge of 110°, PSNR within", "wedge", "psnr", "dB"),
            ("wedge of 110°, AbsRel within", "wedge", "abs_rel", ""),
            ("wedge of 110°, Fréchet distance", "wedge as a whole", "frechet", ""),
            ("new rooms, PSNR within", "new room", "psnr", "dB"),
            ("new rooms, AbsRel within", "new room", "abs_rel", ""),
            ("new rooms, Fréchet distance", "new room as a whole", "frechet", ""),
            ("wedge of 110°, delta < 1.25 of all pixels", "wedge", "delta_all", ""),
            ("new rooms, delta < 1.25 of all pixels", "new room", "delta_all", ""),
            ("long walk, revisited views", "long", "revisit", "dB"),
            ("depth of a panorama without depth, delta < 1.25", "panorama", "delta", ""),
            ("a world turned by one pixel against the world, turned", "roll", "likeness", "dB"),
        )
        if any(measured.values(case, name, key) for name in columns)
    ]
    notes = [
        "truth: of the true renderings themselves; their Fréchet distance is that between two halves of them, which "
        "show different places.",
        f"Means over {plan.laps} closed walks of {plan.lap_frames} frames, {plan.holes} holes of each kind, "
        f"{plan.panoramas} panoramas and {plan.captions} captions of the test split, {plan.seeds} sampling seeds each; "
        f"long walks: {plan.long_walks} of {plan.long_frames} frames with one seed, turned inputs: 2 with one seed.",
        f"The first {LOOKED_AT} closed walks, long walks and wedges of the split are left out: constants were chosen "
        "by looking at them.",
        "Holes of up to half a token's width are filled without the network wherever a memory is shown: where a walk "
        "has no others, its numbers are fill-only's.",
        "New rooms: the memory has seen the first frame of a walk, whose last frames lie in other rooms. A hole is the "
        "same for all models and seeds.",
    ]
    parts = [
        "# World model",
        "",
        f"`{command}`",
        "",
        *_table(["claim", "target", *columns, f"verdict ({judged})"], rows),
    ]
    if absolute:
        parts += ["", *_table(["measured", *columns], absolute)]
    parts += ["", *notes, "", *_table(["machine", ""], [[key, value] for key, value in machine.items()]), ""]
    return "\n".join(parts)


def document(measured: Measured, names: Sequence[str], plan: Plan, machine: dict[str, str], command: str) -> str:
    """The same and every single row as JSON."""
    verdicts = [
        {
            "claim": claim.text,
            "limit": claim.limit,
            "at_least": claim.at_least,
            "unit": claim.unit,
            "values": {name: claim.value(measured, name) for name in names},
            "verdicts": {name: claim.verdict(claim.value(measured, name)) for name in names},
        }
        for claim in claims(machine.get("device", "cpu") != "cpu")
    ]
    content = {"command": command, "plan": asdict(plan), "machine": machine, "claims": verdicts, "rows": measured.rows}
    return json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n"


def write(folder: str | Path, *content) -> list[Path]:
    """Writes world_model.md and world_model.json into a folder; the rest are the arguments of `markdown`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "world_model.md", folder / "world_model.json"]
    for file, text in zip(files, (markdown(*content), document(*content)), strict=True):
        file.write_text(text, encoding="utf-8")
    return files


def _mean(case: str, key: str) -> Value:
    return lambda measured, name: measured.mean(case, name, key) if measured.values(case, name, key) else math.nan


def _most(case: str, key: str) -> Value:
    return lambda measured, name: max(measured.values(case, name, key), default=math.nan)


def _above(case: str, key: str) -> Value:
    """How far a contestant's mean lies above that of filling holes alone."""
    return lambda measured, name: _mean(case, key)(measured, name) - _mean(case, key)(measured, FILL_ONLY)


def _share(case: str) -> Value:
    def value(measured: Measured, name: str) -> float:
        if name == "truth":  # of half as many pictures: no number to compare
            return math.nan
        return _mean(case, "frechet")(measured, name) / _mean(case, "frechet")(measured, FILL_ONLY)

    return value


def _worst(measured: Measured, name: str) -> float:
    """The smallest difference from fill-only of any of the three PSNRs of any closed walk, a mean over seeds."""
    keys = ("last_first", "revisit", "truth")
    differences = []
    for walk in {row["walk"] for row in measured.rows if row["case"] == "lap"}:
        rows = [row for row in measured.rows if row["case"] == "lap" and row["walk"] == walk]
        own, base = ([r for r in rows if r["contestant"] == who] for who in (name, FILL_ONLY))
        if own and base:
            means = ([sum(r.get(k, math.nan) for r in rows) / len(rows) for k in keys] for rows in (own, base))
            differences += [mine - other for mine, other in zip(*means, strict=True)]
    return min((value for value in differences if not math.isnan(value)), default=math.nan)


def _long_revisit(measured: Measured, name: str) -> float:
    return _mean("long", "revisit")(measured, name) - _mean("lap", "revisit")(measured, name)


def _all_pixels(measured: Measured, name: str) -> float:
    found = [_mean(case, "delta_all")(measured, name) for case in ("wedge", "new room")]
    found = [value for value in found if not math.isnan(value)]
    return sum(found) / len(found) if found else math.nan


def _seam(measured: Measured, name: str) -> float:
    """Over all pictures together: of one alone it depends on what stands at its seam."""
    cases = ("lap", "wedge", "new room")
    across, inside = (
        sum(sum(measured.values(case, name, key)) for case in cases) for key in ("seam_across", "seam_inside")
    )
    return across / inside if inside > 0 else math.nan


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rows = [[re.sub(r"\s*\|\s*", " / ", cell) for cell in row] for row in rows]
    widths = [max(3, *(len(cells[i]) for cells in [header, *rows])) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]


def _number(value: float, unit: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:.3g} {unit}".strip()


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
