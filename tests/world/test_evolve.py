"""Worlds that grow along a walk."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from box_world import CAMERA, box_frame, box_walk
from tiny_world import tiny_model

import evoworld.world.evolve as evolve
from evoworld.apps.trajectories import level_pose
from evoworld.geometry import rotate_panorama
from evoworld.world import Memory, WorldError
from evoworld.world.autoencoder import AutoencoderConfig
from evoworld.world.dit import DiTConfig
from evoworld.world.evolve import World, level
from evoworld.world.memory_encoder import MemoryEncoderConfig
from evoworld.world.model import WorldModel, WorldModelConfig


class Painter:
    """A model that knows the box: true frames where nothing is visible, what is remembered elsewhere."""

    def __init__(self, num_frames=2, error=0.0):
        self.config = SimpleNamespace(height=32, num_frames=num_frames, voxel_size=0.1, uses_memory=True)
        self.error, self.conditions, self.prompts = error, [], []

    def encode_text(self, prompts):
        self.prompts += prompts
        return torch.ones(len(prompts), 3, 8), torch.ones(len(prompts), 3, dtype=torch.bool)

    def sample(self, condition, generator, colour=0.0):
        self.conditions.append(condition)
        new = torch.full_like(condition.memory, colour)
        new[..., :3] += self.error * torch.randn(new[..., :3].shape, generator=generator)
        return torch.where(condition.visibility[..., None] > 0.5, condition.memory, new)


class Wordsmith(Painter):
    """Wants to be asked otherwise where words are all there is."""

    from_words = {"steps": 6, "colour": 0.3}  # noqa: RUF012

    def sample(self, condition, generator, steps=2, colour=0.0):
        self.steps = [*getattr(self, "steps", []), (steps, colour)]
        return super().sample(condition, generator, colour)


def line(num_frames, step=0.1):
    places = torch.zeros(num_frames, 3)
    places[:, 0] = step * torch.arange(num_frames)
    return level_pose(places, torch.full((num_frames,), 0.3))


def loop(num_frames=6):
    walk = box_walk(num_frames)
    walk[:, :3, :3] = walk[0, :3, :3]
    return torch.cat((walk, walk[:1]))


def psnr(image, target):
    return -10 * math.log10((image - target).square().mean().clamp_min(1e-12))


def test_without_a_network_the_walk_comes_back_to_what_it_began_with():
    path = loop()
    frame = box_frame(path[0])
    world = World(height=32)
    world.start(image=frame.image, depth=frame.depth)
    frames = list(world.walk(path))
    assert len(frames) == 7 and torch.equal(frames[0].image, frame.image)
    assert psnr(frames[-1].image, frames[0].image) > 33
    truths = [box_frame(pose) for pose in path]
    assert all(psnr(f.image, truth.image) > 25 for f, truth in zip(frames, truths, strict=True))
    ratios = torch.stack([f.depth / truth.depth for f, truth in zip(frames, truths, strict=True)])
    assert (ratios.log().abs() < math.log(1.25)).float().mean() > 0.95
    assert (frames[0].visibility == 0).all() and frames[-1].visibility.min() > 0.5


def test_frames_turn_as_the_path_does():
    """A tilted, turned camera is given what the level one saw, resampled; the memory is the same."""
    path = line(2)
    tilted = path.clone()
    tilted[1] = level_pose(tilted[1, :3, 3], torch.tensor(1.3), 0.4)
    frame = box_frame(path[0])
    results = []
    for way in (path, tilted):
        world = World(height=32)
        world.start(image=frame.image, depth=frame.depth)
        results.append((list(world.walk(way)), world.memory))
    (straight, memory), (turned, other) = results
    rotation = path[1, :3, :3].T @ tilted[1, :3, :3]
    assert torch.allclose(turned[1].image, rotate_panorama(straight[1].image, rotation), atol=1e-5)
    assert torch.equal(turned[1].camera_to_world, tilted[1])
    truth = box_frame(tilted[1])
    assert psnr(turned[1].image, truth.image) > 25 and (turned[1].depth / truth.depth - 1).abs().mean() < 0.05
    assert torch.equal(memory.surfels.rows, other.surfels.rows)


def test_words_alone_are_sampled_as_the_model_wants():
    """Its first segment alone: the second one sees the first; and never what the world was made with."""
    for options, first in (({}, (6, 0.3)), ({"colour": 0.5}, (6, 0.5))):
        model = Wordsmith()
        world = World(model, **options)
        world.start(prompt="a box")
        list(world.walk(line(4)))
        assert model.steps == [first, (2, options.get("colour", 0.0))]
    model = Wordsmith()
    world = World(model)
    world.start(prompt="a box", image=torch.rand(32, 64, 3))
    list(world.walk(line(1)))
    assert model.steps == [(2, 0.0)]


def test_a_world_model_wants_more_of_words_alone(monkeypatch):
    asked = []

    def sample(self, condition, generator=None, **options):
        asked.append(options)
        return condition.filled()

    monkeypatch.setattr(WorldModel, "sample", sample)
    world = World(tiny_model())
    world.start(prompt="a box")
    list(world.walk(line(4)))
    assert asked[0] == WorldModel.from_words and asked[0]["steps"] > 1 and not any(asked[1:])


def test_segments_are_made_together_and_remember_the_ones_before():
    model = Painter(num_frames=2)
    world = World(model, colour=0.5)
    world.start(prompt="a box")
    frames = list(world.walk(line(5)))
    assert len(frames) == 5 and model.prompts == ["a box"]
    assert [c.known.shape[1] for c in model.conditions] == [2, 2, 2]  # the last frame twice, of which one is kept
    assert torch.equal(*model.conditions[2].position[0])
    assert model.conditions[0].text.shape == (1, 3, 8)
    assert [c.visibility.mean() > 0.5 for c in model.conditions] == [False, True, True]
    assert torch.allclose(frames[0].image, torch.full((32, 64, 3), 0.75))
    assert torch.allclose(model.conditions[1].position[0, 1], model.conditions[0].position[0, 1], atol=1e-6)


def test_the_same_seed_makes_the_same_world():
    images = []
    for seed in (1, 1, 2):
        world = World(Painter(error=0.3))
        world.start(prompt="noise", seed=seed)
        images.append(torch.stack([frame.image for frame in world.walk(line(3))]))
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


def test_a_walk_broken_off_leaves_what_it_gave():
    world = World(Painter(num_frames=4, error=0.2))
    world.start(prompt="noise")
    walk = world.walk(line(4))
    first = next(walk)
    assert (world.memory.query(CAMERA, line(1)[0]).features - first.image).abs().mean() < 0.02
    assert len(world.memory.poses) == 1
    walk.close()
    again = next(world.walk(line(1)))
    assert torch.allclose(again.image, first.image, atol=5e-3) and again.visibility.min() > 0.5


def test_a_saved_world_goes_on(tmp_path):
    path, model = line(4), Painter(num_frames=1, error=0.2)
    world = World(model)
    world.start(prompt="noise")
    frames = list(world.walk(path))
    world.save(tmp_path / "w.safetensors")
    other = World(Painter(num_frames=1, error=0.2))
    other.start(world=tmp_path / "w.safetensors", seed=5)
    back = list(other.walk(path.flip(0)))
    assert all(psnr(x.image, y.image) > 33 for x, y in zip(frames, reversed(back), strict=True))


def test_a_world_that_nobody_walked_in_is_saved_with_its_beginning(tmp_path):
    frame, pose = box_frame(line(1)[0]), line(1)[0]
    world = World(height=32)
    world.start(image=frame.image, depth=frame.depth, camera_to_world=pose)
    world.save(tmp_path / "w.safetensors")
    view = Memory.load(tmp_path / "w.safetensors").query(CAMERA, pose)
    assert torch.allclose(view.features, frame.image, atol=5e-3)


def test_the_picture_may_be_taken_elsewhere():
    path, elsewhere = line(2), level_pose(torch.tensor([0.3, 0.2, 0.0]), torch.tensor(1.0))
    frame = box_frame(elsewhere)
    world = World(height=32)
    world.start(image=frame.image, depth=frame.depth, camera_to_world=elsewhere)
    frames = list(world.walk(path))
    assert len(frames) == 2 and psnr(frames[0].image, box_frame(path[0]).image) > 22
    assert torch.equal(world.memory.poses[0, :3, 3], elsewhere[:3, 3])


def test_a_photo_is_kept_where_it_lies():
    model = Painter(num_frames=2)
    world = World(model, colour=-1.0)
    world.start(image=torch.full((40, 60, 3), 0.8), fov=90.0, prompt="a photo")
    frame = next(world.walk(line(2)))
    assert torch.allclose(frame.image[16, 32], torch.full((3,), 0.8)) and (frame.image[16, 0] == 0).all()
    assert [c.known.shape[1] for c in model.conditions] == [2]
    next(world.walk(line(2)))
    assert model.conditions[1].known_mask.sum() == 0


@pytest.mark.parametrize("model", [None, Painter], ids=["fill", "model"])
def test_the_frames_after_what_is_given_know_it(model):
    """Whatever the length of a segment, the first one is no blind one."""
    path, frame, made = line(5), box_frame(line(1)[0]), []
    for num_frames in (1, 4):
        world = World(model and model(num_frames), height=32, num_frames=num_frames)
        world.start(image=frame.image, depth=frame.depth)
        made.append(list(world.walk(path)))
        assert len(made[-1]) == 5 and made[-1][1].visibility.mean() > 0.9
    assert psnr(made[0][1].image, made[1][1].image) > 40
    assert psnr(made[1][1].image, box_frame(path[1]).image) > 25


def test_a_model_that_was_trained_without_memory_is_shown_none():
    model = Painter(num_frames=1)
    model.config.uses_memory = False
    world = World(model)
    world.start(prompt="a box")
    frames = list(world.walk(line(2)))
    assert model.conditions[1].visibility.max() == 0 and frames[1].visibility.mean() > 0.5


def seen_box(height=32):
    """A memory of the box from the beginning of the line, and how it looks from there."""
    frame, world = box_frame(line(1)[0]), World(height=height)
    world.start(image=frame.image, depth=frame.depth)
    next(world.walk(line(1)))
    return world.memory, frame


def test_a_picture_on_top_of_a_world_lies_where_the_walk_begins():
    """In the direction of the path, whatever that of the frames that the world was made from."""
    memory, _ = seen_box()
    pose = level_pose(torch.tensor([30.0, 0.0, 0.0]), torch.tensor(1.7))
    image = torch.rand(32, 64, 3, generator=torch.Generator().manual_seed(0))
    world = World(height=32)
    world.start(image=image, depth=torch.full((32, 64), 2.0), world=memory)
    assert torch.allclose(next(world.walk(pose[None])).image, image, atol=1e-5)


def test_a_picture_of_a_place_that_is_remembered_is_refused():
    memory, frame = seen_box()
    other, points = World(height=32), memory.surfels.rows.shape[0]
    with pytest.raises(ValueError, match="begin elsewhere"):
        other.start(image=frame.image.flip(0), world=memory, camera_to_world=line(1)[0])
    photo = {"image": torch.rand(40, 60, 3), "fov": 90.0}
    for given in ({"image": frame.image.flip(0)}, photo):
        other.start(**given, world=memory)
        with pytest.raises(ValueError, match="begin elsewhere"):
            other.walk(line(1))
    assert memory.surfels.rows.shape[0] == points


def test_a_world_goes_on_with_its_words(tmp_path):
    model = Painter()
    world = World(model)
    world.start(prompt="a red box")
    next(world.walk(line(1)))
    world.save(tmp_path / "w.safetensors")
    for prompt, expected in (("", "a red box"), ("a blue box", "a blue box")):
        other = Painter()
        goes_on = World(other)
        goes_on.start(world=tmp_path / "w.safetensors", prompt=prompt)
        assert other.prompts == [expected] and goes_on.memory.prompt == expected


def test_a_world_without_a_network_lives_on_the_device_asked_for():
    world = World.load("none", device="meta")
    assert world.device.type == world.memory.device.type == "meta"
    with pytest.raises(ValueError, match="world: expected a memory on meta, got one on cpu"):
        world.start(world=Memory(0.1))


def test_depth_may_be_an_array_of_numpy():
    world = World(height=16)
    world.start(image=torch.rand(16, 32, 3), depth=np.full((16, 32), 2.0))
    assert torch.allclose(next(world.walk(line(1))).depth, torch.full((16, 32), 2.0), atol=1e-3)


@pytest.mark.parametrize("sizes", [{"height": 1}, {"height": 0}, {"height": 8.0}, {"num_frames": 0}])
def test_a_size_that_no_world_has_is_refused(sizes):
    with pytest.raises(ValueError, match="expected a whole number of at least"):
        World(**sizes)


def test_odd_heights_work():
    world = World(height=7)
    world.start(image=torch.rand(40, 60, 3), fov=90.0)
    assert len(list(world.walk(line(3)))) == 3


def test_time_and_memory_do_not_grow_with_the_frames():
    world = World(height=16, voxel_size=0.2)
    world.start(image=torch.rand(16, 32, 3), depth=torch.full((16, 32), 2.0))
    path = loop(5)[:-1]
    list(world.walk(path.repeat(2, 1, 1)))
    before = world.memory.nbytes, len(world.memory.poses)
    list(world.walk(path.repeat(4, 1, 1)))
    assert world.memory.nbytes <= 1.05 * before[0] and len(world.memory.poses) <= before[1] + 4


def test_level_keeps_the_heading():
    for yaw, pitch in ((0.3, 0.5), (-2.0, -1.2), (1.0, math.pi / 2), (1.0, -math.pi / 2)):
        place = torch.tensor([1.0, 2.0, 3.0])
        tilted = level_pose(place, torch.tensor(yaw), pitch)
        assert torch.allclose(level(tilted), level_pose(place, torch.tensor(yaw)), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "expected a prompt, an image or a world"),
        ({"prompt": "  "}, "expected a prompt, an image or a world"),
        ({"prompt": "x" * 2001}, "prompt: expected at most 2000 characters"),
        ({"prompt": "x", "fov": 90.0}, "belong to an image"),
        ({"image": torch.rand(8, 8, 3)}, "twice as wide as high"),
        ({"image": torch.rand(8, 16, 4)}, r"image: expected floating point \[h, w, 3\]"),
        ({"image": torch.zeros(8, 16, 3, dtype=torch.uint8)}, "image: expected floating point"),
        ({"image": torch.full((8, 16, 3), math.nan)}, "image: expected finite"),
        ({"image": torch.rand(8, 16, 3), "depth": torch.rand(8, 8)}, "depth: expected"),
        ({"image": torch.rand(8, 8, 3), "fov": 200.0}, "fov: expected degrees"),
        ({"prompt": "x", "camera_to_world": torch.zeros(4, 4)}, "camera_to_world|rigid"),
        ({"world": Memory(0.1, feature_dim=5)}, "expected a memory of colours"),
        ({"world": 123}, "world: expected a memory or the path of a world file, got int"),
        ({"prompt": None, "image": torch.rand(8, 16, 3)}, "prompt: expected words, got None"),
        ({"image": torch.rand(8, 400, 3), "fov": 5.0}, "cover no pixel of a panorama of 16 x 32"),
        ({"prompt": "x", "camera_to_world": level_pose(torch.tensor([0.0, 2e4, 0.0]), torch.tensor(0.0))}, "within"),
    ],
)
def test_a_bad_beginning_is_refused_and_the_world_stays(given, words):
    world = World(height=16)
    world.start(image=torch.rand(16, 32, 3), depth=torch.ones(16, 32))
    memory = world.memory
    with pytest.raises(ValueError, match=words):
        world.start(**given)
    assert world.memory is memory and world._given is not None


@pytest.mark.parametrize(
    "path",
    [torch.zeros(0, 4, 4), torch.eye(4), torch.zeros(2, 4, 4), torch.full((1, 4, 4), math.nan), line(2, step=2e4)],
)
def test_a_bad_path_is_refused_before_the_walk(path):
    world = World(height=16)
    with pytest.raises(ValueError, match="path"):
        world.walk(path)


def test_models_are_found_by_name_and_by_file(tmp_path, monkeypatch):
    assert World.load("none", height=16).model is None
    with pytest.raises(
        FileNotFoundError, match="nowhere: expected a file of weights, .* or one of tiny, none .*, got neither"
    ):
        World.load("nowhere")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not a model")
    monkeypatch.setattr(evolve, "WEIGHTS", tmp_path)
    for name in ("damaged", damaged):
        with pytest.raises(ValueError, match="damaged.safetensors"):
            World.load(name)
    with pytest.raises(WorldError, match="damaged.safetensors"):
        World(height=16).start(world=damaged)


def test_a_world_model_makes_a_world_that_its_learned_memory_follows(tmp_path):
    """Untrained it fills in what it is not shown; saved, loaded and gone on from, the memory is looked at again."""
    dit = DiTConfig(latent_channels=8, dim=32, num_heads=2, depth=1, feature_dim=16)
    parts = AutoencoderConfig(latent_channels=8, dim=8), dit, MemoryEncoderConfig(height=16)
    torch.manual_seed(0)
    model = WorldModel(WorldModelConfig(16, 2, *parts, text="none")).eval()
    world = World(model, steps=2)
    world.start(image=torch.rand(16, 32, 3), depth=torch.ones(16, 32))
    frames = list(world.walk(line(3)))
    assert len(frames) == 3 and all(torch.isfinite(f.image).all() and (f.depth >= 0).all() for f in frames)
    bricks = world._features.grid.num_bricks
    assert bricks > 0
    world.save(tmp_path / "w.safetensors")
    other = World(model, steps=2)
    other.start(world=tmp_path / "w.safetensors")
    assert other._features.grid.num_bricks > bricks / 2
    assert next(other.walk(line(1))).visibility.mean() > 0.9
