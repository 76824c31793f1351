"""Training samples: some frames of a walk, and what is known of them from outside and from the memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from evoworld.data.walk import Walk
from evoworld.geometry import Panorama
from evoworld.world.atomic import atomic_path
from evoworld.world.conditions import render_memory
from evoworld.world.first_write import first_write_config, observe_first
from evoworld.world.memory import Memory
from evoworld.world.rgbd import encode_rgbd

from .config import DataConfig
from .plan import SegmentPlan, known_mask, plan_segment, vary, wedge_mask

VERSION = 4  # of the files; raised when what is made changes
LEVELS = 32767  # of the depth code in files
Stored = dict[str, Tensor]  # a sample as it is kept and sent between processes: few bytes


class Segments(Sequence[Stored]):
    """Samples by their number, the same for the same seed; each is made once and kept in a folder.

    A sample holds ``target`` and ``memory`` (colours [T, H, W, 3] uint8 and depth codes [T, H, W] int16 each),
    ``visibility`` [T, H, W] uint8, ``known`` [T, H, W, 2] uint8, ``position`` [T, 3] float32, ``words`` (UTF-8, uint8).

    Args:
        walks: with depth.
        config: of the data.
        seed: of the run.
        num_frames: T of a segment.
        height: H of the panoramas.
        voxel_size: metres, of the memories.
        lengths: frames of each walk.
        identity: names all that the walks depend on; each has files of its own.
        device: where samples are made; they are on the CPU.

    Raises:
        ValueError: no walk, or walks shorter than one frame.
    """

    def __init__(
        self,
        walks: Sequence[Walk],
        config: DataConfig,
        seed: int,
        num_frames: int,
        height: int,
        voxel_size: float,
        lengths: Sequence[int],
        identity: str,
        device: torch.device | str = "cpu",
    ):
        if len(walks) == 0:
            raise ValueError("walks: expected at least one, got none")
        self.walks, self.config, self.seed, self.num_frames = walks, config, seed, num_frames
        self.camera, self.voxel_size, self.lengths = Panorama(height, 2 * height), voxel_size, lengths
        self.device = torch.device(device)
        depends = (VERSION, identity, len(walks), seed, num_frames, height, voxel_size, _shaping(config))
        self.folder = Path(config.folder) / f"segments-{hashlib.sha256(repr(depends).encode()).hexdigest()[:12]}"

    def __len__(self) -> int:
        return self.config.segments

    def __getitem__(self, index: int) -> Stored:
        path = self.folder / f"{index // 1000:05d}" / f"{index:08d}.safetensors"
        return kept(path, lambda: self.make(self.plan(index)))

    def plan(self, index: int) -> SegmentPlan:
        """What sample `index` is to be."""
        if not 0 <= index < len(self):
            raise IndexError(f"segment {index} of {len(self)}")
        return plan_segment(index, self.seed, self.lengths, self.num_frames, self.camera.width, self.config)

    def frames(self, plan: SegmentPlan) -> tuple[Walk, Walk]:
        """The frames that the memory is made of (the first target's, if of none) and the target's, varied."""
        count = len(plan.target)
        walk = vary(self.walks[plan.walk].select([*plan.target, *plan.observed]).to(self.device), plan)
        return walk.select(range(count, len(walk)) if plan.observed else [0]), walk.select(range(count))

    def make(self, plan: SegmentPlan) -> Stored:
        """The sample, from nothing."""
        observed, target = self.frames(plan)
        shape = (len(target), self.camera.height, self.camera.width)
        shown, visibility = (torch.zeros(*size, device=self.device) for size in ((*shape, 4), shape))
        if plan.observed:
            memory = Memory(config=first_write_config(self.voxel_size), device=self.device)
            for image, depth, pose in zip(observed.image, observed.depth, observed.camera_to_world, strict=True):
                observe_first(memory, image, depth, pose, self.camera)
            shown, visibility = render_memory(memory, target.camera_to_world, self.camera)
            visibility = visibility * wedge_mask(plan, self.camera.width).to(self.device)
        rotation, place = target.camera_to_world[0, :3, :3], target.camera_to_world[:, :3, 3]
        made = {
            **packed("target", encode_rgbd(target.image, target.depth)),
            **packed("memory", shown),
            "visibility": (visibility.clamp(0, 1) * 255).round().to(torch.uint8),
            "known": known_mask(plan, self.camera).to(torch.uint8),
            "position": (place - place[:1]) @ rotation,
            "words": torch.frombuffer(bytearray(target.captions[0].encode() or b" "), dtype=torch.uint8),
        }
        return {name: tensor.cpu() for name, tensor in made.items()}


def packed(name: str, rgbd: Tensor) -> Stored:  # [..., H, W, 4]
    """RGB-D panoramas in few bytes: 8 bits a colour, 16 for the depth code."""
    colour = ((rgbd[..., :3].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return {f"{name}_colour": colour, f"{name}_depth": (rgbd[..., 3].clamp(-1, 1) * LEVELS).round().to(torch.int16)}


def unpacked(name: str, stored: Stored) -> Tensor:  # [..., H, W, 4]
    """The RGB-D panoramas `target` or `memory` of samples."""
    colour, depth = stored[f"{name}_colour"].float() / 127.5 - 1, stored[f"{name}_depth"].float() / LEVELS
    return torch.cat((colour, depth[..., None]), -1)


def kept(path: Path, make: Callable[[], Stored]) -> Stored:
    """The tensors of a file; where it is missing or damaged they are made and written to it."""
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    try:
        return load(path.read_bytes())
    except (FileNotFoundError, SafetensorError):
        pass
    tensors = {name: tensor.contiguous() for name, tensor in make().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors))
    return tensors


def _shaping(config: DataConfig) -> tuple:
    """What of the configuration decides how samples look."""
    return (
        config.worlds,
        config.frames,
        config.captures,
        config.segments,
        config.observed,
        config.no_memory,
        config.holes,
    )
