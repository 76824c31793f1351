"""A world model and walks that are small enough for tests."""

import torch

from evoworld.data.walk import Walk, level_poses
from evoworld.geometry import Panorama
from evoworld.world.autoencoder import AutoencoderConfig
from evoworld.world.dit import DiTConfig
from evoworld.world.memory_encoder import MemoryEncoderConfig
from evoworld.world.model import WorldModel, WorldModelConfig

HEIGHT = 16
HALF_SIZE = torch.tensor([1.5, 1.2, 1.0])  # metres, of a box


def tiny_model(seed=0, learned_memory=False):
    """Untrained, but with a last layer that is not zero: what it makes differs from what it is given."""
    torch.manual_seed(seed)
    memory = MemoryEncoderConfig(height=HEIGHT) if learned_memory else None
    dit = DiTConfig(latent_channels=8, dim=32, num_heads=2, depth=1, feature_dim=memory.feature_dim if memory else 0)
    model = WorldModel(WorldModelConfig(HEIGHT, 2, AutoencoderConfig(latent_channels=8, dim=8), dit, memory, "none"))
    for parameter in model.dit.last.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def box_walk(positions, caption="a box", height=HEIGHT):
    """What cameras in a box with smooth colours see: exact ranges."""
    camera = Panorama(height, 2 * height)
    poses = level_poses(torch.as_tensor(positions, dtype=torch.float32), 0.4)
    images, depths = [], []
    for pose in poses:
        origins, directions = camera.rays(pose)
        distance = ((directions.sign() * HALF_SIZE - origins) / directions).amin(-1)
        points = origins + distance[:, None] * directions
        colour = 0.5 + 0.4 * torch.sin(2 * points + torch.tensor([0.0, 1.0, 2.0]))
        images.append(colour.view(height, 2 * height, 3))
        depths.append(distance.view(height, 2 * height))
    return Walk(torch.stack(images), torch.stack(depths), poses, (caption,) * len(poses), "box")
