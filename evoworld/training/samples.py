"""What the stages take: samples of segments, of frames with poses, and of photos; and how they become batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from evoworld.data.walk import Walk
from evoworld.geometry import Panorama, rotate_panorama, rotation_from_quaternion
from evoworld.world.memory_encoder import MemoryEncoder
from evoworld.world.rgbd import encode_rgbd

from .plan import SegmentPlan
from .segments import Segments, Stored, kept, packed, unpacked

Batch = dict[str, Tensor | list[str]]  # samples, stacked; words as they are


class MemorySamples(Sequence[Stored]):
    """The frames that a segment's memory is made of and those it is to show, with poses: what the memory learns from.

    ``observed_*`` and ``observed_pose`` [S, 4, 4], ``observed_known`` [S, H, W] (0 where the frame says nothing), and
    ``target_*``, ``target_pose`` [T, 4, 4]; in metres from the first target.
    """

    def __init__(self, segments: Segments):
        self.segments = segments

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: int) -> Stored:
        plan = self.segments.plan(index)
        observed, target = self.segments.frames(plan)
        origin = target.camera_to_world[0, :3, 3]
        known = _known(observed, target, plan)
        sample = {
            **packed("observed", encode_rgbd(observed.image, observed.depth)),
            "observed_known": known.to(torch.uint8),
            "observed_pose": _from(observed, origin),
            **packed("target", encode_rgbd(target.image, target.depth)),
            "target_pose": _from(target, origin),
        }
        return {name: tensor.cpu() for name, tensor in sample.items()}


class FeatureSamples(Sequence[Stored]):
    """Segments with what the learned memory shows of the same frames, ``features`` [T, h, w, F]; kept in a folder.

    Args:
        segments: the samples.
        encoder: trained; goes to where the segments are made.
        folder: of the run: the features are of its encoder alone.
    """

    def __init__(self, segments: Segments, encoder: MemoryEncoder, folder: Path):
        self.segments, self.frames = segments, MemorySamples(segments)
        self.encoder = encoder.eval().to(segments.device)
        weights = hashlib.sha256()
        for tensor in encoder.state_dict().values():
            weights.update(tensor.cpu().contiguous().numpy().tobytes())
        self.folder = folder / f"{segments.folder.name}-{weights.hexdigest()[:12]}"

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: int) -> Stored:
        path = self.folder / f"{index // 1000:05d}" / f"{index:08d}.safetensors"
        return self.segments[index] | kept(path, lambda: {"features": self._features(index)})

    @torch.no_grad()
    def _features(self, index: int) -> Tensor:  # [T, h, w, F]
        sample = self.frames[index]
        if not self.segments.plan(index).observed:
            sample["observed_known"].zero_()
        batch = moved(collate([sample]), self.segments.device)
        view = self.encoder(*observed_frames(batch), batch["target_pose"])
        return view.features[0].half().cpu()


class PhotoSamples(Sequence[Stored]):
    """Photos without depth as samples of T frames, each a photo turned any way; a function of the number.

    Args:
        photos: panoramas, as walks of one frame.
        num_frames: T.
        seed: of the run.
    """

    def __init__(self, photos: Sequence[Walk], num_frames: int, seed: int):
        self.photos, self.num_frames, self.seed = photos, num_frames, seed

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Stored:
        random = Random(f"photo {self.seed} {index}")
        frames = []
        for _ in range(self.num_frames):
            image = random.choice(self.photos).image[0]
            turn = torch.tensor([random.gauss(0, 1) for _ in range(4)])
            image = rotate_panorama(image, rotation_from_quaternion(turn / turn.norm()))
            frames.append(image.flip(-2) if random.random() < 0.5 else image)
        image = torch.stack(frames).clamp(0, 1)
        shape = image.shape[:-1]
        target = torch.cat((2 * image - 1, image.new_zeros(*shape, 1)), -1)  # depth in the middle: not known
        return {
            **packed("target", target),
            **packed("memory", torch.zeros_like(target)),
            "visibility": torch.zeros(shape, dtype=torch.uint8),
            "known": torch.zeros(*shape, 2, dtype=torch.uint8),
            "position": torch.zeros(self.num_frames, 3),
            "words": torch.zeros(1, dtype=torch.uint8),
            "has_depth": torch.zeros(()),
        }


class MixedSamples(Sequence[Stored]):
    """Segments, a share of them replaced by photos; ``has_depth`` [] says which they are."""

    def __init__(self, segments: Segments, photos: PhotoSamples | None, share: float):
        self.segments, self.photos, self.share = segments, photos, share

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: int) -> Stored:
        if self.photos is not None and Random(f"mixed {index}").random() < self.share:
            return self.photos[index]
        return self.segments[index] | {"has_depth": torch.ones(())}


def collate(samples: list[Stored]) -> Batch:
    """Stacks samples; frames observed are filled up with such as say nothing to the most that one has."""
    batch: Batch = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name == "words":
            batch[name] = [value.numpy().tobytes().decode().strip("\0 ") for value in values]
            continue
        if name.startswith("observed"):
            most = max(len(value) for value in values)
            values = [torch.cat((value, _blank(name, value, most - len(value)))) for value in values]
        batch[name] = torch.stack(values)
    return batch


def cut(batch: Batch, part: slice) -> Batch:
    """Some samples of a batch."""
    return {name: values[part] for name, values in batch.items()}


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return {name: x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for name, x in batch.items()}


def observed_frames(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:  # [B, S, H, W, 4], [B, S, H, W], [B, S, 4, 4]
    """The frames observed, what of them is known, and their poses, as a `MemoryEncoder` takes them."""
    return unpacked("observed", batch), batch["observed_known"].float(), batch["observed_pose"]


def _blank(name: str, like: Tensor, count: int) -> Tensor:
    """Frames that say nothing, at a pose that is one."""
    return (
        like[:1].expand(count, *like.shape[1:]) if name == "observed_pose" else like.new_zeros(count, *like.shape[1:])
    )


def _from(walk: Walk, origin: Tensor) -> Tensor:  # [T, 4, 4]
    poses = walk.camera_to_world.clone()
    poses[:, :3, 3] -= origin
    return poses


def _known(observed: Walk, target: Walk, plan: SegmentPlan) -> Tensor:  # [S, H, W] bool
    """What of the frames does not lie in the wedge that is removed, as seen from the first target."""
    shape = observed.image.shape[:3]
    if plan.wedge is None:
        return torch.ones(shape, dtype=torch.bool)
    first, count = plan.wedge
    height, width = shape[1:]
    origins, directions = Panorama(height, width).rays(observed.camera_to_world)  # [S, H W, 3]
    distance = torch.where(observed.depth > 0, observed.depth, 1e3).flatten(1)
    points = origins + distance[..., None] * directions - target.camera_to_world[0, :3, 3]
    x, _, z = (points @ target.camera_to_world[0, :3, :3]).unbind(-1)
    column = (torch.atan2(x, z) / (2 * torch.pi) + 0.5) * width
    return (((column - first) % width) >= count).view(shape)
