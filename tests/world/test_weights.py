"""The weights that ship with the package: small, whole, trained, and worth more than filling holes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evoworld.data import ProceduralWalks
from evoworld.evaluation.holes import fill, make_hole, shown_to, words
from evoworld.world.configs import CONFIGS
from evoworld.world.evolve import WEIGHTS, World

pytest.importorskip("transformers")

MOST = 20e6  # bytes of all that ships


@pytest.fixture(scope="module")
def world():
    return World.load("tiny")


@pytest.fixture(scope="module")
def holes():
    walks = ProceduralWalks("test", 64, 24, 6, kinds=("curve",))
    return [make_hole("wedge", walks[index]) for index in range(len(walks))]


def test_what_ships_is_small_and_goes_into_the_package():
    files = sorted(WEIGHTS.iterdir())
    assert [file.name for file in files] == ["tiny.safetensors"]
    assert sum(file.stat().st_size for file in files) <= MOST
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"evoworld.world" = ["weights/*.safetensors"]' in project


def test_it_is_the_configuration_of_its_name_and_trained(world):
    assert world.model.config == CONFIGS["tiny"]
    assert all(tensor.isfinite().all() for tensor in world.model.state_dict().values())
    last = (world.model.dit.last, world.model.autoencoder.refiner.layers[-1])  # these start at zero
    assert all(layer.weight.abs().max() > 0 for layer in last)


def test_large_holes_are_nearer_to_the_truth_than_filled_ones(world, holes):
    """As it is sampled by default."""
    filled = [fill(hole, None, 0) for hole in holes]
    made = [fill(shown_to(hole, world.model), world.model, 0) for hole in holes]
    better = [after.psnr - before.psnr for before, after in zip(filled, made, strict=True)]
    assert sum(better) / len(better) > 0
    nearer = [after.abs_rel - before.abs_rel for before, after in zip(filled, made, strict=True)]
    assert sum(nearer) / len(nearer) < 0


def test_words_decide_what_is_made(world):
    world.start(prompt="a square, green hedges and white houses", seed=1)
    (square,) = world.walk(torch.eye(4)[None])
    world.start(prompt="a kitchen with a red floor and dark walls", seed=1)
    (kitchen,) = world.walk(torch.eye(4)[None])
    sky, ceiling = (frame.image[:8].mean((0, 1)) for frame in (square, kitchen))
    assert sky[2] > sky[0] and sky[2] - sky[0] > ceiling[2] - ceiling[0]  # blue
    assert square.depth[:8].median() > 1.5 * kitchen.depth[:8].median()


def test_the_caption_fits_better_than_another(world, holes):
    """Told what a frame shows, the flow's prediction is nearer to it than told of another."""
    model, other = world.model, {False: [], True: []}
    for index, hole in enumerate(holes):
        latents = model.autoencoder.encode(_frames(hole))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(index))
        for wrong in (False, True):
            caption = holes[(index + wrong) % len(holes)].truth.captions[0]
            text, mask = words(model, caption)
            condition = replace(shown_to(hole, model).condition.without_memory(), text=text, text_mask=mask)
            with torch.no_grad():
                predicted = model(0.3 * latents + 0.7 * noise, torch.tensor([0.3]), condition)
            other[wrong].append(float((predicted - latents).square().mean()))
    assert sum(other[False]) < sum(other[True])


def _frames(hole):
    from evoworld.world.rgbd import encode_rgbd

    return encode_rgbd(hole.truth.image, hole.truth.depth)[None]
