"""Samples: made from walks and memories, kept in files, turned into batches."""

import pickle
from dataclasses import replace

import pytest
import torch
from box_world import box_frame, box_walk
from small_training import HEIGHT, small_config

from evoworld.data import CaptureError, write_capture
from evoworld.data.walk import Walk
from evoworld.training.data import TrainingData
from evoworld.training.plan import MODES
from evoworld.training.previews import write_picture
from evoworld.training.samples import (
    FeatureSamples,
    MemorySamples,
    MixedSamples,
    PhotoSamples,
    collate,
    cut,
    observed_frames,
)
from evoworld.training.segments import unpacked
from evoworld.training.stages import condition_of
from evoworld.world.memory_encoder import MemoryEncoder
from evoworld.world.rgbd import decode_rgbd


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("segments"))
    return replace(config, data=replace(config.data, segments=12, no_memory=0.3))


@pytest.fixture(scope="module")
def segments(config):
    return TrainingData(config).segments()


def test_a_sample_is_the_same_made_or_read_and_a_damaged_file_is_made_again(config, segments):
    made = segments.make(segments.plan(5))
    first, read = segments[5], TrainingData(config).segments()[5]
    (file,) = segments.folder.rglob("00000005.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    for sample in (first, read, segments[5]):
        assert sample.keys() == made.keys()
        assert all(torch.equal(sample[name], made[name]) for name in made)
    other = replace(config.data, holes=0.1)
    assert TrainingData(replace(config, data=other)).segments().folder != segments.folder


def test_the_memory_shows_what_is_there(segments):
    close = 0
    for index in range(len(segments)):
        plan, batch = segments.plan(index), collate([segments[index]])
        visible = batch["visibility"][0] > 250
        if not plan.observed:
            assert plan.mode in MODES and not batch["visibility"].any()
            continue
        assert visible.float().mean() > 0.2
        target, memory = unpacked("target", batch)[0], unpacked("memory", batch)[0]
        close += (target - memory)[visible].abs().median() < 0.1
        if plan.wedge is not None:
            first, count = plan.wedge
            assert not visible.roll(-first, -1)[..., :count].any()
    assert close >= 5


def test_positions_are_those_that_the_frames_were_seen_from(segments):
    index = next(i for i in range(len(segments)) if segments.plan(i).observed)
    plan, sample = segments.plan(index), segments[index]
    _, target = segments.frames(plan)
    relative = target.camera_to_world[:1].inverse() @ target.camera_to_world
    assert torch.allclose(sample["position"], relative[:, :3, 3], atol=1e-5)
    walk = segments.walks[plan.walk].camera_to_world[list(plan.target), :3, 3]
    lengths = (walk - walk[:1]).norm(dim=-1)
    assert torch.allclose(sample["position"].norm(dim=-1), lengths, atol=1e-5) and lengths[-1] > 0.05


def test_conditions_hold_what_is_known(segments):
    batch = collate([segments[i] for i in range(len(segments))])
    condition = condition_of(batch)
    assert condition.known.shape == (12, 2, HEIGHT, 2 * HEIGHT, 4)
    filled, target = condition.filled(), unpacked("target", batch)
    known = condition.known_mask[..., 0] > 0.5
    assert known.any() and torch.equal(filled[..., :3][known], target[..., :3][known])
    assert batch["words"][0] and all(isinstance(words, str) for words in batch["words"])
    part = cut(batch, slice(3, 5))
    assert part["words"] == batch["words"][3:5] and torch.equal(part["visibility"], batch["visibility"][3:5])


def test_frames_for_the_learned_memory_know_what_was_removed(segments):
    samples = MemorySamples(segments)
    wedges = [i for i in range(len(segments)) if segments.plan(i).wedge is not None]
    indices = [*wedges[:2], 0]
    batch = collate([samples[i] for i in indices])
    rgbd, known, poses = observed_frames(batch)
    assert rgbd.shape[:2] == known.shape[:2] == poses.shape[:2]
    for row, index in enumerate(indices[:-1]):
        plan = segments.plan(index)
        count = len(plan.observed)
        assert not known[row, count:].any()  # filled up
        removed = 1 - known[row, :count].mean().item()
        assert removed == pytest.approx(plan.wedge[1] / (2 * HEIGHT), abs=0.25) and removed > 0
    assert torch.allclose(batch["target_pose"][:, 0, :3, 3], torch.zeros(len(indices), 3))


def test_features_are_kept_and_none_are_made_without_a_memory(config, segments, tmp_path):
    torch.manual_seed(0)
    encoder = MemoryEncoder(config.model.memory)
    samples = FeatureSamples(segments, encoder, tmp_path)
    with_memory = next(i for i in range(12) if segments.plan(i).observed)
    without = next(i for i in range(12) if not segments.plan(i).observed)
    features = samples[with_memory]["features"]
    assert features.shape == (2, HEIGHT // 4, HEIGHT // 2, config.model.memory.feature_dim) and features.any()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert torch.equal(samples[with_memory]["features"], features)
    assert not samples[without]["features"].any()
    with torch.no_grad():
        encoder.frame_encoder.requires_grad_(False)
        next(encoder.parameters()).add_(1.0)
    assert FeatureSamples(segments, encoder, tmp_path).folder != samples.folder


def test_photos_train_colours_alone(segments):
    image = torch.rand(1, HEIGHT, 2 * HEIGHT, 3, generator=torch.Generator().manual_seed(0))
    photos = PhotoSamples([Walk(image, None, torch.eye(4)[None] @ level(), ("",), "photo")], 2, seed=0)
    mixed = MixedSamples(segments, photos, 0.5)
    batch = collate([mixed[i] for i in range(12)])
    assert 2 <= batch["has_depth"].sum() <= 10
    for index in range(12):
        if not batch["has_depth"][index]:
            target = unpacked("target", collate([mixed[index]]))[0]
            assert not target[..., 3].any() and not torch.equal(target[0], target[1])
            assert (decode_rgbd(target)[0].mean() - image.mean()).abs() < 0.1
    assert all(torch.equal(mixed[4][name], mixed[4][name]) for name in mixed[4])


def test_photos_of_a_folder_are_read_once(config, tmp_path):
    image = torch.rand(24, 48, 3, generator=torch.Generator().manual_seed(0))
    write_picture(tmp_path / "photos" / "a.png", image)
    data = replace(config.data, folder=str(tmp_path / "data"), photos=str(tmp_path / "photos"))
    photos = TrainingData(replace(config, data=data)).photos()
    target = unpacked("target", collate([photos[3]]))
    assert target.shape == (1, 2, HEIGHT, 2 * HEIGHT, 4) and target[..., :3].std() > 0.1
    assert len(list((tmp_path / "data").rglob("*.npz"))) == 1


def test_processes_that_read_ahead_get_the_same_samples(config, segments, tmp_path):
    every = [MixedSamples(segments, None, 0.0), MemorySamples(segments)]
    every.append(FeatureSamples(segments, MemoryEncoder(config.model.memory), tmp_path))
    for samples in every:
        sent = pickle.loads(pickle.dumps(samples))
        assert all(torch.equal(sent[3][name], tensor) for name, tensor in samples[3].items())


def level():
    """The rotation of a level camera that looks along x."""
    return torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def test_captures_are_trained_on_as_worlds_are(config, tmp_path):
    frames = [box_frame(pose) for pose in box_walk(4)]
    write_capture(tmp_path / "box", frames[0].camera, frames)
    data = replace(config.data, folder=str(tmp_path / "data"), worlds=0, captures=(str(tmp_path / "box"),), frames=4)
    segments = TrainingData(replace(config, data=data)).segments()
    assert len(segments.walks) == 1 and segments[2]["target_colour"].shape == (2, HEIGHT, 2 * HEIGHT, 3)
    write_capture(tmp_path / "flat", frames[0].camera, [replace(frame, depth=None) for frame in frames])
    flat = replace(data, captures=(str(tmp_path / "flat"),))
    with pytest.raises(CaptureError, match=r"flat.*expected depth"):
        TrainingData(replace(config, data=flat)).segments()
