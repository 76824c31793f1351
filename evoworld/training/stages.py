"""The stages of training: what each learns, from which samples, by which loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from evoworld.world.autoencoder import Autoencoder, reconstruction_loss
from evoworld.world.condition import Condition
from evoworld.world.flow import add_noise, consistency_loss, flow_loss, sample, sample_time
from evoworld.world.memory_loss import Reconstruction
from evoworld.world.memory_loss import reconstruction_loss as memory_loss
from evoworld.world.model import WorldModel
from evoworld.world.rgbd import encode_rgbd

from .config import AutoencoderStageConfig, FlowStageConfig, StageConfig, TrainConfig
from .data import TrainingData
from .previews import preview_sheet
from .samples import Batch, FeatureSamples, MemorySamples, MixedSamples, observed_frames
from .segments import Stored, unpacked

FEATURES = "features"  # folder of the run in which the learned memory's are kept

Random = list[torch.Generator]  # one for each sample: what a sample draws does not depend on what is beside it


class Objective(nn.Module):
    """What a stage minimises. The part of the model that it trains has the name that it has there.

    ``forward(batch, random)`` gives the parts of the loss and their sum, ``loss``; with ``preview`` a picture instead.
    """

    def forward(self, batch: Batch, random: Random, preview: bool = False) -> dict[str, Tensor] | Tensor:
        return self.picture(batch) if preview else self.losses(batch, random)

    def losses(self, batch: Batch, random: Random) -> dict[str, Tensor]:
        raise NotImplementedError

    def picture(self, batch: Batch) -> Tensor:  # [h, w, 3]
        raise NotImplementedError


class AutoencoderObjective(Objective):
    """Panoramas come out as they went in; and what is known and visible is kept where the latents are not exact.

    Latents that were generated are wrong, most where nothing was visible. For the decoder's skip they are therefore
    mixed, each sample by a random share, with those of the filled frames, and noise is added.
    """

    def __init__(self, model: WorldModel, config: AutoencoderStageConfig):
        super().__init__()
        self.autoencoder, self.config = model.autoencoder, config

    def losses(self, batch: Batch, random: Random) -> dict[str, Tensor]:
        autoencoder, target = self.autoencoder, unpacked("target", batch)
        condition = condition_of(batch)
        has_depth = batch["has_depth"].view(-1, 1, 1, 1).expand(target.shape[:-1])
        counts = torch.stack((torch.ones_like(has_depth), has_depth), -1)
        parts = autoencoder.loss(target, known=counts)
        filled, seen = condition.filled(), condition.seen()
        refined = autoencoder.refiner(self.degraded(target, filled, random), filled, seen)
        parts["refined"] = reconstruction_loss(refined, target, counts)
        return with_sum(parts)

    @torch.no_grad()
    def degraded(
        self,
        target: Tensor,  # [B, T, H, W, 4]
        filled: Tensor,  # [B, T, H, W, 4]
        random: Random,
    ) -> Tensor:  # [B, T, H, W, 4]
        """What decoding latents that are not exact may give."""
        autoencoder = self.autoencoder
        latents, base = autoencoder.encode(target), autoencoder.encode(filled)
        share, level = (drawn(torch.rand, random, (1,), like=latents).view(-1, 1, 1, 1, 1) for _ in range(2))
        noise = noise_of(autoencoder, random, latents)
        return autoencoder.draft(torch.lerp(latents, base, share) + self.config.latent_noise * level * noise)

    def picture(self, batch: Batch) -> Tensor:  # [h, w, 3]
        target, condition = unpacked("target", batch), condition_of(batch)
        draft = self.autoencoder.decode(self.autoencoder.encode(target))
        generators = [torch.Generator().manual_seed(i) for i in range(len(target))]
        filled = condition.filled()
        rough = self.degraded(target, filled, generators)
        refined = self.autoencoder.refiner(rough, filled, condition.seen())
        return preview_sheet([x for i in range(len(target)) for x in (target[i], draft[i], rough[i], refined[i])])


class MemoryObjective(Objective):
    """The learned memory renders frames at poses that it has not seen, and proposes what lies beyond the edge."""

    def __init__(self, model: WorldModel):
        super().__init__()
        self.memory_encoder = model.memory_encoder

    def reconstructions(self, batch: Batch) -> Iterator[Reconstruction]:
        """What a new memory of each sample's frames shows of its targets."""
        encoder = self.memory_encoder
        for rgbd, known, poses, targets in zip(*observed_frames(batch), batch["target_pose"], strict=True):
            memory = encoder.new_memory()
            encoder.update(memory, rgbd, poses, known)
            yield encoder.reconstruct(encoder.generate(memory, targets), targets)

    def losses(self, batch: Batch, random: Random) -> dict[str, Tensor]:
        target, parts = unpacked("target", batch), {}
        for i, reconstruction in enumerate(self.reconstructions(batch)):
            for name, value in memory_loss(reconstruction, target[i]).items():
                parts[name] = parts.get(name, 0.0) + value / len(target)
        return with_sum(parts)

    def picture(self, batch: Batch) -> Tensor:  # [h, w, 3]
        rows, seen = [], []
        for target, (image, depth, opacity) in zip(unpacked("target", batch), self.reconstructions(batch), strict=True):
            cell = target.shape[1] // image.shape[1]
            shown = encode_rgbd(0.5 * image + 0.5, depth)
            rows += [target, shown.repeat_interleave(cell, 1).repeat_interleave(cell, 2)]
            seen += [None, opacity.repeat_interleave(cell, 1).repeat_interleave(cell, 2)]
        return preview_sheet(rows, seen)


class FlowObjective(Objective):
    """Rectified flow: from noisy latents and the condition the Panorama DiT predicts the clean latents."""

    def __init__(self, model: WorldModel, config: FlowStageConfig):
        super().__init__()
        self.dit, self.config = model.dit, config
        self._model = (model,)  # a tuple: not a module of this one

    def condition(self, batch: Batch) -> Condition:
        """The condition of a batch, with its words."""
        words, mask = self._model[0].encode_text(batch["words"])
        features = batch.get("features")
        features = None if features is None else features.float()
        return replace(condition_of(batch), text=words, text_mask=mask, features=features)

    def losses(self, batch: Batch, random: Random) -> dict[str, Tensor]:
        model = self._model[0]
        target = unpacked("target", batch)
        condition = self.dropped(self.condition(batch), random)
        filled = condition.filled()
        with torch.no_grad():
            latents, base = model.autoencoder.encode(target), model.autoencoder.encode(filled)
        time = torch.cat([sample_time(1, generator) for generator in random]).to(latents)
        noise = noise_of(model.autoencoder, random, latents)
        context = self.dit.context(condition, filled, base)
        predicted = self.dit(add_noise(latents, noise, time), time, context)
        parts = {"flow": flow_loss(predicted, latents)}
        if self.config.consistency:
            frames = model.decode(predicted, condition, filled)
            weight = self.config.consistency
            parts["consistency"] = weight * consistency_loss(frames, condition.memory, condition.visibility)
        losses = with_sum(parts)
        with torch.no_grad():  # the error of the prediction without a network, which is to be beaten
            losses["base"] = flow_loss(base, latents)
        return losses

    def dropped(self, condition: Condition, random: Random) -> Condition:
        """The condition without the words of some samples, and without the memory of some."""
        chance = drawn(torch.rand, random, (2,), like=condition.position)
        words, memory = (chance >= chance.new_tensor((self.config.drop_text, self.config.drop_memory))).unbind(-1)
        kept = memory.to(condition.visibility).view(-1, 1, 1, 1)
        features = condition.features
        return replace(
            condition,
            text_mask=condition.text_mask & words[:, None],
            visibility=condition.visibility * kept,
            features=None if features is None else features * kept[..., None],
        )

    def picture(self, batch: Batch) -> Tensor:  # [h, w, 3]
        model = self._model[0]
        target, condition = unpacked("target", batch), self.condition(batch)
        made = sample(model, condition, generator=torch.Generator().manual_seed(0))
        filled, rows, seen = condition.filled(), [], []
        for i in range(len(target)):
            rows += [target[i], condition.memory[i], filled[i], made[i]]
            seen += [None, condition.visibility[i], None, None]
        return preview_sheet(rows, seen)


@dataclass(frozen=True)
class Stage:
    """A stage: what is trained, from which samples."""

    name: str
    config: StageConfig
    objective: Objective
    samples: Sequence[Stored]
    held_out: Sequence[Stored]  # that it is looked at with


def make_stage(name: str, config: TrainConfig, model: WorldModel, data: TrainingData) -> Stage:
    """The stage of a name, of a model in which all else stays as it is.

    Raises:
        ValueError: the model has no such part to train.
    """
    part = getattr(model, {"autoencoder": "autoencoder", "memory": "memory_encoder", "flow": "dit"}[name])
    if part is None:
        raise ValueError(f"{name}: expected a model with this part; leave the stage out with --{name}.steps 0")
    trained = [p for p in part.parameters() if p.requires_grad]  # not what is someone else's
    model.requires_grad_(False).eval()
    for parameter in trained:
        parameter.requires_grad_(True)
    part.train()
    settings, segments, held_out = getattr(config, name), data.segments(), data.held_out()
    if name == "autoencoder":
        samples = MixedSamples(segments, data.photos(), settings.photos), MixedSamples(held_out, None, 0.0)
        return Stage(name, settings, AutoencoderObjective(model, settings), *samples)
    if name == "memory":
        return Stage(name, settings, MemoryObjective(model), MemorySamples(segments), MemorySamples(held_out))
    samples = segments, held_out
    learned = config.lasts("memory") or config.weights  # not the new weights of a memory that nobody trained
    if model.memory_encoder is not None and model.config.uses_memory and learned:
        samples = (FeatureSamples(x, copy.deepcopy(model.memory_encoder), Path(config.out) / FEATURES) for x in samples)
    return Stage(name, settings, FlowObjective(model, settings), *samples)


def condition_of(batch: Batch) -> Condition:
    """The condition of a batch of segments, without words."""
    known_mask, nothing = batch["known"].float(), batch["position"].new_zeros(len(batch["position"]), 0, 1)
    return Condition(
        known=unpacked("target", batch),
        known_mask=known_mask,
        memory=unpacked("memory", batch),
        visibility=batch["visibility"].float() / 255,
        position=batch["position"],
        text=nothing,
        text_mask=nothing[..., 0] > 0,
    )


def drawn(draw: Callable[..., Tensor], random: Random, shape: Sequence[int], like: Tensor) -> Tensor:  # [B, ...]
    """Random numbers for each sample out of its own generator, whatever device they are for."""
    return torch.stack([draw(*shape, generator=generator) for generator in random]).to(like)


def noise_of(autoencoder: Autoencoder, random: Random, latents: Tensor) -> Tensor:  # [B, T, h, w, C]
    """Noise for the latents of each sample out of its own generator."""
    return torch.stack([autoencoder.noise(latents.shape[1:], generator) for generator in random]).to(latents)


def with_sum(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts of a loss, and `loss`, what is minimised."""
    return {"loss": sum(parts.values())} | parts
