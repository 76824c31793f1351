"""Several processes that train together, started by torchrun: what they share, and how they agree."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # in the first process; nothing in the others
WHOLE_EVERYWHERE = StateDictOptions(full_state_dict=True)


class Processes:
    """The processes of a run, of which this is one; alone where torchrun did not start it.

    Args:
        device: where to train; empty: a GPU if there is one, of several the one of this process.

    Raises:
        ValueError: a device that torch does not know or that is not there.
    """

    def __init__(self, device: str = ""):
        self.rank, self.count = int(os.environ.get("RANK", 0)), process_count()
        self.device = _device(device, int(os.environ.get("LOCAL_RANK", 0)))
        self._started = self.count > 1 and not dist.is_initialized()
        if self._started:
            # What the processes agree on is on the CPU, whatever device trains.
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def agree(self, *values: float) -> list[float]:
        """The first process's values, in all of them."""
        if self.count == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.tolist()

    def mean(self, values: Tensor) -> Tensor:  # [K]
        """The mean of the values of all processes."""
        if self.count == 1:
            return values
        values = values.double().cpu()
        dist.all_reduce(values)
        return values / self.count

    def share(self, numbers: list[int]) -> list[int]:
        """This process's part of a batch.

        Raises:
            ValueError: a batch that cannot be split evenly.
        """
        if len(numbers) % self.count:
            raise ValueError(f"batch: expected a multiple of the {self.count} processes, got {len(numbers)}")
        each = len(numbers) // self.count
        return numbers[self.rank * each : (self.rank + 1) * each]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def wrap(self, objective: nn.Module, sharding: str) -> nn.Module:
        """The objective such that its gradients are those of all processes' samples.

        `ddp`: each process has all weights. `fsdp`: each has a part of each block's (Zhao et al. 2023; FSDP2).
        """
        if self.count == 1:
            return objective
        if sharding == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (self.count,))
            for module in objective.modules():
                for block in module if isinstance(module, nn.ModuleList) else ():
                    if any(True for _ in block.parameters()):
                        fully_shard(block, mesh=mesh)
            return fully_shard(objective, mesh=mesh)
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Weights that a batch does not need, such as those of words where none are given, have no gradient.
        return nn.parallel.DistributedDataParallel(objective, ids, find_unused_parameters=True)

    def close(self) -> None:
        if self._started:
            dist.destroy_process_group()


def whole_state(wrapped: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights, their average and the optimiser's state by name, whole and on the CPU; all processes must ask."""
    tensors = {f"weights.{name}": tensor for name, tensor in get_model_state_dict(wrapped, options=WHOLE).items()}
    for name, tensor in average.items():
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        tensors[f"average.{name}"] = whole.detach().cpu()
    if not optimizer.state:  # no step was taken; torch would give the state after an empty one
        return tensors
    for name, state in get_optimizer_state_dict(wrapped, optimizer, options=WHOLE).get("state", {}).items():
        tensors |= {f"optimizer.{kind}.{name}": torch.as_tensor(value) for kind, value in state.items()}
    return tensors


def restore_state(
    wrapped: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], tensors: dict[str, Tensor]
) -> None:
    """Takes over what `whole_state` gave, whatever number of processes and sharding it came from."""
    set_model_state_dict(wrapped, _named(tensors, "weights."), options=WHOLE_EVERYWHERE)
    for name, mine in average.items():
        mine.copy_(_like(tensors[f"average.{name}"], mine))
    loaded: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _named(tensors, "optimizer.").items():
        kind, _, name = key.partition(".")
        loaded.setdefault(name, {})[kind] = tensor
    if not loaded:
        return
    state: dict[str, Any] = get_optimizer_state_dict(wrapped, optimizer, options=WHOLE_EVERYWHERE)
    set_optimizer_state_dict(wrapped, optimizer, state | {"state": loaded}, options=WHOLE_EVERYWHERE)


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _like(tensor: Tensor, mine: Tensor) -> Tensor:
    """The tensor on the device of another one, and split as it is."""
    tensor = tensor.to(mine.device)
    if not hasattr(mine, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, mine.device_mesh, mine.placements)


def _device(name: str, local_rank: int) -> torch.device:
    if not name:
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected a name such as cpu or cuda:0, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected one that is there, got {name!r}, and torch sees no GPU")
    return torch.device("cuda", local_rank) if device == torch.device("cuda") else device


def process_count() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this is the process that speaks, of those that torchrun started."""
    return int(os.environ.get("RANK", 0)) == 0
