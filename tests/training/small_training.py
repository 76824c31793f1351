"""A model and data so small that a step of each stage takes little time."""

from dataclasses import replace

from evoworld.training.config import AutoencoderStageConfig, DataConfig, FlowStageConfig, StageConfig, TrainConfig
from evoworld.world.configs import CONFIGS as MODELS

HEIGHT = 16


def small_model(**changes):
    """The tiny model, reduced."""
    tiny = MODELS["tiny"]
    autoencoder = replace(tiny.autoencoder, dim=8, refiner_dim=8)
    dit = replace(tiny.dit, dim=32, num_heads=2, depth=2, stem_dim=8, rotary_width=8)
    memory = None if tiny.memory is None else replace(tiny.memory, height=HEIGHT)
    sizes = {"autoencoder": autoencoder, "dit": dit, "memory": memory}
    return replace(tiny, height=HEIGHT, num_frames=2, text="none", **(sizes | changes))


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
