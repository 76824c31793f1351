"""A model and data so small that a step of each stage takes little time."""

from evoworld.training.config import AutoencoderStageConfig, DataConfig, FlowStageConfig, StageConfig, TrainConfig
from evoworld.world.autoencoder import AutoencoderConfig
from evoworld.world.dit import DiTConfig
from evoworld.world.memory_networks import MemoryEncoderConfig
from evoworld.world.model import WorldModelConfig

HEIGHT = 16


def small_model(**changes):
    """All parts, and latents of our autoencoder."""
    dit = DiTConfig(dim=32, num_heads=2, depth=2, stem_dim=8, rotary_width=8)
    parts = {"autoencoder": AutoencoderConfig(dim=8, refiner_dim=8), "dit": dit}
    parts["memory"] = MemoryEncoderConfig(height=HEIGHT)
    return WorldModelConfig(height=HEIGHT, num_frames=2, text="none", **(parts | changes))


def small_config(folder, **changes):
    """A run of two steps of each stage; its data is in a folder that other runs may share."""
    data = DataConfig(folder=str(folder / "data"), worlds=2, frames=4, segments=8, observed=3)
    short = {"steps": 2, "batch": 2, "warmup": 1}
    settings = {
        "model": small_model(),
        "data": data,
        "autoencoder": AutoencoderStageConfig(**short),
        "memory": StageConfig(**short),
        "flow": FlowStageConfig(**short),
        "out": str(folder / "run"),
        "device": "cpu",
        "preview_minutes": 0.0,
    }
    return TrainConfig(**(settings | changes))


class Quiet:
    """Who watches a run, and only remembers."""

    def __init__(self):
        self.losses, self.notes = [], []

    def progress(self, progress):
        self.losses.append((progress.stage, progress.step, progress.loss))

    def note(self, text):
        self.notes.append(text)
