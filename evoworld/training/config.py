"""What a training run is made with: typed, frozen, from the command line and from YAML files."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evoworld.world.configs import CONFIGS as MODELS
from evoworld.world.model import WorldModelConfig

from .settings import with_changes

STAGES = ("autoencoder", "memory", "flow")


def _at_least(config: object, **least: float) -> None:
    for name, low in least.items():
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= low):
            raise ValueError(f"{name}: expected at least {low}, got {value}")


def _shares(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}: expected 0 to 1, got {getattr(config, name)}")


@dataclass(frozen=True)
class DataConfig:
    """What is trained on. Walks and segments are made once and kept in a folder."""

    folder: str = "train_data"
    """where made walks and segments are kept; several runs may share it"""
    worlds: int = 512
    """procedural walks, each through a world of its own; 0: none"""
    frames: int = 24
    """of a walk"""
    captures: tuple[str, ...] = ()
    """folders of captures with depth"""
    photos: str = ""
    """folder of panoramas without depth, which train the colours of the autoencoder"""
    segments: int = 4096
    """different samples: frames of a walk with a memory, a mode, an augmentation"""
    observed: int = 8
    """frames at most that the memory of a segment is made from"""
    no_memory: float = 0.2
    """share of segments that start a world: from words, a panorama, a photo, or colours whose depth is wanted"""
    holes: float = 0.6
    """share of the other segments that have a large hole: a wedge of 60 to 180 degrees removed"""
    reuse: int = 4
    """how often a sample is used, on average, before another is made; more where making them keeps a GPU waiting"""
    workers: int = 0
    """processes that read and make segments ahead of the training; 0: the training itself does"""

    def __post_init__(self) -> None:
        _at_least(self, worlds=0, frames=1, segments=1, observed=1, reuse=1, workers=0)
        _shares(self, "no_memory", "holes")
        if self.worlds == 0 and not self.captures:
            raise ValueError("data: expected worlds or captures to train on, got neither")


@dataclass(frozen=True)
class StageConfig:
    """How long and how fast a stage trains."""

    steps: int = 10_000
    """when no minutes are given; 0 leaves the stage out"""
    share: float = 1.0
    """of the minutes, relative to the other stages; 0 leaves the stage out"""
    batch: int = 1
    """segments a step, of all processes together"""
    accumulate: int = 1
    """parts that a batch is taken in, one after another: less memory"""
    rate: float = 4e-4
    """AdamW's, after the warm-up"""
    warmup: int = 100
    """steps in which the rate rises"""
    cooldown: float = 0.3
    """share of the stage, at its end, in which the rate falls to a twentieth"""
    weight_decay: float = 0.01
    ema: float = 0.999
    """decay of the average of the weights that is kept"""

    def __post_init__(self) -> None:
        _at_least(self, steps=0, share=0, batch=1, accumulate=1, warmup=0, weight_decay=0)
        _shares(self, "cooldown", "ema")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate: expected a positive number, got {self.rate}")

    def at_once(self, processes: int) -> int:
        """Segments that one of so many processes has in memory together."""
        own = max(1, self.batch // processes)
        return math.ceil(own / min(self.accumulate, own))


@dataclass(frozen=True)
class AutoencoderStageConfig(StageConfig):
    """The autoencoder's stage: reconstruction, and details taken from what is known and visible."""

    latent_noise: float = 0.3
    """largest noise on latents before they are decoded with a skip, as generated ones are not exact"""
    photos: float = 0.1
    """share of steps on photos without depth, if there are any"""


@dataclass(frozen=True)
class FlowStageConfig(StageConfig):
    """The Panorama DiT's stage: rectified flow."""

    drop_text: float = 0.1
    """share of samples without words, for guidance"""
    drop_memory: float = 0.05
    """share of samples without their memory, for guidance"""
    consistency: float = 0.0
    """weight of the panoramic consistency loss: decoded frames against the memory's rendering where it is visible"""


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    model: WorldModelConfig = field(default_factory=lambda: MODELS["tiny"])
    data: DataConfig = DataConfig()
    autoencoder: AutoencoderStageConfig = AutoencoderStageConfig()
    memory: StageConfig = StageConfig()
    flow: FlowStageConfig = FlowStageConfig()
    weights: str = ""
    """weights that training starts from: a file, or the name of a shipped model; parts they lack start new"""
    out: str = "runs/tiny"
    """folder of the run: checkpoints, previews, log, and the model itself"""
    minutes: float = 0.0
    """of training in all, shared by the stages; 0: as many steps as each stage says"""
    stop_after: float = 0.0
    """minutes after which this process writes a checkpoint and ends, to be resumed; 0: none"""
    resume: bool = False
    """go on from the run's last checkpoint, if there is one"""
    max_shard_mb: float = 512.0
    """size of a file of a checkpoint, megabytes"""
    save_minutes: float = 5.0
    """between checkpoints; 0: after each step"""
    preview_minutes: float = 10.0
    """between images of what the model makes; 0: none"""
    seed: int = 0
    device: str = ""
    """where to train; by default a GPU if there is one"""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """under torchrun: whole copies of the weights, or weights split between the processes"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """of the products; weights stay in single precision; auto: bfloat16 on a GPU (some CPUs gain by it, too)"""
    compile: bool = False
    """torch.compile of what is trained"""
    checkpointing: bool = False
    """recompute activations in the backward instead of keeping them"""
    tensorboard: bool = False
    """write TensorBoard files as well as log.jsonl"""
    guard: float = 10.0
    """a step whose gradient norm is so many times the usual one, or not finite, is skipped"""
    clip: float = 1.0
    """gradient norm that larger ones are scaled down to"""

    def __post_init__(self) -> None:
        _at_least(self, minutes=0, stop_after=0, save_minutes=0, preview_minutes=0, seed=0)
        for name in ("max_shard_mb", "guard", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not any(self.lasts(name) for name in STAGES):
            raise ValueError("expected a stage to train, got none: all have share 0 or 0 steps")

    def lasts(self, stage: str) -> bool:
        """Whether a stage is trained at all."""
        config = getattr(self, stage)
        return (config.share if self.minutes else config.steps) > 0

    def minutes_of(self, stage: str) -> float:
        """A stage's part of the minutes; infinite if it is measured in steps."""
        if not self.minutes:
            return math.inf
        return self.minutes * getattr(self, stage).share / sum(getattr(self, name).share for name in STAGES)


CONFIGS = {
    "tiny": TrainConfig(
        data=DataConfig(worlds=1024, segments=12_288, no_memory=0.5, reuse=8),
        autoencoder=AutoencoderStageConfig(share=0.06, batch=8),
        memory=StageConfig(share=0.1, batch=4),
        flow=FlowStageConfig(share=0.84, batch=16),
    ),
    "base": TrainConfig(
        model=MODELS["base"],
        data=DataConfig(worlds=20_000, segments=400_000, reuse=16, workers=16),
        autoencoder=AutoencoderStageConfig(steps=100_000, share=0.25, batch=16, accumulate=8, rate=2e-4, warmup=1000),
        memory=StageConfig(steps=20_000, share=0.1, batch=16, rate=2e-4, warmup=500),
        flow=FlowStageConfig(steps=300_000, share=0.65, batch=64, accumulate=4, rate=2e-4, warmup=2000, ema=0.9999),
        out="runs/base",
        checkpointing=True,
    ),
    "large": TrainConfig(
        model=MODELS["large"],
        data=DataConfig(worlds=100_000, segments=2_000_000, reuse=16, workers=32),
        autoencoder=AutoencoderStageConfig(steps=200_000, share=0.25, batch=32, accumulate=32, rate=1e-4, warmup=2000),
        memory=StageConfig(steps=40_000, share=0.1, batch=16, rate=1e-4, warmup=1000),
        flow=FlowStageConfig(steps=600_000, share=0.65, batch=256, accumulate=256, rate=1e-4, warmup=5000, ema=0.9999),
        out="runs/large",
        checkpointing=True,
        sharding="fsdp",
    ),
}


def read_config(name: str | os.PathLike) -> TrainConfig:
    """The configuration of a name, or of a YAML file.

    A file holds the settings that differ from a named configuration, nested as the dataclasses are, and under ``base``
    the name of that one (tiny, if it does not say).

    Raises:
        ValueError: neither a name nor a YAML file, or a setting that is none.
        OSError: the file cannot be read.
        ModuleNotFoundError: PyYAML is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mine.yaml"
        >>> _ = path.write_text("base: tiny\\nflow: {batch: 2, rate: 3e-4}")
        >>> config = read_config(path)
        >>> config.flow.batch, config.flow.rate, config.autoencoder == CONFIGS["tiny"].autoencoder
        (2, 0.0003, True)
    """
    if str(name) in CONFIGS:
        return CONFIGS[str(name)]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"config: expected {', '.join(CONFIGS)} or a file that ends in .yaml, got {str(name)!r}")
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(settings, dict):
            raise ValueError(f"expected settings by name, got {type(settings).__name__}")
        base = settings.pop("base", "tiny")
        if base not in CONFIGS:
            raise ValueError(f"base: expected one of {', '.join(CONFIGS)}, got {base!r}")
        return with_changes(CONFIGS[base], settings)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
