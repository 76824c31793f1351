"""The learned memory in a room: what is written where, what is proposed, gradients from end to end, and turns."""

import math
from dataclasses import replace

import pytest
import torch

from evoworld.data.walk import level_poses
from evoworld.geometry import Panorama
from evoworld.world.memory_encoder import MemoryEncoder, MemoryEncoderConfig
from evoworld.world.memory_loss import reconstruction_loss
from evoworld.world.memory_networks import MAX_EVIDENCE
from evoworld.world.rgbd import decode_rgbd, encode_rgbd

CONFIG = MemoryEncoderConfig(
    height=16, voxel_size=0.4, frame_dim=8, frame_blocks=1, voxel_dim=8, brick_dim=16, brick_blocks=1
)
SIZE = torch.tensor([4.1, 3.3, 2.5])  # metres, of the room; its first corner at -0.7 of it
EYES = torch.tensor([[0.03, 0.11, -0.31], [0.61, -0.52, -0.27], [-1.07, 0.33, -0.3], [-0.2, -0.9, -0.33]])


def frame_of(pose, height=CONFIG.height):
    """RGB-D of a room with coloured walls and stripes, float64."""
    pose = pose.double()
    origins, directions = Panorama(height, 2 * height).rays(pose)
    low = -0.7 * SIZE.double()
    distances = torch.where(directions > 0, low + SIZE - origins, low - origins) / directions
    depth = distances.amin(-1)
    point = (origins + depth[:, None] * directions - low) / SIZE
    colours = 0.2 + 0.6 * point + 0.15 * torch.sin(9 * point.roll(1, -1))
    return encode_rgbd(colours.clamp(0, 1), depth).view(height, 2 * height, 4)


def frames(eyes=EYES, yaw=0.0, dtype=torch.float32):
    poses = level_poses(eyes.double(), yaw)
    return torch.stack([frame_of(pose) for pose in poses]).to(dtype), poses.to(dtype)


def encoder(dtype=torch.float32, config=CONFIG):
    """An encoder whose layers that start at zero do not."""
    torch.manual_seed(0)
    model = MemoryEncoder(config).to(dtype)
    torch.nn.init.normal_(model.proposal.leave.weight, std=0.05)
    return model


def test_surfaces_are_written_and_nothing_else():
    model, (rgbd, poses) = encoder(), frames()
    memory = model.new_memory()
    model.update(memory, rgbd[:2], poses[:2])
    place = memory.grid.voxel_positions()
    outside = ((place < -0.7 * SIZE - 2 * 0.4) | (place > 0.3 * SIZE + 2 * 0.4)).any(-1)
    deep = ((place > -0.7 * SIZE + 3 * 0.4) & (place < 0.3 * SIZE - 3 * 0.4)).all(-1)
    assert memory.evidence[outside | deep].abs().max() == 0
    assert memory.values[memory.evidence == 0].abs().max() == 0
    assert (memory.evidence > 0).sum() > 200
    assert memory.passed.lookup(torch.tensor([0, 0, 0])) >= 0  # the middle of the room
    view = model.query(memory, poses[2:])
    assert view.features.shape == (2, 4, 8, CONFIG.feature_dim)
    assert view.depth.shape == view.opacity.shape == (2, 4, 8)
    assert view.opacity.min() > 0.5


def test_frames_that_say_nothing_change_nothing():
    model, (rgbd, poses) = encoder(), frames()
    memory = model.new_memory()
    model.update(memory, rgbd, poses, torch.zeros(rgbd.shape[:3]))
    assert (memory.grid.num_bricks, memory.passed.num_bricks) == (0, 0)
    sky = encode_rgbd(torch.rand(1, 16, 32, 3), torch.zeros(1, 16, 32))
    model.update(memory, sky, poses[:1])
    assert memory.grid.num_bricks == 0 and memory.passed.num_bricks > 100
    assert model.query(memory, poses).features.abs().max() == 0
    model.update(memory, rgbd[:1], poses[:1])
    before = memory.values
    model.update(memory, rgbd[:0], poses[:0])
    assert torch.equal(memory.values, before)


def test_an_update_changes_only_the_places_it_sees():
    model, (rgbd, poses) = encoder(), frames()
    memory = model.new_memory()
    model.update(memory, rgbd[:2], poses[:2])
    values, evidence = memory.values, memory.evidence
    half = torch.zeros(1, 16, 32)
    half[..., :16] = 1
    model.update(memory, rgbd[2:3], poses[2:3], half)
    seen = (memory.evidence[: len(evidence)] - evidence) > 0
    assert 0.1 < seen.double().mean() < 0.9 * (evidence > 0).double().mean()
    changed = (memory.values[: len(values)] - values).abs().amax(1) > 0
    assert torch.equal(changed, seen)


def test_what_was_seen_often_stays():
    model, (rgbd, poses) = encoder(), frames()
    memory, values, changes = model.new_memory(), [], []
    for _ in range(12):
        model.update(memory, rgbd[:1], poses[:1])
        values.append(memory.values)
        changes.append((values[-1] - values[-2]).norm() if len(values) > 1 else values[0].norm())
    assert all(later < 0.25 * changes[0] for later in changes[6:])
    assert memory.values.abs().max() < 2 * values[0].abs().max()  # a mean, not a sum
    assert memory.evidence.max() <= MAX_EVIDENCE


def test_more_frames_than_a_group_are_written_one_group_after_another():
    model, (rgbd, poses) = encoder(config=replace(CONFIG, group=2)), frames()
    at_once, in_turn = model.new_memory(), model.new_memory()
    model.update(at_once, rgbd[:3], poses[:3])
    for part in (slice(0, 2), slice(2, 3)):
        model.update(in_turn, rgbd[part], poses[part])
    torch.testing.assert_close(at_once.values, in_turn.values)
    torch.testing.assert_close(at_once.evidence, in_turn.evidence)


def test_far_surfaces_are_left_out():
    model, (rgbd, poses) = encoder(), frames()
    depth = decode_rgbd(rgbd[:1])[1]
    nearer = MemoryEncoder(replace(CONFIG, reach=float(depth.median())))
    all_of_it, near = model.new_memory(), nearer.new_memory()
    model.update(all_of_it, rgbd[:1], poses[:1])
    nearer.update(near, rgbd[:1], poses[:1])
    pixels = [memory.evidence.sum() for memory in (all_of_it, near)]
    assert 0.3 < pixels[1] / pixels[0] < 0.7


def test_proposals_are_new_unsure_and_kept_apart():
    model, (rgbd, poses) = encoder(), frames()
    known = torch.ones(1, 16, 32)
    known[..., 4:28] = 0
    memory = model.new_memory()
    model.update(memory, rgbd[:1], poses[:1], known)
    values, bricks = memory.values, memory.grid.num_bricks
    proposed = model.generate(memory, poses[:1])
    assert memory.values is values and memory.grid.num_bricks == bricks
    assert proposed.grid.num_bricks > bricks
    assert torch.equal(proposed.values[: len(values)], values)
    confidence = proposed.confidence()[len(values) :]
    torch.testing.assert_close(confidence, torch.full_like(confidence, 0.2))
    new = proposed.grid.brick_coordinates[bricks:]
    assert (memory.passed.lookup(new * 4) < 0).all()
    hidden = model.query(memory, poses[:1]).opacity[0, 2, 3:5]
    assert hidden.max() < 0.2  # the middle of what is unknown
    assert (model.query(proposed, poses[:1]).opacity[0, 2, 3:5] > hidden).all()


def test_proposals_start_transparent_and_learn_from_the_memory():
    torch.manual_seed(0)
    model, (rgbd, poses) = MemoryEncoder(CONFIG), frames()
    known = torch.ones(1, 16, 32)
    known[..., 4:28] = 0
    memory = model.new_memory()
    model.update(memory, rgbd[:1], poses[:1], known)
    proposed = model.generate(memory, poses[:1])
    assert proposed.values[len(memory.values) :, 1:].abs().max() == 0
    assert proposed.density()[len(memory.values) :].max() < 0.2  # a metre of it stops a sixth of the light
    other, (rgbd, poses) = encoder(torch.float64), frames(dtype=torch.float64)
    memory = other.new_memory()
    other.update(memory, rgbd[:1], poses[:1], known.double())
    memory.values = memory.values.detach().requires_grad_()
    other.generate(memory, poses[:1]).values[len(memory.values) :].sum().backward()
    assert memory.values.grad.abs().max() > 0


def test_an_empty_memory_has_no_frontier():
    model, (_, poses) = encoder(), frames()
    memory = model.new_memory()
    assert model.generate(memory, poses) is memory


@pytest.mark.parametrize("tokens", [1, 3])
def test_turning_the_camera_turns_what_it_shows(tokens):
    columns = tokens * CONFIG.token
    model = encoder(torch.float64)
    views = []
    for turn in (0, columns):
        rgbd, poses = frames(dtype=torch.float64, yaw=2 * math.pi * turn / 32)
        memory = model.new_memory()
        model.update(memory, rgbd[:2], poses[:2])
        model.update(memory, rgbd[2:3], poses[2:3])
        views.append(model.query(model.generate(memory, poses[2:]), poses[2:], min_transmittance=0.0))
    for still, turned in zip(*views):
        torch.testing.assert_close(turned, still.roll(tokens, 2), rtol=1e-6, atol=1e-6)


def test_gradients_from_end_to_end():
    """Autograd against central differences, along a random direction of each part's parameters and of the frames."""
    model, (rgbd, poses) = encoder(torch.float64), frames(dtype=torch.float64)
    known = torch.ones(2, 16, 32, dtype=torch.float64)
    known[..., 2:20] = 0
    rgbd.requires_grad_()

    def loss(rgbd):
        memory = model.new_memory()
        model.update(memory, rgbd[:1], poses[:1], known[:1])
        model.update(memory, rgbd[1:2], poses[1:2], known[1:])
        proposed = model.generate(memory, poses[2:3])
        view = model.query(proposed, poses[2:3], min_transmittance=0.0)
        parts = (*view, *model.reconstruct(proposed, poses[2:3]))
        return sum(part.square().mean() for part in parts)

    loss(rgbd).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    parts = {name: list(child.parameters()) for name, child in model.named_children()}
    for name, tensors in {**parts, "rgbd": [rgbd]}.items():
        torch.manual_seed(1)
        directions = [torch.randn_like(tensor) for tensor in tensors]
        slope = sum((tensor.grad * d).sum() for tensor, d in zip(tensors, directions))
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for tensor, d in zip(tensors, directions):
                    tensor += sign * 1e-7 * d
                values.append(loss(rgbd))
                for tensor, d in zip(tensors, directions):
                    tensor -= sign * 1e-7 * d
        torch.testing.assert_close((values[0] - values[1]) / 2e-7, slope, rtol=1e-4, atol=1e-6, msg=name)


def test_it_learns_a_room():
    model, (rgbd, poses) = encoder(), frames()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        memory = model.new_memory()
        model.update(memory, rgbd[:2], poses[:2])
        parts = reconstruction_loss(model.reconstruct(model.generate(memory, poses[2:]), poses[2:]), rgbd[2:])
        losses.append({name: part.item() for name, part in parts.items()})
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
    assert losses[-1]["image"] < 0.4 * losses[0]["image"]
    assert losses[-1]["depth"] < 0.5 * losses[0]["depth"]


def test_a_batch_is_its_worlds():
    model, (rgbd, poses) = encoder(), frames()
    frames_of_both = torch.stack((rgbd[:2], rgbd[1:3]))
    poses_of_both = torch.stack((poses[:2], poses[1:3]))
    targets = torch.stack((poses[3:], poses[:1]))
    views = model(frames_of_both, torch.ones(2, 2, 16, 32), poses_of_both, targets)
    assert views.features.shape == (2, 1, 4, 8, CONFIG.feature_dim)
    memory = model.new_memory()
    model.update(memory, rgbd[1:3], poses[1:3])
    for batch, alone in zip(views, model.query(model.generate(memory, poses[:1]), poses[:1])):
        torch.testing.assert_close(batch[1], alone)
    nothing = model(frames_of_both[:, :0], torch.ones(2, 0, 16, 32), poses_of_both[:, :0], targets)
    assert nothing.features.shape == views.features.shape and nothing.features.abs().max() == 0


def test_bad_input():
    model, (rgbd, poses) = encoder(), frames()
    memory = model.new_memory()
    with pytest.raises(ValueError, match=r"rgbd: expected \[1, 16, 32, 4\], got \[1, 8, 32, 4\]"):
        model.update(memory, rgbd[:1, :8], poses[:1])
    with pytest.raises(ValueError, match=r"camera_to_world: expected \[1, 4, 4\], got \[2, 4, 4\]"):
        model.update(memory, rgbd[:1], poses[:2])
    with pytest.raises(ValueError, match=r"known: expected \[1, 16, 32\], got \[16, 32\]"):
        model.update(memory, rgbd[:1], poses[:1], torch.ones(16, 32))
    assert memory.grid.num_bricks == 0
    with pytest.raises(ValueError, match="token: expected a divisor of the height 64"):
        MemoryEncoderConfig(token=6)
    with pytest.raises(ValueError, match="expected at least 4, multiples of 4, got"):
        MemoryEncoderConfig(frame_dim=10)
