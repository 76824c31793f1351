"""voxel_scatter: forward against Warp, Numba and the PyTorch reference, and backward against forward."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness import Check, Contestant, Row, Target, compare, inputs_beyond_cache, ratio
from benchmarks.inputs import Rays, panorama_rays
from evoworld import ops, reference
from evoworld.data import Capture

HEIGHTS = (256, 512)
# Sums of up to thousands of float32 terms in another order.
TOLERANCE = 1e-4
MULTIPLY_ADD = 2
WARP_TARGET, REFERENCE_TARGET, BACKWARD_TARGET = 5.0, 30.0, 2.0
LEAVES = ("features", "depth", "origins", "directions")
GRADIENTS = {"backward, all gradients": len(LEAVES), "backward, features": 1}


def run(capture: Capture, repeats: int, missing: list[str], heights: Sequence[int] = HEIGHTS):
    """Rows and targets for one capture; the frames rotate, each with the grid of its own points."""
    rows: list[Row] = []
    targets: list[Target] = []
    for height in heights:
        first = panorama_rays(capture[0], height)
        count = inputs_beyond_cache(first.nbytes, len(capture))
        inputs = [first] + [panorama_rays(capture[i * len(capture) // count], height) for i in range(1, count)]
        case = f"voxel_scatter {height}x{2 * height}"
        found = compare_all(case, [Prepared(rays) for rays in inputs], repeats, missing)
        rows += found.values()
        for peer, limit, note in (
            ("Warp CPU", WARP_TARGET, ""),
            ("Warp CPU, vectors", 1.0, "the fastest Warp kernel that we know how to write"),
            ("PyTorch reference", REFERENCE_TARGET, ""),
        ):
            claim = f"{case} forward: {peer} / ours"
            targets.append(Target(claim, ratio(found, peer, "evoworld"), limit, True, note=note))
        for name in GRADIENTS:
            slowdown = ratio(found, name, "evoworld")
            targets.append(Target(f"{case}: {name} / forward", slowdown, BACKWARD_TARGET, False))
    return rows, targets


@dataclass
class Prepared:
    """A panorama, sums to scatter into, and a graph whose backward is timed alone."""

    rays: Rays

    @cached_property
    def sums(self) -> tuple[Tensor, Tensor]:
        return torch.empty(self.rays.grid.num_voxels, self.rays.features.shape[1]), torch.empty(
            self.rays.grid.num_voxels
        )

    @cached_property
    def graph(self):
        return self.record(ops.voxel_scatter)

    def record(self, scatter):
        """(leaves, sums, gradients of the sums) of a forward."""
        leaves = [getattr(self.rays, name).detach().clone().requires_grad_() for name in LEAVES]
        sums = scatter(*leaves, self.rays.grid)
        generator = torch.Generator().manual_seed(0)
        return leaves, sums, [torch.randn(s.shape, generator=generator) for s in sums]


def compare_all(case: str, inputs: Sequence[Prepared], repeats: int, missing: list[str]) -> dict[str, Row]:
    """Every way to scatter, forward and backward, in one interleaved run."""
    rays = inputs[0].rays
    floor = _floor(rays)
    sums = Check(_sums(reference.voxel_scatter(*_arguments(inputs[0]))), TOLERANCE)
    contestants = [
        Contestant("evoworld", lambda given: ops.voxel_scatter(*_arguments(given)), _sums, *floor, note="forward"),
        Contestant("evoworld, in place", _scatter_in_place, _sums, *floor, note="into kept sums; zeroing timed too"),
        Contestant("PyTorch reference", lambda given: reference.voxel_scatter(*_arguments(given)), _sums, *floor),
    ]
    if warp := peers.load("warp_splat", missing):
        note = "serial; an atomic addition a channel"
        contestants.append(Contestant("Warp CPU", lambda g: warp.voxel_scatter(g.rays), _sums, *floor, note=note))
        note = "serial; vectors of 16 channels"
        vectors = Contestant(
            "Warp CPU, vectors", lambda g: warp.voxel_scatter_vectors(g.rays), _sums, *floor, note=note
        )
        contestants.append(vectors)
    if numba := peers.load("numba_splat", missing):
        contestants.append(Contestant("Numba", lambda g: numba.voxel_scatter(g.rays), _sums, *floor, note="serial"))
    checks = {contestant.name: sums for contestant in contestants}

    expected = _gradients(inputs[0].record(reference.voxel_scatter), len(LEAVES))
    for name, wanted in GRADIENTS.items():
        flops = floor[1] * (2 if wanted > 1 else 1)
        backward = Contestant(name, lambda g, n=wanted: _gradients(g.graph, n), _named_gradients, floor[0], flops)
        contestants.append(backward)
        checks[name] = Check(_named_gradients(expected[:wanted]), TOLERANCE)
    for given in inputs:
        _ = given.sums, given.graph
    return compare(case, contestants, inputs, checks, repeats)


def _arguments(given: Prepared):
    rays = given.rays
    return rays.features, rays.depth, rays.origins, rays.directions, rays.grid


def _scatter_in_place(given: Prepared) -> tuple[Tensor, Tensor]:
    for total in given.sums:
        total.zero_()
    ops.voxel_scatter_(*given.sums, *_arguments(given))
    return given.sums


def _gradients(graph, wanted: int) -> tuple[Tensor, ...]:
    leaves, sums, d_sums = graph
    return torch.autograd.grad(sums, leaves[:wanted], d_sums, retain_graph=True)


def _named_gradients(found: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"d_{name}": gradient for name, gradient in zip(LEAVES, found, strict=False)}


def _sums(found: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {"feature_sum": found[0], "weight_sum": found[1]}


def _floor(rays: Rays) -> tuple[float, float]:
    """Bytes: the rays read once, the sums written once. FLOPs: 8 corners times C + 1 multiply-adds a point."""
    channels = rays.features.shape[1]
    written = rays.grid.num_voxels * (channels + 1) * rays.depth.element_size()
    return rays.nbytes + written, rays.num_points * 8 * (channels + 1) * MULTIPLY_ADD
