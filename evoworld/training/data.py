"""All that a run trains on: procedural walks, captures, photos; the same for the same settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils.data import ConcatDataset

from evoworld.data import CachedWalks, CaptureError, CaptureWalks, PhotoPanoramas, ProceduralWalks
from evoworld.data.walk import Walk

from .config import TrainConfig
from .samples import PhotoSamples
from .segments import Segments

HELD_OUT = 6  # samples of worlds that are not trained on


class TrainingData:
    """What the settings of a run name as data; made or read when it is asked for.

    Args:
        config: of the run.
        device: that trains; it makes the samples too, unless there are workers, which do it on the CPU.
    """

    def __init__(self, config: TrainConfig, device: torch.device | str = "cpu"):
        self.config, self.device = config, torch.device("cpu" if config.data.workers else device)

    def segments(self) -> Segments:
        """The samples to train on."""
        data, model = self.config.data, self.config.model
        sources, lengths, identity = [], [], []
        if data.worlds:
            walks = ProceduralWalks("train", model.height, data.frames, data.worlds, self.device)
            sources.append(CachedWalks(walks, data.folder))
            lengths += [data.frames] * data.worlds
            identity.append(walks.identity)
        if data.captures:
            made = CaptureWalks(data.captures, model.height, data.frames)
            for capture in made.captures:
                if not capture.has_depth:
                    raise CaptureError(f"{capture.name}: expected depth in every frame; training needs it")
            walks = CachedWalks(made, data.folder)
            sources.append(walks)
            lengths += [data.frames] * len(walks)
            identity.append(walks.identity)
        return self._segments(ConcatDataset(sources), data, lengths, " ".join(identity))

    def held_out(self) -> Segments:
        """A few samples of worlds that are trained on by none; of the training's own where there are only captures."""
        data, model = self.config.data, self.config.model
        if not data.worlds:
            return self.segments()
        walks = ProceduralWalks("validation", model.height, data.frames, HELD_OUT, self.device)
        few = replace(data, segments=HELD_OUT, worlds=HELD_OUT)
        return self._segments(CachedWalks(walks, data.folder), few, [data.frames] * HELD_OUT, walks.identity)

    def photos(self) -> PhotoSamples | None:
        """Photos without depth, if there are any."""
        data, model = self.config.data, self.config.model
        if not data.photos:
            return None
        photos = CachedWalks(PhotoPanoramas(data.photos, model.height), data.folder)
        return PhotoSamples(photos, model.num_frames, self.config.seed)

    def _segments(self, walks: Sequence[Walk], data, lengths: Sequence[int], identity: str) -> Segments:
        model = self.config.model
        size = model.num_frames, model.height, model.voxel_size
        return Segments(walks, data, self.config.seed, *size, lengths, identity, self.device)
