"""voxel_scatter: forward against Warp, Numba and the PyTorch reference, and backward against forward."""

from collections.abc import Sequence

import torch

from benchmarks import peers
from benchmarks.harness import Check, Contestant, Row, Target, compare, inputs_beyond_cache, ratio
from benchmarks.inputs import CHANNELS, Rays, panorama_rays
from evoworld import ops, reference
from evoworld.data import Capture

HEIGHTS = (256, 512)
# Sums of up to thousands of float32 terms in another order.
TOLERANCE = 1e-4
MULTIPLY_ADD = 2
WARP_TARGET, REFERENCE_TARGET, BACKWARD_TARGET = 5.0, 30.0, 2.0
OWN_YARDSTICK = "the fastest Warp kernel that we know how to write"
INPUTS = ("features", "depth", "origins", "directions")


def run(capture: Capture, repeats: int, missing: list[str], heights: Sequence[int] = HEIGHTS):
    """Rows and targets for one capture; the frames rotate, each with the grid of its own points."""
    rows: list[Row] = []
    targets: list[Target] = []
    for height in heights:
        first = panorama_rays(capture[0], height)
        count = inputs_beyond_cache(first.nbytes, len(capture))
        inputs = [first] + [panorama_rays(capture[i * len(capture) // count], height) for i in range(1, count)]
        size = f"{height}x{2 * height}"
        forward = _forward(f"voxel_scatter forward {size}", inputs, repeats, missing)
        backward = _backward(f"voxel_scatter backward {size}", inputs, repeats)
        rows += [*forward.values(), *backward.values()]
        for peer, limit in (
            ("Warp CPU", WARP_TARGET),
            ("Warp CPU, vectors", 1.0),
            ("PyTorch reference", REFERENCE_TARGET),
        ):
            claim = f"voxel_scatter forward {size}: {peer} / ours"
            note = OWN_YARDSTICK if limit == 1.0 else ""
            targets.append(Target(claim, ratio(forward, peer, "evoworld"), limit, True, note=note))
        slowdown = backward["all gradients"].median / forward["evoworld"].median
        claim = f"voxel_scatter {size}: backward / forward, all gradients"
        targets.append(Target(claim, slowdown, BACKWARD_TARGET, False))
    return rows, targets


def _forward(case: str, inputs: Sequence[Rays], repeats: int, missing: list[str]) -> dict[str, Row]:
    floor = _floor(inputs[0])
    contestants = [
        Contestant("evoworld", lambda rays: ops.voxel_scatter(*_arguments(rays)), _sums, *floor),
        Contestant(
            "evoworld, in place", _into_kept_sums(), _sums, *floor, note="as the memory does; zeroing timed too"
        ),
        Contestant("PyTorch reference", lambda rays: reference.voxel_scatter(*_arguments(rays)), _sums, *floor),
    ]
    if warp := peers.load("warp_splat", missing):
        note = "serial; an atomic addition a channel"
        contestants.append(Contestant("Warp CPU", warp.voxel_scatter, _sums, *floor, note=note))
        note = "serial; vectors of 16 channels"
        contestants.append(Contestant("Warp CPU, vectors", warp.voxel_scatter_vectors, _sums, *floor, note=note))
    if numba := peers.load("numba_splat", missing):
        contestants.append(Contestant("Numba", numba.voxel_scatter, _sums, *floor, note="serial"))
    check = Check(_sums(reference.voxel_scatter(*_arguments(inputs[0]))), TOLERANCE)
    return compare(case, contestants, inputs, check, repeats)


def _backward(case: str, inputs: Sequence[Rays], repeats: int) -> dict[str, Row]:
    """Backward alone: the graphs are built before the clock starts."""

    def graph(scatter, rays: Rays):
        leaves = [getattr(rays, name).detach().clone().requires_grad_() for name in INPUTS]
        sums = scatter(*leaves, rays.grid)
        generator = torch.Generator().manual_seed(0)
        return leaves, sums, [torch.randn(s.shape, generator=generator) for s in sums]

    def gradients(wanted: int):
        def backward(prepared):
            leaves, sums, d_sums = prepared
            return torch.autograd.grad(sums, leaves[:wanted], d_sums, retain_graph=True)

        return backward

    def named(found):
        return {f"d_{name}": gradient for name, gradient in zip(INPUTS, found, strict=False)}

    expected = named(gradients(len(INPUTS))(graph(reference.voxel_scatter, inputs[0])))
    prepared = [graph(ops.voxel_scatter, rays) for rays in inputs]
    read, flops = _floor(inputs[0])
    rows = {}
    # Two checks, as the contestants give different gradients; interleaving does not matter inside one op.
    for name, wanted in (("all gradients", len(INPUTS)), ("features only", 1)):
        check = Check({key: expected[key] for key in list(expected)[:wanted]}, TOLERANCE)
        contestant = Contestant(name, gradients(wanted), named, read, flops * (2 if wanted > 1 else 1))
        rows |= compare(case, [contestant], prepared, check, repeats)
    return rows


def _arguments(rays: Rays):
    return rays.features, rays.depth, rays.origins, rays.directions, rays.grid


def _into_kept_sums():
    """A scatter into sums that the caller keeps between calls: no allocation."""
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def scatter(rays: Rays):
        if id(rays) not in kept:
            kept[id(rays)] = torch.empty(rays.grid.num_voxels, CHANNELS), torch.empty(rays.grid.num_voxels)
        sums = kept[id(rays)]
        for total in sums:
            total.zero_()
        ops.voxel_scatter_(*sums, *_arguments(rays))
        return sums

    return scatter


def _sums(found):
    return {"feature_sum": found[0], "weight_sum": found[1]}


def _floor(rays: Rays) -> tuple[float, float]:
    """Bytes: the rays read once, the sums written once. FLOPs: 8 corners times C + 1 multiply-adds a point."""
    channels = rays.features.shape[1]
    written = rays.grid.num_voxels * (channels + 1) * rays.depth.element_size()
    return rays.nbytes + written, rays.num_points * 8 * (channels + 1) * MULTIPLY_ADD
