"""What samples are planned to be, and how walks are varied without becoming another world."""

import math
from collections import Counter

import pytest
import torch

from evoworld.data.walk import Walk, level_poses
from evoworld.geometry import Panorama
from evoworld.training.config import DataConfig
from evoworld.training.plan import MODES, known_mask, plan_segment, vary, wedge_mask

CONFIG = DataConfig(segments=600)


def plans(config=CONFIG, lengths=(24, 10, 4)):
    return [plan_segment(i, 0, list(lengths), 4, 128, config) for i in range(600)]


def test_modes_and_holes_come_in_their_shares():
    modes = Counter(plan.mode for plan in plans())
    assert modes.keys() == {*MODES, "memory"}
    assert 0.14 < sum(modes[mode] for mode in MODES) / 600 < 0.26
    with_memory = [plan for plan in plans() if plan.mode == "memory"]
    assert all(plan.observed for plan in with_memory) and not any(p.observed for p in plans() if p.mode != "memory")
    wedges = [plan.wedge for plan in with_memory if plan.wedge]
    assert 0.3 < len(wedges) / len(with_memory) < 0.55  # 0.6 have large holes, of which some are places far away
    assert all(57 <= count * 360 / 128 <= 183 for _, count in wedges)


def test_frames_are_of_the_walk_and_evenly_spaced():
    for plan, length in ((plan, (24, 10, 4)[plan.walk]) for plan in plans()):
        assert all(0 <= frame < length for frame in plan.target + plan.observed)
        steps = {b - a for a, b in zip(plan.target, plan.target[1:])}
        assert len(steps) == 1 and abs(steps.pop()) in (1, 2)
        assert len(plan.observed) <= CONFIG.observed
    assert {plan.walk for plan in plans()} == {0, 1, 2}
    assert plans()[17] == plans()[17] != plan_segment(17, 1, [24, 10, 4], 4, 128, CONFIG)


def test_a_walk_shorter_than_a_segment_stands_still():
    assert all(plan.target == (0, 0, 0, 0) for plan in plans(lengths=(1,)))


def coloured_points(walk: Walk):
    """Where the pixels of all frames lie, relative to the first camera."""
    origins, directions = Panorama(walk.height, 2 * walk.height).rays(walk.camera_to_world)
    points = origins + directions * walk.depth.flatten(1)[..., None]
    return (points - walk.camera_to_world[0, :3, 3]).flatten(0, 1)


def make_walk():
    generator = torch.Generator().manual_seed(3)
    position = torch.randn(3, 3, generator=generator)
    depth = 1 + torch.rand(3, 8, 16, generator=generator)
    image = torch.rand(3, 8, 16, 3, generator=generator)
    return Walk(image, depth, level_poses(position, 0.7), ("a", "b", "c"), "walk")


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("columns", [0, 5])
def test_what_is_varied_is_still_one_world(mirror, columns):
    walk = make_walk()
    plan = next(plan for plan in plans() if plan.mode == "memory")
    neutral = type(plan)(**{**vars(plan), "mirror": mirror, "columns": columns, "colour": (1.0, 1.0, 1.0, 1.0, 1.0)})
    varied = vary(walk, neutral)
    before, after = coloured_points(walk), coloured_points(varied)
    order = torch.arange(before.shape[0]).view(3, 8, 16)
    order = (order.flip(-1) if mirror else order).roll(columns, -1).flatten()
    before = before[order]
    assert (torch.cdist(before, before) - torch.cdist(after, after)).abs().max() < 2e-3
    assert (before[:, 2] - after[:, 2]).abs().max() < 1e-5  # up stays up
    assert torch.allclose(varied.image.flatten(0, 2), walk.image.flatten(0, 2)[order], atol=1e-6)
    # The sign of the volume tells a mirror image from a turned one.
    volumes = [torch.linalg.det(points[[3, 200, 340]]) for points in (before, after)]
    assert volumes[0] * volumes[1] * (-1 if mirror else 1) > 0


def test_masks():
    camera = Panorama(16, 32)
    for plan in plans():
        known, kept = known_mask(plan, camera), wedge_mask(plan, 32)
        if plan.mode == "text":
            assert not known.any()
        elif plan.mode == "depth":
            assert known[..., 0].all() and not known[..., 1].any()
        elif plan.mode == "panorama":
            assert known[0, ..., 0].all() and not known[1:].any() and known[0, ..., 1].all() == plan.known_depth
        elif plan.mode == "photo":
            across = plan.photo[1]
            share = known[0, ..., 0].float().mean()
            assert 0 < share < 0.5 and not known[..., 1].any() and not known[1:].any()
            widest = known[0, ..., 0].any(0).sum() / 32 * 2 * math.pi
            assert widest == pytest.approx(2 * math.atan(across), abs=2 * 2 * math.pi / 32)
        wide = plan_segment(0, 0, [24], 4, 32, CONFIG)
        assert wide.wedge is None or (~wedge_mask(wide, 32)).sum() == wide.wedge[1]
        assert plan.wedge is not None or kept.all()
