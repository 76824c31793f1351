"""Training a world model: autoencoder, learned memory, flow, from procedural worlds, captures and photos."""

from .checkpoint import CheckpointError
from .config import CONFIGS, DataConfig, StageConfig, TrainConfig, read_config

__all__ = ["CONFIGS", "CheckpointError", "DataConfig", "StageConfig", "TrainConfig", "read_config"]
