import subprocess
import sys

import pytest
import torch

from evoworld.data import CachedWalks, ProceduralWalks

WALKS = ProceduralWalks("train", height=8, num_frames=3, num_walks=4)


class Counted:
    """Walks that count how often each is made."""

    identity = "counted"

    def __init__(self):
        self.made = []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.made.append(index)
        return WALKS[index]


def files(cached):
    return sorted(cached.folder.iterdir())


def test_a_walk_is_made_once_and_nearly_what_it_was(tmp_path):
    source = Counted()
    for _ in range(2):
        walk = CachedWalks(source, tmp_path)[1]
    assert source.made == [1]
    original = WALKS[1]
    assert (walk.image - original.image).abs().max() <= 0.5 / 255 + 1e-6
    torch.testing.assert_close(walk.depth, original.depth, rtol=6e-4, atol=1e-6)
    assert walk.camera_to_world.equal(original.camera_to_world) and walk.object_id.equal(original.object_id)
    assert walk.captions == original.captions and walk.name == original.name
    assert walk.image.dtype == walk.depth.dtype == torch.float32


def test_the_first_and_later_readings_are_equal(tmp_path):
    first, later = (CachedWalks(WALKS, tmp_path)[2] for _ in range(2))
    assert first.image.equal(later.image) and first.depth.equal(later.depth)


def test_a_damaged_file_is_made_again(tmp_path):
    source = Counted()
    cached = CachedWalks(source, tmp_path)
    expected = cached[0].image
    (path,) = files(cached)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:200] + bytes(100) + whole[300:]):
        path.write_bytes(damaged)
        assert cached[0].image.equal(expected)
    assert source.made == [0, 0, 0, 0] and files(cached) == [path]


def test_what_fails_leaves_no_file(tmp_path):
    class Failing(Counted):
        def __getitem__(self, index):
            raise RuntimeError("out of worlds")

    cached = CachedWalks(Failing(), tmp_path)
    with pytest.raises(RuntimeError, match="out of worlds"):
        cached[0]
    assert files(cached) == []


def test_other_walks_have_another_folder(tmp_path):
    first, second = CachedWalks(WALKS, tmp_path), CachedWalks(ProceduralWalks("test", 8, 3, 4), tmp_path)
    assert first.folder != second.folder
    assert not first[0].image.equal(second[0].image)


def test_depth_that_is_unknown_stays_unknown(tmp_path):
    class WithoutDepth(Counted):
        def __getitem__(self, index):
            walk = WALKS[index]
            return type(walk)(walk.image, None, walk.camera_to_world, walk.captions, walk.name)

    walk = CachedWalks(WithoutDepth(), tmp_path)[0]
    assert walk.depth is None and walk.object_id is None


def test_walks_that_do_not_say_what_they_depend_on_are_refused(tmp_path):
    with pytest.raises(ValueError, match="walks: expected an identity .* got none in list"):
        CachedWalks([WALKS[0]], tmp_path)


def test_ends(tmp_path):
    cached = CachedWalks(WALKS, tmp_path)
    assert len(cached) == 4 and cached[-1].name == cached[3].name
    with pytest.raises(IndexError, match="walk 4 of 4"):
        cached[4]


PROGRAM = """
import sys
from evoworld.data import CachedWalks, ProceduralWalks
walks = CachedWalks(ProceduralWalks("train", height=8, num_frames=3, num_walks=4), sys.argv[1])
print(sum(float(walk.image.sum()) for walk in walks))
"""


def test_processes_may_share_a_folder(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = {process.communicate(timeout=300)[0] for process in processes}
    assert len(sums) == 1 and all(process.returncode == 0 for process in processes)
    cached = CachedWalks(WALKS, tmp_path)
    assert len(files(cached)) == 4 and sums == {f"{sum(float(walk.image.sum()) for walk in cached)}\n"}
