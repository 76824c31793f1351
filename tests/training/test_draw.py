"""Which samples a step takes."""

from collections import Counter
from itertools import islice

import pytest

from evoworld.training.draw import Batches, draw

REUSE = 3


def test_samples_come_into_use_evenly_and_are_used_evenly_in_the_end():
    seen = set()
    for step in range(100):
        seen.update(draw(7, step, batch=4, total=1000, reuse=REUSE))
        assert seen == set(range(4 * (step // REUSE + 1)))  # none is left out, none is early
    counts = Counter(number for step in range(1000) for number in draw(7, step, 4, total=10, reuse=REUSE))
    assert counts.keys() == set(range(10)) and min(counts.values()) > 300


def test_a_step_is_a_function_of_its_number_and_the_seed():
    steps = [[draw(seed, step, 2, 50, REUSE) for step in range(30)] for seed in (1, 1, 2)]
    assert steps[0] == steps[1] != steps[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_start_anywhere_and_workers_change_nothing(workers):
    batches = Batches(range(0, 300, 3), lambda step: draw(0, step, 2, 100, REUSE), workers, sum)
    wanted = [3 * sum(draw(0, step, 2, 100, REUSE)) for step in range(5, 9)]
    assert list(islice(batches.starting_at(5), 4)) == wanted
