"""How often the host waits for a GPU while a memory observes and is queried, and that masks do what picking does."""

import sys
import traceback

import pytest
import torch
from box_world import CAMERA, box_frame, box_walk
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from evoworld.geometry import cameras, waiting
from evoworld.ops import available
from evoworld.world import Memory

GPU = torch.device("cuda", 0)

# Operations after which the host knows something that only the device could tell it.
WAITING = {
    "aten::_local_scalar_dense",  # item(), int(), float(), bool()
    "aten::equal",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::unique_dim",
    "aten::unique_dim_consecutive",
    "evoworld::missing_bricks",  # their number
}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class OnGpu(torch.Tensor):
    """A tensor of the pretended GPU; `inner` holds its values."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        outer = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",  # for torch's own code, which would look for the driver
        )
        outer.inner = inner
        return outer

    @property
    def device(self) -> torch.device:
        return GPU

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func}: a tensor of the pretended GPU is only for use inside `with PretendGpu()`")


class PretendGpu(TorchDispatchMode):
    """Inside the block tensors can be moved to and made on device "cuda"; `waits` lists where the host waited.

    As on a GPU, an operation on tensors of both devices is an error, but for a number (0 dimensions) on the CPU. So is
    torch.tensor(..., device="cuda"), which waits on a GPU and passes this class by.
    """

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __enter__(self):
        self._lazy_init, torch.cuda._lazy_init = torch.cuda._lazy_init, lambda: None  # torch wakes the device first
        return super().__enter__()

    def __exit__(self, *error):
        torch.cuda._lazy_init = self._lazy_init
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        on_gpu = [x for x in tensors if isinstance(x, OnGpu)]
        device = kwargs.get("device")
        device = None if device is None else torch.device(device)
        if not on_gpu and (device is None or device.type == "cpu"):
            return func(*args, **kwargs)
        strangers = [x for x in tensors if not isinstance(x, OnGpu) and x.ndim > 0]
        if on_gpu and strangers and name != "aten::copy_":
            raise RuntimeError(f"{name}: expected all tensors on one device, got cuda and cpu")
        to_cpu = name == "aten::_to_copy" and bool(on_gpu) and device is not None and device.type == "cpu"
        if self._host_waits(name, args, kwargs, strangers, to_cpu, bool(on_gpu)):
            self.waits.append(f"{name} at\n" + "".join(traceback.format_stack(limit=8)[:-1]))
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        inner = {id(x.inner): x for x in on_gpu}
        outcome = func(*_unwrapped(args), **_unwrapped(kwargs))
        return outcome if to_cpu else tree_map(lambda x: _wrapped(x, inner), outcome)

    @staticmethod
    def _host_waits(name, args, kwargs, strangers, to_cpu: bool, from_gpu: bool) -> bool:
        if name in INDEXING:
            return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name == "aten::_to_copy":
            return to_cpu or (not from_gpu and not kwargs.get("non_blocking", False))
        if name == "aten::copy_":
            return bool(strangers)
        return name in WAITING


def _unwrapped(tree):
    return tree_map(lambda x: x.inner if isinstance(x, OnGpu) else x, tree)


def _wrapped(x, known: dict[int, OnGpu]):
    if not isinstance(x, torch.Tensor):
        return x
    return known[id(x)] if id(x) in known else OnGpu(x)  # an operation in place gives back its argument


pytestmark = pytest.mark.skipif(available("volume_render")["cpu"] is not None, reason="no native CPU library")

VOXEL = 0.1
FRAMES = box_walk(4)
SKY_ROWS = 6  # of 32


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU that runs the native kernels."""
    for op in ("volume_render", "voxel_scatter", "sparse_grid"):
        monkeypatch.setattr(sys.modules[f"evoworld.ops.{op}"], "select", lambda *_: "cuda")
    tables = (cameras._directions, cameras._ray_lengths, cameras._solid_angle)
    with PretendGpu() as device:
        yield device
    for table in tables:
        table.cache_clear()


def frame(pose):
    """The inside of a box without a lid, so that there is sky too."""
    features, depth = box_frame(pose).image.clone(), box_frame(pose).depth.clone()
    depth[:SKY_ROWS] = 0.0
    return features, depth


def observe(memory, pose, shift=0.0):
    """Observes the box as it is seen from a pose, the whole of it moved by `shift` metres along every axis."""
    features, depth = frame(pose)
    features = features.repeat(1, 1, 2)[..., : memory.config.feature_dim].to(memory.device, non_blocking=True)
    depth = depth.to(memory.device, non_blocking=True)
    pose = pose.clone()
    pose[:3, 3] += shift
    memory.observe(features, depth, pose, CAMERA)


def waits_of(device, action):
    before = len(device.waits)
    action()
    return device.waits[before:]


def test_the_pretended_gpu_notes_each_kind_of_wait():
    with PretendGpu() as device:
        x = torch.arange(6.0).to(GPU, non_blocking=True)
        assert isinstance(x, OnGpu) and x.device == GPU and not device.waits
        y = torch.where(x > 2, x, 0.0)[torch.tensor([0, 3]).to(GPU, non_blocking=True)]
        assert not device.waits and y.device == GPU
        for action in (
            y.tolist,
            y.cpu,
            lambda: y[0].item(),
            lambda: bool(y.sum() > 0),
            lambda: y[y > 1],
            y.nonzero,
            y.unique,
            lambda: torch.arange(3).to(GPU),
        ):
            assert len(waits_of(device, action)) == 1
        with pytest.raises(RuntimeError, match="one device"):
            y + torch.ones(2)
    assert y.inner.tolist() == [0.0, 3.0]


def test_observe_waits_once_and_once_a_level(gpu):
    """Once to look at the frame, once a level for the number of new bricks; and while it grows, for its tables."""
    memory = Memory(VOXEL, device=GPU)
    first = waits_of(gpu, lambda: observe(memory, FRAMES[0]))
    assert all(level.grid.num_bricks > 0 for level in memory.levels)
    assert len(first) <= 1 + 3 * len(memory.levels), "".join(first)
    again = waits_of(gpu, lambda: observe(memory, FRAMES[0]))
    assert len(again) == 1 + len(memory.levels), "".join(again)

    pages = [level.grid.pages.shape[0] for level in memory.levels]
    grown = waits_of(gpu, lambda: observe(memory, FRAMES[0], shift=20.0))
    assert all(level.grid.pages.shape[0] > before for level, before in zip(memory.levels, pages, strict=True))
    assert len(grown) <= 1 + 3 * len(memory.levels), "".join(grown)


def test_a_level_that_takes_nothing_is_not_waited_for(gpu):
    memory = Memory(VOXEL, device=GPU)
    features, depth = frame(FRAMES[0])
    depth[:] = 0.0
    features, depth = features.to(GPU), depth.to(GPU)
    noted = waits_of(gpu, lambda: memory.observe(features, depth, FRAMES[0], CAMERA))
    assert len(noted) == 1, "".join(noted)  # the look at the frame
    assert memory.num_voxels == 0


def test_a_query_never_waits(gpu):
    memory = Memory(VOXEL, device=GPU)
    assert not waits_of(gpu, lambda: memory.query(CAMERA, FRAMES[0]))
    for pose in FRAMES[:2]:
        observe(memory, pose)
    noted = waits_of(gpu, lambda: memory.query(CAMERA, FRAMES[3]))
    assert not noted, "".join(noted)
    there = FRAMES[3].to(GPU, non_blocking=True)
    assert len(waits_of(gpu, lambda: memory.query(CAMERA, there))) == 1  # the pose is looked at


@pytest.mark.parametrize("channels", [3, 5])
def test_masking_gives_what_picking_gives(gpu, channels):
    """The memory of the pretended GPU, which masks rays and pads rows, and one on the CPU, which does not, agree."""
    picking, masking = Memory(VOXEL, channels), Memory(VOXEL, channels, device=GPU)
    assert masking.levels[0].padding == {3: 0, 5: 2}[channels] and picking.levels[0].padding == 0
    for pose in FRAMES:
        observe(picking, pose)
        observe(masking, pose)
    for one, other in zip(picking.levels, masking.levels, strict=True):
        assert one.grid.num_bricks > 0
        for name in ("brick_coordinates", "directory", "pages"):
            assert torch.equal(getattr(one.grid, name), getattr(other.grid, name).cpu()), name
        assert (one.reach, one.dense_reach) == (other.reach, other.dense_reach)
        for name, tensor in one.tensors().items():
            assert torch.allclose(tensor, other.tensors()[name].cpu(), atol=1e-6), name
    if channels == 5:  # as a file brings it back
        for level in masking.levels:
            kept = {name: tensor.clone() for name, tensor in level.tensors().items()}
            level.restore(kept, level.reach, level.dense_reach)
    expected = picking.query(CAMERA, FRAMES[3])
    for name, one, other in zip(expected._fields, expected, masking.query(CAMERA, FRAMES[3]), strict=True):
        assert torch.allclose(one, other.cpu(), atol=1e-4), name
    assert (expected.visibility > 0.9).float().mean() > 0.9


@pytest.mark.parametrize("broken", ["features", "pose"])
def test_a_frame_that_is_refused_changes_nothing(gpu, broken):
    memory = Memory(VOXEL, device=GPU)
    observe(memory, FRAMES[0])
    before = [t.cpu().clone() for level in memory.levels for t in level.tensors().values()]
    features, depth = frame(FRAMES[1])
    pose = 2 * FRAMES[1] if broken == "pose" else FRAMES[1]
    if broken == "features":
        features[3, 4, 1] = float("nan")
    with pytest.raises(ValueError, match={"features": "features: expected finite", "pose": "not rigid"}[broken]):
        memory.observe(features.to(GPU), depth.to(GPU), pose, CAMERA)
    after = [t.cpu() for level in memory.levels for t in level.tensors().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) and memory.poses.shape[0] == 1


def test_a_fit_that_masks_goes_where_one_that_picks_goes(monkeypatch):
    """The rays that are masked, whose origins are NaN, leave no trace in the gradients."""
    frames = [(*frame(pose), pose, CAMERA) for pose in FRAMES[:1]]
    memories = [Memory(VOXEL) for _ in range(2)]
    for memory, picks in zip(memories, (True, False), strict=True):
        monkeypatch.setattr(waiting, "sizes_are_free", lambda device, picks=picks: picks)
        for one in frames:
            memory.observe(*one)
        memory.fit(frames, 1)
    for one, other in zip(*(memory.levels for memory in memories), strict=True):
        assert torch.allclose(one.sums, other.sums, atol=1e-5)
        assert torch.allclose(one.surface_distance(), other.surface_distance(), atol=1e-3)
