"""Walks through procedural worlds: as many as wanted, the same for the same split and index on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch

from evoworld.geometry import Panorama

from .walk import Walk
from .worlds import LEVEL_WALKS, VERSION, World, caption, make_apartment, make_courtyard, make_walk, render

SPLITS = ("train", "validation", "test")
_APARTMENTS = 0.7  # of worlds; the others are courtyards
_KINDS = {"straight": 0.15, "curve": 0.35, "loop": 0.3, "out_and_back": 0.2}
_STEPS = (0.12, 0.3)  # metres between frames


class ProceduralWalks(Sequence[Walk]):
    """Walks each through a world of its own; walk ``i`` of a split is rendered when it is asked for.

    Worlds of the three splits have different seeds: ``3 i + 0, 1, 2``.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        height: H of the panoramas.
        num_frames: T of each walk.
        num_walks: the length of the sequence.
        device: where to render, and where the walks are.
        kinds: the kinds of walks (of `evoworld.data.worlds.LEVEL_WALKS`); by default a mixture of all. The last frame
            of a loop stands where the first stood.

    Raises:
        ValueError: for another split or kind, or for numbers that are not positive.
        IndexError: beyond ``num_walks``.

    Example:
        >>> walk = ProceduralWalks("test", height=8, num_frames=3, num_walks=10)[4]
        >>> walk.image.shape, len(walk.captions)
        (torch.Size([3, 8, 16, 3]), 3)
    """

    def __init__(
        self,
        split: str = "train",
        height: int = 64,
        num_frames: int = 24,
        num_walks: int = 100_000,
        device: torch.device | str = "cpu",
        kinds: Sequence[str] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        for name, value in (("height", height), ("num_frames", num_frames), ("num_walks", num_walks)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if unknown := [kind for kind in kinds or () if kind not in LEVEL_WALKS]:
            raise ValueError(f"kinds: expected of {', '.join(LEVEL_WALKS)}, got {unknown[0]!r}")
        self.split, self.height, self.num_frames, self.num_walks = split, height, num_frames, num_walks
        self.device, self.kinds = torch.device(device), None if kinds is None else tuple(kinds)
        self.identity = f"procedural {VERSION} {split} {height} {num_frames} {self.kinds}"

    def __len__(self) -> int:
        return self.num_walks

    def __getitem__(self, index: int) -> Walk:
        world = self.world(index)
        seed = world.seed
        random = Random(f"walk {seed}")
        step = random.uniform(*_STEPS)
        mixed = random.choices(list(_KINDS), list(_KINDS.values()))[0]
        kind = mixed if self.kinds is None else random.choice(self.kinds)
        rendering = render(
            world.to(self.device),
            Panorama(self.height, 2 * self.height),
            make_walk(world, kind, self.num_frames, seed, step),
        )
        captions = [caption(world, position, seed) for position in rendering.camera_to_world[:, :3, 3].cpu()]
        return Walk(
            rendering.image,
            rendering.depth,
            rendering.camera_to_world,
            tuple(captions),
            f"{self.split}-{self._checked(index)}-{kind}",
            rendering.object_id,
        )

    def world(self, index: int) -> World:
        """The world of a walk, on the CPU."""
        seed = len(SPLITS) * self._checked(index) + SPLITS.index(self.split)
        is_apartment = Random(f"kind {seed}").random() < _APARTMENTS
        return make_apartment(seed) if is_apartment else make_courtyard(seed)

    def _checked(self, index: int) -> int:
        if not -self.num_walks <= index < self.num_walks:
            raise IndexError(f"walk {index} of {self.num_walks}")
        return index % self.num_walks
