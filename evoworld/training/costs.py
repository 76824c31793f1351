"""What a training step will take, found out without taking it: parameters, memory, floating-point operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from evoworld.world.condition import Condition
from evoworld.world.flow import flow_loss
from evoworld.world.model import WorldModel, WorldModelConfig

PARTS = ("autoencoder", "memory_encoder", "dit")
COPIES = 5  # of a trained weight: itself, its average, its gradient and AdamW's two
MULTIPLES = 3  # of a forward's operations: the backward takes twice as many again
WORDS = 16  # tokens of the sentence that is counted


@dataclass(frozen=True)
class StepCosts:
    """Of one segment in a step of a stage, in single precision."""

    activation_bytes: int  # kept between forward and backward
    forward_flops: int

    @property
    def flops(self) -> int:
        """Forward and backward."""
        return MULTIPLES * self.forward_flops


@dataclass(frozen=True)
class Costs:
    """Of training a model."""

    parameters: dict[str, int]  # of each part
    state_bytes: int  # weights, and the DiT's average, gradients and optimiser's state, in single precision
    autoencoder: StepCosts
    flow: StepCosts

    def table(self, batches: dict[str, int]) -> list[tuple[str, str]]:
        """Names and values to print; `batches`: segments at a time in one process, of the stages."""
        rows = [(name, f"{count / 1e6:.2f} M parameters") for name, count in self.parameters.items()]
        rows.append(("in all", f"{sum(self.parameters.values()) / 1e6:.2f} M parameters"))
        rows.append(("weights, average, optimiser", f"{self.state_bytes / 1e9:.2f} GB"))
        for name, batch in batches.items():
            step: StepCosts = getattr(self, name)
            memory, work = batch * step.activation_bytes / 1e9, batch * step.flops / 1e12
            rows.append((f"{name}: {batch} segments", f"{memory:.2f} GB of activations, {work:.3f} TFLOPs"))
        return rows


def count_costs(config: WorldModelConfig, checkpointing: bool = False) -> Costs:
    """Runs the model's forward without numbers in it, and counts.

    Nothing of the model's size is allocated: any model can be counted on any machine. Multiplications of matrices,
    convolutions and attention count, two operations for each product.

    Example:
        >>> from evoworld.world.configs import CONFIGS
        >>> costs = count_costs(CONFIGS["tiny"])
        >>> sum(costs.parameters.values()) < 9_000_000, costs.flow.flops > costs.flow.forward_flops > 0
        (True, True)
    """
    config = replace(config, dit=replace(config.dit, checkpointing=checkpointing or config.dit.checkpointing))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = WorldModel(config)
        parts = {name: part for name in PARTS if (part := getattr(model, name)) is not None}
        parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        condition, base = _fake_inputs(config)
        images, seen = condition.known, condition.visibility

        def flow() -> Tensor:
            context = model.dit.context(condition, images, base)
            return flow_loss(model.dit(base, torch.zeros(1), context), base)

        autoencoder_costs = _count(model, lambda: sum(model.autoencoder.loss(images, images, seen).values()))
        flow_costs = _count(model, flow)
        trained = sum(p.nbytes for p in model.dit.parameters())
        frozen = sum(p.nbytes for p in model.parameters()) - trained
    return Costs(parameters, COPIES * trained + frozen, autoencoder_costs, flow_costs)


def _count(model: nn.Module, forward: Callable[[], Tensor]) -> StepCosts:
    kept: dict[int, Tensor] = {}
    own = {id(p) for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    counted = {
        torch.ops.evoworld.sphere_attention: _attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    }
    with (
        FlopCounterMode(display=False, custom_mapping=counted) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
    ):
        output = forward()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output  # only now may what it keeps be forgotten
    return StepCosts(size, counter.get_total_flops())


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_, **__) -> int:
    """Of shapes [B, N, L, D], [B, N, S, D], [B, N, S, Dv]."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[2] * (width + value[3])


def _fake_inputs(config: WorldModelConfig) -> tuple[Condition, Tensor]:
    """A condition of one segment and its latents."""
    frames, height, width, dit = config.num_frames, config.height, 2 * config.height, config.dit
    images = torch.zeros(1, frames, height, width, 4)
    features = None
    if dit.feature_dim:
        features = torch.zeros(1, frames, height // dit.token_size, width // dit.token_size, dit.feature_dim)
    condition = Condition(
        known=images,
        known_mask=images[..., :2],
        memory=images,
        visibility=images[..., 0],
        position=torch.zeros(1, frames, 3),
        text=torch.zeros(1, WORDS, dit.text_dim),
        text_mask=torch.ones(1, WORDS, dtype=torch.bool),
        features=features,
    )
    latent = dit.token_size // dit.patch_size
    return condition, torch.zeros(1, frames, height // latent, width // latent, dit.latent_channels)
