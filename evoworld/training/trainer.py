"""The training loop: stages one after another, each until its steps or its minutes are over."""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from evoworld.world.evolve import find_weights
from evoworld.world.model import WorldModel, WorldModelConfig
from evoworld.world.model_file import load_weights

from .clock import StageClock
from .config import TrainConfig
from .data import TrainingData
from .distributed import Processes, restore_state, whole_state
from .draw import Batches, draw
from .ema import AverageOfWeights
from .log import RunLog
from .optimizer import GradientGuard, gradient_norm, make_optimizer, rate_at, scale_gradients
from .previews import write_picture
from .run_folder import DONE, MODEL, RunFolder, RunState
from .samples import Batch, collate, cut, moved
from .stages import Stage, make_stage

LOG_SECONDS = 15.0  # between lines of the log
SHOWN = 3  # samples in a preview


@dataclass(frozen=True)
class Progress:
    """Where a stage is."""

    stage: str
    step: int  # done
    fraction: float  # 0..1 of the stage
    loss: float
    rate: float  # steps a second
    seconds_left: float  # of the stage


class Monitor(Protocol):
    """Who watches a run."""

    def progress(self, progress: Progress) -> None:
        """Called after each step."""

    def note(self, text: str) -> None:
        """Called when something is to be said: a stage starts, a step was skipped, a checkpoint was written."""


def train(config: TrainConfig, monitor: Monitor) -> bool:
    """Trains a world model, or goes on with it; see `TrainConfig`.

    The run's folder gets checkpoints, `log.jsonl`, previews, and with each checkpoint of the last stage the model as it
    is by then: the average of its weights.

    Returns:
        Whether the training is over; False if it was stopped, to be resumed.

    Raises:
        ValueError: a setting, the run in the folder or its checkpoint does not fit.
        OSError: the folder cannot be written.
        MemoryError: a step needs more than there is; the message says what to change.
        KeyboardInterrupt: Ctrl-C; a checkpoint is written first.
    """
    processes = Processes(config.device)
    try:
        folder = RunFolder(config)
        state = folder.open()
        processes.wait()  # until all have looked, none may write
        data = TrainingData(config, processes.device)
        started = time.monotonic()
        with interruptions() as interrupted:
            while state.stage != DONE:
                runner = StageRunner(config, state, data, processes, folder, monitor)
                if not runner.run(started, interrupted):
                    if interrupted.by == signal.SIGINT:
                        raise KeyboardInterrupt
                    return False
                processes.wait()
                state = folder.read()
        return True
    finally:
        processes.close()


class StageRunner:
    """One stage of a run, from where its state says."""

    def __init__(
        self,
        config: TrainConfig,
        state: RunState,
        data: TrainingData,
        processes: Processes,
        folder: RunFolder,
        monitor: Monitor,
    ):
        self.config, self.state, self.processes, self.folder, self.monitor = config, state, processes, folder, monitor
        self.model = make_model(config, state).to(processes.device)
        self.stage: Stage = make_stage(state.stage, config, self.model, data)
        self.settings = self.stage.config
        objective = self.stage.objective
        if config.compile:
            for module in objective.modules():
                for block in module if isinstance(module, nn.ModuleList) else ():
                    block.compile()
        self.wrapped = processes.wrap(objective, config.sharding)
        self.optimizer = make_optimizer(self.wrapped, self.settings)
        self.average = AverageOfWeights(objective, self.settings.ema)
        if any(name.startswith("weights.") for name in state.tensors):
            restore_state(self.wrapped, self.optimizer, self.average.weights, state.tensors)
            self.average.count = state.averaged
        self.guard = GradientGuard(config.guard, state.norms)
        self.clock = StageClock(self.settings.steps, config.minutes_of(state.stage), state.step, state.seconds)
        self.log = RunLog(folder.path, config.tensorboard, state.total) if processes.first else None

    def run(self, started: float, interrupted: Interruption) -> bool:
        """Trains until the stage is over; False if it was stopped before."""
        config, clock = self.config, self.clock
        self.monitor.note(f"Stage {self.stage.name}: {self._extent()}")
        batches = Batches(self.stage.samples, self._numbers, config.data.workers, collate).starting_at(clock.step)
        saved = previewed = time.monotonic()
        recent, logged, first = Recent(), time.monotonic(), clock.step
        begun = time.monotonic()
        while True:
            now = time.monotonic()
            stop = interrupted.by is not None or (config.stop_after and now - started >= 60 * config.stop_after)
            preview = config.preview_minutes and now - previewed >= 60 * config.preview_minutes
            save = clock.step > first and now - saved >= 60 * config.save_minutes
            fraction, over, stop, save, preview = self.processes.agree(
                clock.fraction(), clock.over(), bool(stop), bool(save), bool(preview)
            )
            if preview or (over and config.preview_minutes):
                self._preview()
                previewed = time.monotonic()
            if over:
                self._finish()
                return True
            if save or stop:
                self._save()
                saved = time.monotonic()
            if stop:
                self.monitor.note(f"Stopped after step {clock.step} of {self.stage.name}; --resume goes on")
                return False
            recent.add(self._step(next(batches), fraction))
            pace = (clock.step - first) / (time.monotonic() - begun)
            self.monitor.progress(
                Progress(self.stage.name, clock.step, clock.fraction(), recent.loss, pace, clock.seconds_left())
            )
            if self.log and time.monotonic() - logged >= LOG_SECONDS:
                self._write_log(recent.means(), pace, fraction)
                recent, logged = Recent(recent.loss), time.monotonic()

    def _step(self, batch: Batch, fraction: float) -> dict[str, float]:
        """Takes a step; the parts of the loss, and the gradient's norm."""
        clock, size = self.clock, self.settings.batch
        places = self.processes.share(list(range(clock.step * size, (clock.step + 1) * size)))
        batch = moved(batch, self.processes.device)
        torch.manual_seed(_seed(self.config.seed, self.stage.name, places[0]))
        parts: dict[str, Tensor] = {}
        pieces = min(self.settings.accumulate, len(places))
        with advice_on_memory(self.config, self.stage):
            for i in range(pieces):  # the mean over processes of a sum of gradients may be taken at every part
                chosen = slice(i * len(places) // pieces, (i + 1) * len(places) // pieces)
                random = [
                    torch.Generator().manual_seed(_seed(self.config.seed, self.stage.name, place))
                    for place in places[chosen]
                ]
                weight = len(random) / len(places)
                with self._autocast():
                    losses = self.wrapped(cut(batch, chosen), random)
                (losses["loss"] * weight).backward()
                for name, value in losses.items():
                    parts[name] = parts.get(name, 0.0) + weight * value.detach().float()
            norm = gradient_norm(self.wrapped)
        names = [*parts, "gradient"]
        # One look at the device for all that the host must know of a step.
        values = self.processes.mean(torch.stack([*parts.values(), norm.float()])).tolist()
        facts = dict(zip(names, values, strict=True))
        if self.guard.accepts(facts["gradient"]):
            scale_gradients(self.wrapped, facts["gradient"], self.config.clip)
            for group in self.optimizer.param_groups:
                group["lr"] = rate_at(self.settings, clock.step, fraction)
            self.optimizer.step()
            self.average.update()
        else:
            self.state.skipped += 1
            self.monitor.note(f"Step {clock.step} of {self.stage.name} skipped: gradient norm {facts['gradient']:.3g}")
        self.optimizer.zero_grad(set_to_none=True)
        clock.step += 1
        self.state.total += 1
        return facts

    def _numbers(self, step: int) -> list[int]:
        samples, reuse = len(self.stage.samples), self.config.data.reuse
        return self.processes.share(draw(self.config.seed, step, self.settings.batch, samples, reuse))

    def _autocast(self) -> torch.autocast:
        device, precision = self.processes.device.type, self.config.precision
        half = precision == "bfloat16" or (precision == "auto" and device == "cuda")
        return torch.autocast(device, torch.bfloat16, enabled=half)

    def _current(self) -> RunState:
        """The state as it is now; all processes must ask."""
        trained = whole_state(self.wrapped, self.optimizer, self.average.weights)
        names = {name for name, _ in self.stage.objective.named_parameters()}
        kept = {f"model.{name}": x.cpu() for name, x in self.model.state_dict().items() if name not in names}
        state, clock = self.state, self.clock
        seconds, norms = clock.elapsed(), list(self.guard.norms)
        return RunState(
            self.stage.name, clock.step, state.total, seconds, self.average.count, state.skipped, norms, kept | trained
        )

    def _save(self) -> None:
        current = self._current()
        if self.processes.first:
            self.folder.write(current)
            if self.folder.next_stage(self.stage.name) == DONE:
                self._export(current)
            self.monitor.note(f"Checkpoint after step {current.step} of {self.stage.name}")

    def _finish(self) -> None:
        """The average becomes the weights, and the next stage the run's."""
        current = self._current()
        following = self.folder.next_stage(self.stage.name)
        if self.processes.first:
            tensors = {f"model.{name}": tensor for name, tensor in current.averaged_weights().items()}
            if following == DONE:
                self._export(current)
            self.folder.write(RunState(following, total=current.total, skipped=current.skipped, tensors=tensors))
            self.log.write(current.total, self.stage.name, step=current.step, seconds=current.seconds, over=True)
            self.log.close()
            self.monitor.note(f"Stage {self.stage.name} is over after {current.step} steps")

    def _export(self, current: RunState) -> None:
        model = WorldModel(exported(self.config))
        model.load_state_dict(current.averaged_weights())
        model.save(self.folder.path / MODEL)

    def _preview(self) -> None:
        """Looks at worlds that are not trained on, with the average of the weights: a picture, and the loss."""
        held_out = moved(collate(list(self.stage.held_out)), self.processes.device)
        random = [torch.Generator().manual_seed(_seed("held out", i)) for i in range(len(self.stage.held_out))]
        self.average.swap()
        self.stage.objective.eval()
        module = self.wrapped.module if isinstance(self.wrapped, nn.parallel.DistributedDataParallel) else self.wrapped
        with torch.no_grad(), self._autocast():
            losses = module(held_out, random)
            picture = module(cut(held_out, slice(SHOWN)), random[:SHOWN], preview=True)
        self.stage.objective.train()
        self.average.swap()
        if self.processes.first:
            path = self.folder.path / "previews" / f"{self.stage.name}-{self.clock.step:07d}.png"
            write_picture(path, picture)
            self.log.image(self.state.total, self.stage.name, picture)
            values = {f"held_out_{name}": float(f"{value.item():.5g}") for name, value in losses.items()}
            self.log.write(self.state.total, self.stage.name, step=self.clock.step, **values)
            self.monitor.note(f"Worlds not trained on: loss {values['held_out_loss']}; {path}")

    def _write_log(self, means: dict[str, float], pace: float, fraction: float) -> None:
        rounded = {name: float(f"{value:.5g}") for name, value in means.items()}
        rate = float(f"{rate_at(self.settings, self.clock.step, fraction):.4g}")
        seconds, pace = round(self.clock.elapsed(), 1), round(pace, 3)
        self.log.write(
            self.state.total,
            self.stage.name,
            step=self.clock.step,
            seconds=seconds,
            steps_per_second=pace,
            rate=rate,
            skipped=self.state.skipped,
            **rounded,
        )

    def _extent(self) -> str:
        steps, minutes = self.settings.steps, self.clock.minutes
        extent = f"{minutes:.1f} minutes" if math.isfinite(minutes) else f"{steps} steps"
        return f"{extent} of {self.settings.batch} segments" + (
            f", from step {self.clock.step}" * bool(self.clock.step)
        )


class Recent:
    """Means of what the last steps gave, and a loss that is smooth enough to read."""

    def __init__(self, loss: float = math.nan):
        self.loss, self.count, self.sums = loss, 0, {}

    def add(self, facts: dict[str, float]) -> None:
        loss = facts["loss"]
        self.loss = loss if math.isnan(self.loss) else self.loss + 0.02 * (loss - self.loss)
        self.count += 1
        for name, value in facts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: total / self.count for name, total in self.sums.items()}


class Interruption:
    """The signal that asked the run to stop, if one did."""

    by: int | None = None


@contextmanager
def interruptions() -> Iterator[Interruption]:
    """Ctrl-C and SIGTERM stop the run after the step it is at; a second Ctrl-C at once."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption  # signals are the main thread's
        return

    def remember(number: int, frame: object) -> None:
        interruption.by = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def advice_on_memory(config: TrainConfig, stage: Stage) -> Iterator[None]:
    """Turns what torch says when memory is short into what to do about it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
        if not short:
            raise
        settings, name, model = stage.config, stage.name, config.model
        raise MemoryError(
            f"a step of {settings.batch} segments of {model.num_frames} frames {model.height} x {2 * model.height} "
            f"does not fit into memory; try --{name}.accumulate {2 * settings.accumulate} (slower, the same result), "
            f"--checkpointing, --sharding fsdp on several GPUs, or --{name}.batch {max(1, settings.batch // 2)}"
        ) from error


def exported(config: TrainConfig) -> WorldModelConfig:
    """The configuration that the trained model has: one that never saw a memory says so."""
    return replace(config.model, uses_memory=config.model.uses_memory and config.data.no_memory < 1)


def make_model(config: TrainConfig, state: RunState) -> WorldModel:
    """The model with the run's weights, or new ones that are a function of the seed."""
    torch.manual_seed(config.seed)
    dit = replace(config.model.dit, checkpointing=config.checkpointing or config.model.dit.checkpointing)
    model = WorldModel(replace(exported(config), dit=dit))
    if state.tensors:
        model.load_state_dict(state.weights())
    elif config.weights:
        load_weights(model, find_weights(config.weights))
    return model


def _seed(*names: object) -> int:
    """A seed for torch out of what names it."""
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "little") >> 1
