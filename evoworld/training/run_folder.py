"""The folder of a run: what state it is in, and the going on from there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from .config import STAGES, TrainConfig
from .settings import as_plain, differences

MODEL = "model.safetensors"
DONE = "done"
# What may differ between a process and the one that goes on: how long it goes on, and what changes no sample or step.
FREE = ("out", "resume", "stop_after", "max_shard_mb", "save_minutes", "preview_minutes", "device", "sharding")
FREE += ("compile", "checkpointing", "tensorboard", "minutes", "data.folder", "data.workers")
FREE += tuple(f"{stage}.{name}" for stage in STAGES for name in ("steps", "share"))


@dataclass
class RunState:
    """Where a run stands. Names of tensors start with ``model.``, ``weights.``, ``average.`` and ``optimizer.``:
    all that the stage does not train, what it trains, its average, and the optimiser's."""

    stage: str
    step: int = 0  # of the stage, done
    total: int = 0  # of all stages
    seconds: float = 0.0  # of the stage
    averaged: int = 0  # weights in the average
    skipped: int = 0  # steps that the guard left out
    norms: list[float] = field(default_factory=list)  # the guard's
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """The model's weights by name, those in training as they are; empty before any checkpoint."""
        return self._named("model.") | self._named("weights.")

    def averaged_weights(self) -> dict[str, Tensor]:
        """The same with the average in place of those in training."""
        return self.weights() | self._named("average.")

    def _named(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}


class RunFolder:
    """A run's folder.

    Args:
        config: of this process.
    """

    def __init__(self, config: TrainConfig):
        self.config, self.path = config, Path(config.out)

    def open(self) -> RunState:
        """The state to go on from; that of a new run if there is none yet.

        Raises:
            ValueError: there is a run and it is not to be resumed, or it was made with other settings.
            CheckpointError: its checkpoint is damaged.
        """
        last = last_checkpoint(self.path)
        if last is None:
            return RunState(next(name for name in STAGES if self.config.lasts(name)))
        if not self.config.resume:
            raise ValueError(f"{self.path}: there is a run already; --resume goes on with it, --out starts another")
        return self.read()

    def read(self) -> RunState:
        """The state of the last checkpoint; see `open`."""
        path = last_checkpoint(self.path)
        tensors, facts = load_checkpoint(path)
        changed = differences(facts.pop("config"), as_plain(self.config))
        changed = {name: pair for name, pair in changed.items() if name not in FREE}
        if changed:
            name, (old, new) = next(iter(changed.items()))
            raise ValueError(f"{path}: made with {name} = {old}, got {new}; the settings of a run cannot change")
        return RunState(**facts, tensors=tensors)

    def write(self, state: RunState) -> None:
        """Makes the state the last checkpoint.

        Raises:
            OSError: it cannot be written; the one before is untouched.
        """
        facts: dict[str, Any] = {name: x for name, x in vars(state).items() if name != "tensors"}
        facts["config"] = as_plain(self.config)
        save_checkpoint(
            self.path, state.total + STAGES_DONE[state.stage], state.tensors, facts, self.config.max_shard_mb
        )

    def next_stage(self, stage: str) -> str:
        """The stage after one, or DONE."""
        later = STAGES[STAGES.index(stage) + 1 :]
        return next((name for name in later if self.config.lasts(name)), DONE)


STAGES_DONE = {name: i for i, name in enumerate((*STAGES, DONE))}  # added to a checkpoint's number: always a new one
