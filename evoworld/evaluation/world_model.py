"""How good a world model is: everything that is claimed of it, measured beside filling holes without a network."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evoworld.data.cached import CachedWalks
from evoworld.data.procedural import ProceduralWalks
from evoworld.data.walk import Walk
from evoworld.evaluation.efficientnet import load_efficientnet, panorama_features
from evoworld.evaluation.equivariance import roll_error
from evoworld.evaluation.frechet import frechet_distance
from evoworld.evaluation.holes import KINDS, NUM_FRAMES, fill, make_hole
from evoworld.evaluation.metrics import depth_metrics
from evoworld.evaluation.revisits import walk_lap, walk_long
from evoworld.evaluation.seam import seam_gradients
from evoworld.evaluation.text_accuracy import BLOCKS, choose_captions, fit_classifier, panorama_description
from evoworld.world.atomic import atomic_path
from evoworld.world.evolve import World
from evoworld.world.model import WorldModel
from evoworld.world.rgbd import decode_rgbd

CASES = ("lap", "long", "wedge", "new room", "panorama", "roll", "text")
FILL_ONLY = "fill-only"
HEIGHT = 64  # of the panoramas where no model says
PICTURES = 4  # of each kind of hole that are kept


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    cases: tuple[str, ...] = CASES
    seeds: int = 3  # of sampling
    laps: int = 6  # closed walks
    lap_frames: int = 33
    long_walks: int = 1
    long_frames: int = 500
    long_laps: int = 4
    holes: int = 48  # walks with a hole of each kind
    hole_frames: int = 24
    panoramas: int = 24  # whose depth is to be told
    captions: int = 8
    text_walks: int = 4000  # true renderings that the classifier of captions learns from
    cache: str | None = None  # folder for true renderings
    steps: int = 3  # of sampling

    def __post_init__(self) -> None:
        unknown = [case for case in self.cases if case not in CASES]
        if unknown:
            raise ValueError(f"cases: expected of {', '.join(CASES)}, got {unknown[0]!r}")
        least = {"lap_frames": 2, "long_laps": 2, "hole_frames": 8, "holes": 2, "captions": 2}
        for name in ("seeds", "laps", "long_walks", "panoramas", "text_walks", "steps", "long_frames", *least):
            if getattr(self, name) < least.get(name, 1):
                raise ValueError(f"{name}: expected at least {least.get(name, 1)}, got {getattr(self, name)}")


@dataclass
class Measured:
    """Rows of numbers, each with its case, contestant, walk and seed; and pictures to look at."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[tuple[str, dict[str, Tensor]]] = field(default_factory=list)  # caption -> name -> [H, W, 3]

    def values(self, case: str, contestant: str, name: str) -> list[float]:
        """All values of a measure that are numbers."""
        rows = (row for row in self.rows if (row["case"], row["contestant"]) == (case, contestant))
        found = [row.get(name, math.nan) for row in rows]
        return [value for value in found if not math.isnan(value)]

    def mean(self, case: str, contestant: str, name: str) -> float:
        values = self.values(case, contestant, name)
        return sum(values) / len(values) if values else math.nan


def evaluate(
    contestants: dict[str, WorldModel | None],
    plan: Plan,
    progress: Callable[[str, int], Callable[[], None]] | None = None,
    measured: Measured | None = None,
) -> Measured:
    """Measures the contestants on held-out procedural worlds, all on the same ones with the same seeds.

    Args:
        contestants: models by name; None stands for `FILL_ONLY`.
        plan: what and how much.
        progress: given a case and its number of steps, returns what is called after each.
        measured: where to put the results as they come, for who wants to look at them earlier.

    Raises:
        ValueError: contestants of different heights, or the weights for the Fréchet distance are missing.
    """
    heights = {model.config.height for model in contestants.values() if model is not None}
    if len(heights) > 1:
        raise ValueError(f"contestants: expected one height of panoramas, got {sorted(heights)}")
    height = heights.pop() if heights else HEIGHT
    measured = Measured() if measured is None else measured
    run = _Run(contestants, plan, height, progress or (lambda case, total: lambda: None), measured)
    runs = {
        "lap": run.laps,
        "long": run.long_walks,
        "wedge": lambda: run.holes("wedge"),
        "new room": lambda: run.holes("new room"),
        "panorama": run.panoramas,
        "roll": run.roll,
        "text": run.text,
    }
    for case in CASES:
        if case in plan.cases:
            runs[case]()
    return measured


class _Run:
    """The cases, each of which adds its rows and pictures to what is measured."""

    def __init__(self, contestants, plan: Plan, height: int, progress, measured: Measured) -> None:
        self.contestants, self.plan, self.height, self.progress = contestants, plan, height, progress
        models = [model for model in contestants.values() if model is not None]
        self.num_frames = min((model.config.num_frames for model in models), default=NUM_FRAMES)
        self.measured, self._network = measured, None

    @property
    def network(self):
        if self._network is None:
            self._network = load_efficientnet()
        return self._network

    def walks(self, num_frames: int, num_walks: int, kinds: tuple[str, ...] | None, split: str = "test"):
        walks = ProceduralWalks(split, self.height, num_frames, num_walks, kinds=kinds)
        return walks if self.plan.cache is None else CachedWalks(walks, Path(self.plan.cache))

    def world(self, model: WorldModel | None) -> World:
        return World(height=self.height) if model is None else World(model, steps=self.plan.steps)

    def each(self, case: str, walks: Sequence[Walk], seeds: int | None = None):
        """Every walk, contestant and seed; no seed changes what is filled without a network."""
        seeds = self.plan.seeds if seeds is None else seeds
        total = len(walks) * sum(1 if model is None else seeds for model in self.contestants.values())
        advance = self.progress(case, total)
        for index in range(len(walks)):
            walk = walks[index]
            for name, model in self.contestants.items():
                for seed in range(1 if model is None else seeds):
                    yield walk, name, model, seed
                    advance()

    def add(self, case: str, contestant: str, walk: str, seed: int, **numbers: float) -> None:
        self.measured.rows.append({"case": case, "contestant": contestant, "walk": walk, "seed": seed, **numbers})

    def laps(self) -> None:
        walks = self.walks(self.plan.lap_frames, self.plan.laps, ("loop",))
        for walk, name, model, seed in self.each("lap", walks):
            lap = walk_lap(lambda model=model: self.world(model), walk, seed)
            numbers = {key: value for key, value in vars(lap).items() if key != "images"}
            self.add("lap", name, walk.name, seed, **_seam(torch.stack(lap.images[1:])), **numbers)

    def long_walks(self) -> None:
        per_lap = math.ceil(self.plan.long_frames / self.plan.long_laps)
        walks = self.walks(per_lap + 1, self.plan.long_walks, ("loop",))
        for walk, name, model, seed in self.each("long", walks, seeds=1):
            path, laps = walk.camera_to_world, self.plan.long_laps
            long = walk_long(lambda model=model: self.world(model), walk.select([0]), path, laps, seed)
            self.add("long", name, walk.name, seed, **vars(long))

    def holes(self, kind: str) -> None:
        walks = self.walks(self.plan.hole_frames, self.plan.holes, ("curve",))
        made, true = defaultdict(list), {}
        shown: dict[str, dict[str, Tensor]] = {}
        for walk, name, model, seed in self.each(kind, walks):
            hole = make_hole(kind, walk, model, seed, self.num_frames)
            filling = fill(hole, model, seed, **({} if model is None else {"steps": self.plan.steps}))
            numbers = {key: getattr(filling, key) for key in ("psnr", "delta", "abs_rel")}
            self.add(kind, name, walk.name, seed, **numbers, **_seam(filling.image))
            made[name, seed].append(panorama_features(self.network, filling.image).flatten(0, 1))
            if walk.name not in true:
                self.add(kind, "truth", walk.name, 0, **dict.fromkeys(numbers, math.nan), **_seam(hole.truth.image))
                true[walk.name] = panorama_features(self.network, hole.truth.image).flatten(0, 1)
            if seed == 0 and (walk.name in shown or len(shown) < PICTURES):
                pictures = shown.setdefault(walk.name, {"true": hole.truth.image[0]})
                known, _ = decode_rgbd(hole.condition.memory[0, 0].cpu())
                pictures["what the memory shows"] = torch.where(hole.hole[0, ..., None], 0.0, known)
                pictures[name] = filling.image[0]
        self.measured.pictures += [(f"{kind}, {walk}", pictures) for walk, pictures in shown.items()]
        truth = torch.cat(list(true.values()))
        for (name, seed), features in made.items():
            self.add(f"{kind} as a whole", name, "all", seed, frechet=frechet_distance(torch.cat(features), truth))
        # Of two sets of true renderings, each half as large: what a perfect model could not stay far below.
        halves = [torch.cat(list(true.values())[half::2]) for half in (0, 1)]
        self.add(f"{kind} as a whole", "truth", "all", 0, frechet=frechet_distance(*halves))

    def panoramas(self) -> None:
        for walk, name, model, seed in self.each("panorama", self.walks(1, self.plan.panoramas, None)):
            world = self.world(model)
            pose = walk.camera_to_world[0]
            world.start(image=walk.image[0], prompt=walk.captions[0], camera_to_world=pose, seed=seed)
            (frame,) = world.walk(pose[None])
            found = depth_metrics(frame.depth.cpu(), walk.depth[0], world.camera.solid_angle())
            self.add("panorama", name, walk.name, seed, abs_rel=found.abs_rel, delta=found.delta)

    def roll(self) -> None:
        walks = self.walks(self.plan.hole_frames, 2, ("curve",))
        for walk, name, model, seed in self.each("roll", walks, seeds=1):
            condition = make_hole(KINDS[0], walk, model, seed, self.num_frames).condition
            error = max(roll_error(model, condition, turns, seed) for turns in (1, 5, 12))
            self.add("roll", name, walk.name, seed, error=error)

    def lessons(self) -> tuple[Tensor, list[str]]:  # [B, F]
        """Descriptions of true renderings and their captions; kept beside them, for they take minutes."""
        walks = self.walks(1, self.plan.text_walks, None, split="train")
        depends = f"{walks.identity} {len(walks)} {BLOCKS}"
        path = Path(self.plan.cache or "") / f"captions-{hashlib.sha256(depends.encode()).hexdigest()[:12]}.pt"
        if self.plan.cache and path.is_file():
            return torch.load(path, weights_only=True)
        advance = self.progress("text: lessons", len(walks))
        described, captions = [], []
        for index in range(len(walks)):
            walk = walks[index]
            described.append(panorama_description(self.network, walk.image))
            captions.append(walk.captions[0])
            advance()
        lessons = torch.cat(described), captions
        if self.plan.cache:
            with atomic_path(path) as temporary:
                torch.save(lessons, temporary)
        return lessons

    def text(self) -> None:
        plan = self.plan
        classifier = fit_classifier(*self.lessons(), BLOCKS)
        walks = self.walks(1, 8 * plan.captions, None)
        asked = choose_captions([walks[index] for index in range(len(walks))], plan.captions)
        wanted = [walk.captions[0] for walk in asked]

        def right(walk: Walk, image: Tensor) -> float:  # [H, W, 3]
            found = classifier.nearest(panorama_description(self.network, image[None]), wanted)
            return float(wanted[int(found)] == walk.captions[0])

        for walk in asked:
            self.add("text", "truth", walk.name, 0, right=right(walk, walk.image[0]))
        for walk, name, model, seed in self.each("text", asked):
            world = self.world(model)
            world.start(prompt=walk.captions[0], seed=seed)
            (frame,) = world.walk(walk.camera_to_world[:1])
            self.add("text", name, walk.name, seed, right=right(walk, frame.image.cpu()))
            if seed == 0:
                title = f"text: {walk.captions[0]}"
                found = next((pictures for key, pictures in self.measured.pictures if key == title), None)
                if found is None:
                    found = {"true": walk.image[0]}
                    self.measured.pictures.append((title, found))
                found[name] = frame.image.cpu()


def _seam(image: Tensor) -> dict[str, float]:  # [N, H, W, 3]
    across, inside = seam_gradients(image)
    return {"seam_across": across, "seam_inside": inside}
