import pytest
import torch

from evoworld.data import ProceduralWalks


def test_an_index_gives_the_same_walk_always():
    first, again = (ProceduralWalks("train", height=8, num_frames=3, num_walks=n)[4] for n in (5, 9))
    assert first.image.equal(again.image) and first.depth.equal(again.depth)
    assert first.captions == again.captions and first.name == again.name
    assert first.image.shape == (3, 8, 16, 3) and first.object_id.shape == (3, 8, 16)
    assert all(first.captions) and first.image.dtype == first.depth.dtype == torch.float32


def test_splits_share_no_world():
    seeds = [{ProceduralWalks(split).world(i).seed for i in range(6)} for split in ("train", "validation", "test")]
    assert len(set.union(*seeds)) == 18


def test_there_are_apartments_and_courtyards_and_walks_of_every_kind():
    walks = ProceduralWalks("train", height=4, num_frames=1, num_walks=14)
    assert {walks.world(i).kind for i in range(14)} == {"apartment", "courtyard"}
    assert {walk.name.split("-")[2] for walk in walks} == {"straight", "curve", "loop", "out_and_back"}


def test_kinds_can_be_chosen():
    walks = ProceduralWalks("test", height=4, num_frames=5, kinds=("loop",))
    for i in range(3):
        assert walks[i].name.endswith("loop")
        assert walks[i].camera_to_world[0].equal(walks[i].camera_to_world[-1])


def test_ends():
    walks = ProceduralWalks("train", height=4, num_frames=1, num_walks=3)
    assert len(walks) == 3 and walks[-1].name == walks[2].name
    for index in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            walks[index]


def test_the_identity_tells_what_differs():
    default = ProceduralWalks()
    others = [
        ProceduralWalks("test"),
        ProceduralWalks(height=32),
        ProceduralWalks(num_frames=8),
        ProceduralWalks(kinds=("loop",)),
    ]
    assert len({walks.identity for walks in (default, *others)}) == 5
    assert ProceduralWalks(num_walks=7).identity == default.identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "holdout"}, "split: expected one of train, validation, test, got 'holdout'"),
        ({"height": 0}, "height: expected at least 1"),
        ({"num_frames": 0}, "num_frames: expected at least 1"),
        ({"num_walks": 0}, "num_walks: expected at least 1"),
        ({"kinds": ("loop", "look_around")}, "kinds: expected of .*, got 'look_around'"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        ProceduralWalks(**change)
