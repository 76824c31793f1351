"""How good a world model is: everything that is claimed of it, measured beside filling holes without a network."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from evoworld.data.cached import CachedWalks
from evoworld.data.procedural import ProceduralWalks
from evoworld.data.walk import Walk
from evoworld.evaluation.efficientnet import load_efficientnet, panorama_features
from evoworld.evaluation.equivariance import roll_error, turned_likeness
from evoworld.evaluation.frechet import frechet_distance
from evoworld.evaluation.held_out import first_frame, path_of, walks_into_new_rooms
from evoworld.evaluation.holes import KINDS, NUM_FRAMES, VOXEL_SIZE, fill, make_hole, shown_to
from evoworld.evaluation.metrics import depth_metrics
from evoworld.evaluation.revisits import LOOK_EVERY, walk_lap, walk_long
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
LOOKED_AT = 12  # first closed walks, long walks and wedges of the test split: constants were chosen by looking at them
LOOKED_THROUGH = 100  # walks for each whose end is to lie in another room; of 24 frames every third does


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    cases: tuple[str, ...] = CASES
    seeds: int = 3  # of sampling
    laps: int = 6  # closed walks
    lap_frames: int = 33
    long_walks: int = 3
    long_frames: int = 500
    long_laps: int = 4
    holes: int = 48  # walks with a hole of each kind
    hole_frames: int = 24
    panoramas: int = 24  # whose depth is to be told
    captions: int = 8
    text_walks: int = 4000  # true renderings that the classifier of captions learns from
    cache: str | None = None  # folder for true renderings
    steps: int | None = None  # of sampling; None: as many as the world takes

    def __post_init__(self) -> None:
        unknown = [case for case in self.cases if case not in CASES]
        if unknown:
            raise ValueError(f"cases: expected of {', '.join(CASES)}, got {unknown[0]!r}")
        least = {"lap_frames": 3, "long_laps": 2, "hole_frames": 8, "holes": 2, "captions": 2}
        for name in ("seeds", "laps", "long_walks", "panoramas", "text_walks", "steps", "long_frames", *least):
            value = getattr(self, name)
            if value is not None and value < least.get(name, 1):
                raise ValueError(f"{name}: expected at least {least.get(name, 1)}, got {value}")


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
        ValueError: contestants of different heights or sizes of voxels, the weights for the Fréchet distance are
            missing, or too few walks lead into a new room.
    """
    models = [model for model in contestants.values() if model is not None]
    for name in ("height", "voxel_size"):  # what is filled without a network stands beside each of them
        values = {getattr(model.config, name) for model in models}
        if len(values) > 1:
            raise ValueError(f"contestants: expected one {name}, got {', '.join(map(str, sorted(values)))}")
    measured = Measured() if measured is None else measured
    run = _Run(contestants, plan, progress or (lambda case, total: lambda: None), measured)
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

    def __init__(self, contestants, plan: Plan, progress, measured: Measured) -> None:
        self.contestants, self.plan, self.progress = contestants, plan, progress
        configs = [model.config for model in contestants.values() if model is not None]
        self.height, self.voxel_size = HEIGHT, VOXEL_SIZE
        if configs:
            self.height, self.voxel_size = configs[0].height, configs[0].voxel_size
        self.look_every = max([LOOK_EVERY, *(config.num_frames for config in configs)])
        self.measured, self._network = measured, None
        self.options = {} if plan.steps is None else {"steps": plan.steps}

    @property
    def network(self):
        if self._network is None:
            self._network = load_efficientnet()
        return self._network

    def walks(self, num_frames: int, num_walks: int, kinds: tuple[str, ...] | None, split: str = "test"):
        return self.kept(ProceduralWalks(split, self.height, num_frames, num_walks, kinds=kinds))

    def new_walks(self, num_frames: int, num_walks: int, kind: str) -> Sequence[Walk]:
        """Walks that nothing was chosen by."""
        walks = self.walks(num_frames, LOOKED_AT + num_walks, (kind,))
        return Subset(walks, range(LOOKED_AT, LOOKED_AT + num_walks))

    def kept(self, walks: ProceduralWalks):
        return walks if self.plan.cache is None else CachedWalks(walks, Path(self.plan.cache))

    def world(self, model: WorldModel | None) -> World:
        if model is None:
            return World(height=self.height, voxel_size=self.voxel_size)
        return World(model, **self.options)

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
        walks = self.new_walks(self.plan.lap_frames, self.plan.laps, "loop")
        visible: dict[str, list[Tensor]] = {}
        for walk, name, model, seed in self.each("lap", walks):
            if walk.name not in visible:
                self.add("lap", "truth", walk.name, 0, **_seam(walk.image[1:]))
                if model is not None:
                    visible[walk.name] = walk_lap(lambda: self.world(None), walk, 0, self.look_every).visible
            make = partial(self.world, model)
            lap = walk_lap(make, walk, seed, self.look_every, visible.get(walk.name))
            visible.setdefault(walk.name, lap.visible)  # that of fill-only, for all
            numbers = {key: value for key, value in vars(lap).items() if key not in ("images", "visible")}
            self.add("lap", name, walk.name, seed, **_seam(torch.stack(lap.images[1:])), **numbers)

    def long_walks(self) -> None:
        plan = self.plan
        per_lap = math.ceil(plan.long_frames / plan.long_laps)
        walks = ProceduralWalks("test", self.height, per_lap + 1, LOOKED_AT + plan.long_walks, kinds=("loop",))
        firsts = {index: first_frame(walks, index) for index in range(LOOKED_AT, len(walks))}
        paths = {first.name: path_of(walks, index) for index, first in firsts.items()}
        for first, name, model, seed in self.each("long", list(firsts.values()), seeds=1):
            make, path = partial(self.world, model), paths[first.name]
            long = walk_long(make, first, path, plan.long_laps, seed, self.look_every)
            self.add("long", name, first.name, seed, **vars(long))

    def hole_walks(self, kind: str) -> Sequence[Walk]:
        plan = self.plan
        if kind != "new room":
            return self.new_walks(plan.hole_frames, plan.holes, "curve")
        many = LOOKED_THROUGH * plan.holes
        walks = ProceduralWalks("test", self.height, plan.hole_frames, many, kinds=("curve",))
        return Subset(self.kept(walks), walks_into_new_rooms(walks, plan.holes, NUM_FRAMES))

    def each_hole(self, case: str, kind: str, walks: Sequence[Walk], seeds: int | None = None):
        """Every hole, contestant and seed; a hole is the walk's, so that all are judged by the same ones."""
        name_of_bare, bare, shown = None, None, {}
        for walk, name, model, seed in self.each(case, walks, seeds):
            if walk.name != name_of_bare:
                name_of_bare, shown = walk.name, {}
                bare = make_hole(kind, walk, voxel_size=self.voxel_size)
            if name not in shown:
                shown[name] = shown_to(bare, model)
            yield walk, shown[name], name, model, seed

    def holes(self, kind: str) -> None:
        made, true = defaultdict(list), {}
        shown: dict[str, dict[str, Tensor]] = {}
        for walk, hole, name, model, seed in self.each_hole(kind, kind, self.hole_walks(kind)):
            filling = fill(hole, model, seed, **({} if model is None else self.options))
            numbers = {key: getattr(filling, key) for key in ("psnr", "delta", "abs_rel", "delta_all")}
            self.add(kind, name, walk.name, seed, **numbers, **_seam(filling.image))
            made[name, seed].append(panorama_features(self.network, filling.image).flatten(0, 1))
            if walk.name not in true:
                self.add(kind, "truth", walk.name, 0, **_seam(hole.truth.image))
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
            world.start(image=walk.image[0], camera_to_world=pose, seed=seed)
            (frame,) = world.walk(pose[None])
            found = depth_metrics(frame.depth.cpu(), walk.depth[0], world.camera.solid_angle())
            self.add("panorama", name, walk.name, seed, abs_rel=found.abs_rel, delta=found.delta)

    def roll(self) -> None:
        walks = self.walks(self.plan.hole_frames, 2, ("curve",))
        for walk, hole, name, model, seed in self.each_hole("roll", KINDS[0], walks, seeds=1):
            error = max(roll_error(model, hole.condition, turns, seed) for turns in (1, 5, 12))
            path = walk.select(range(1 + self.look_every))
            likeness = turned_likeness(partial(self.world, model), path, 1, seed)
            self.add("roll", name, walk.name, seed, error=error, likeness=likeness)

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
