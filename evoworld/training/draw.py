"""Which samples a step takes: a function of the step alone, so that a run that was killed goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

from torch.utils.data import DataLoader, Dataset


def draw(
    seed: int,
    step: int,
    batch: int,
    total: int,
    reuse: int,
) -> list[int]:
    """The numbers of the samples of a step.

    Every reuse-th step takes samples that none has been before, until all are known; the others take any of those. So
    the making of samples is spread evenly over the steps, a short run makes no more than it can use, and processes that
    share a batch make as many each.

    Args:
        seed: of the run and the stage.
        step: from 0.
        batch: samples in all processes together.
        total: how many samples there are.
        reuse: how often a sample is used, on average, before another is made.

    Example:
        >>> [draw(0, step, batch=2, total=3, reuse=2) for step in (0, 2, 4)]
        [[0, 1], [2, 0], [1, 1]]
    """
    fresh = step // reuse * batch
    if step % reuse == 0 and fresh < total:
        return [place % total for place in range(fresh, fresh + batch)]
    random = Random(f"draw {seed} {step}")
    return [random.randrange(min(fresh + batch, total)) for _ in range(batch)]


class Batches:
    """The samples of one step after another, for one of several processes; read ahead by `workers` processes.

    Args:
        samples: by their numbers.
        numbers_of: step -> the numbers that this process takes.
        workers: processes that make them; 0: this one does, when they are asked for.
        collate: what a list of samples becomes.

    Example:
        >>> batches = Batches(range(100, 200), lambda step: [step, 2 * step])
        >>> from itertools import islice
        >>> list(islice(batches.starting_at(3), 2))
        [[103, 106], [104, 108]]
    """

    def __init__(
        self,
        samples: Sequence[Any],
        numbers_of: Callable[[int], list[int]],
        workers: int = 0,
        collate: Callable[[list[Any]], Any] = list,
    ):
        self.samples, self.numbers_of, self.workers, self.collate = samples, numbers_of, workers, collate

    def starting_at(self, step: int) -> Iterator[Any]:
        """The batches from that of a step on, without end."""
        if self.workers == 0:
            while True:
                yield self.collate([self.samples[number] for number in self.numbers_of(step)])
                step += 1
        yield from DataLoader(
            _Samples(self.samples),
            batch_sampler=_Steps(self.numbers_of, step),
            num_workers=self.workers,
            collate_fn=self.collate,
            prefetch_factor=4,
            multiprocessing_context="spawn",  # a fork of a process with threads may hang
        )


class _Samples(Dataset):
    def __init__(self, samples: Sequence[Any]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> Any:
        return self.samples[number]


class _Steps:
    def __init__(self, numbers_of: Callable[[int], list[int]], step: int):
        self.numbers_of, self.step = numbers_of, step

    def __iter__(self) -> Iterator[list[int]]:
        step = self.step
        while True:
            yield self.numbers_of(step)
            step += 1
