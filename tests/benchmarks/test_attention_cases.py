"""What sphere_attention is timed on: the truth, the peers, the counts of work, and both benchmarks on a few tokens."""

import math
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend

from benchmarks import attention, bench_sphere_attention, peers
from benchmarks.attention import AttentionSize, attend, both_ways, named, true_gradients, truth
from benchmarks.gpu import attention as gpu_attention
from benchmarks.gpu import attention_compile, attention_peers
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import CpuDevice
from benchmarks.harness import Row
from benchmarks.machine import peak_bytes
from benchmarks.peers import torch_attention
from evoworld import ops, reference

SIZE = AttentionSize(batch=2, height=6, heads=3, width=16, dtype=torch.float32)
RADIUS = math.radians(50)
close = torch.testing.assert_close


@pytest.fixture(scope="module")
def tokens():
    return SIZE.tokens(SIZE.sphere(), seed=0)


@pytest.mark.parametrize(("bias", "radius"), [(True, None), (False, None), (True, RADIUS)])
def test_the_truth_does_not_depend_on_its_chunks(tokens, monkeypatch, bias, radius):
    whole, gradients = truth(tokens, bias, radius), true_gradients(tokens, bias, radius)
    assert set(gradients) == set(attention.GRADIENTS[: 5 if bias else 3])
    monkeypatch.setattr(attention, "MOST_LOGITS", 5 * SIZE.batch * SIZE.heads * SIZE.length)  # of 72 queries: 5
    close(truth(tokens, bias, radius), whole)
    for name, gradient in true_gradients(tokens, bias, radius).items():
        close(gradient, gradients[name], rtol=1e-4, atol=1e-4)


def test_the_truth_is_the_reference(tokens):
    sphere = tokens.sphere
    directions = sphere.directions
    rows = tokens.query, tokens.key, tokens.value
    expected = reference.sphere_attention(*rows, directions, directions, sphere.zonal, sphere.log_weight)
    close(truth(tokens), expected)
    close(attend(tokens), expected, rtol=1e-4, atol=1e-5)
    close(sphere.log_weight.exp().sum().item(), 4 * math.pi)
    found = dict(zip(attention.GRADIENTS, both_ways(attend, tokens), strict=True))
    for name, gradient in true_gradients(tokens).items():
        close(found[name], gradient, rtol=1e-3, atol=1e-4)


def test_the_gradient_of_the_strengths_is_more_than_noise(tokens):
    """Its largest value grows with the tokens, not with their root: else rounding would be compared with rounding."""
    largest = true_gradients(tokens)["d_zonal"].abs().max()
    assert 0.5 * SIZE.batch * SIZE.length < largest


@pytest.mark.parametrize("way", [torch_attention.sdpa_folded, "dense bias"])
def test_torchs_own_attention_computes_the_same(tokens, way):
    if way == "dense bias":
        mask = torch_attention.dense_bias(tokens.sphere, torch.float32)
        close(torch_attention.sdpa(tokens, mask), truth(tokens), rtol=1e-4, atol=1e-5)
    else:
        close(way(tokens), truth(tokens), rtol=1e-4, atol=1e-5)
    close(torch_attention.sdpa(tokens), truth(tokens, bias=False), rtol=1e-4, atol=1e-5)


def test_flex_attention_gets_the_same_scores_and_mask(tokens):
    sphere = tokens.sphere
    score = torch_attention.score_function(sphere)
    head, query, key = torch.meshgrid(torch.arange(SIZE.heads), *[torch.arange(SIZE.length)] * 2, indexing="ij")
    bias = torch_attention.dense_bias(sphere, torch.float32)[0]
    close(score(torch.zeros(()), 0, head, query, key), bias, rtol=1e-5, atol=1e-5)
    mask = torch_attention.block_mask(sphere.directions, RADIUS)
    near = mask.mask_mod(0, 0, query[0], key[0])
    angle = (sphere.directions @ sphere.directions.T).clamp(-1, 1).acos()
    assert torch.equal(near, angle <= RADIUS) and 0 < near.sum() < near.numel()


def test_work_is_counted(tokens):
    pairs = SIZE.length**2
    assert attention.flops(tokens) == 2 * 3 * pairs * 16 * 4
    assert attention.flops(tokens, attention.BACKWARD_PRODUCTS) == 2 * 3 * pairs * 16 * 10
    near = attention.count_pairs(tokens.sphere.directions, RADIUS)
    assert attention.count_pairs(tokens.sphere.directions, math.pi) == pairs
    # A cap's share of the sphere is (1 - cos radius) / 2; more of the tokens lie near the poles.
    assert 0.9 * pairs * (1 - math.cos(RADIUS)) / 2 < near < 1.5 * pairs * (1 - math.cos(RADIUS)) / 2
    assert attention.flops(tokens, radius=RADIUS) == 2 * 3 * near * 16 * 4
    one = 4 * 2 * 3 * SIZE.length * 16
    assert attention.bytes_moved(tokens) == 4 * one and attention.bytes_moved(tokens, backward=True) == 9 * one


def fake_harmonics() -> types.ModuleType:
    """Layers with the library's arguments, buffers and weights, which attend as its papers say."""

    class AttentionS2(torch.nn.Module):
        def __init__(self, in_channels, num_heads, in_shape, out_shape, bias, theta_cutoff=None):
            super().__init__()
            assert not bias and in_shape == out_shape
            self.heads, (self.height, self.width) = num_heads, in_shape
            names = ("q_weights", "k_weights", "v_weights", "proj_weights")
            for name in names:
                self.register_parameter(name, torch.nn.Parameter(torch.rand(in_channels, in_channels, 1, 1)))
            latitude = torch.linspace(-math.pi / 2, math.pi / 2, self.height)
            area = (latitude.cos() + 0.1) / self.width
            if theta_cutoff is None:
                weights = area.log().repeat_interleave(self.width)
                self.register_buffer("log_quad_weights", weights.view(1, 1, -1))
            else:
                self.register_buffer("quad_weights", area)
            self.cutoff = theta_cutoff and 1.001 * theta_cutoff

        def forward(self, *images):
            weights = self.q_weights, self.k_weights, self.v_weights
            rows = (torch.nn.functional.conv2d(x, w).flatten(2).mT for x, w in zip(images, weights, strict=True))
            query, key, value = rows
            logits = query @ key.mT / query.shape[-1] ** 0.5
            if self.cutoff is None:
                logits = logits + self.log_quad_weights
            else:
                row = torch.arange(self.height * self.width) // self.width
                column = torch.arange(self.height * self.width) % self.width
                theta = row * (math.pi / (self.height - 1))
                turn = (column[:, None] - column) * (2 * math.pi / self.width)
                cosine = theta.cos()[:, None] * theta.cos() + theta.sin()[:, None] * theta.sin() * turn.cos()
                logits = logits + self.quad_weights.log().repeat_interleave(self.width)
                logits = logits.masked_fill(cosine.clamp(-1, 1).acos() > self.cutoff, -math.inf)
            mixed = (logits.softmax(-1) @ value).mT.unflatten(-1, (self.height, self.width))
            return torch.nn.functional.conv2d(mixed, self.proj_weights)

    module = types.ModuleType("torch_harmonics")
    module.AttentionS2 = module.NeighborhoodAttentionS2 = AttentionS2
    return module


@pytest.fixture
def harmonics(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_harmonics", fake_harmonics())
    yield peers.load("torch_harmonics_attention", [])
    del sys.modules["benchmarks.peers.torch_harmonics_attention"]


@pytest.mark.parametrize("radius", [None, RADIUS])
def test_torch_harmonics_is_asked_for_the_same(harmonics, radius):
    layer = harmonics.Layer(6, torch.float32, "cpu", radius)
    tokens = attention.draw_tokens((1, 1, 72, harmonics.CHANNELS), torch.float32, layer.sphere, 0)
    close(layer(tokens), truth(tokens, True, radius), rtol=1e-4, atol=1e-5)
    found = dict(zip(attention.GRADIENTS, both_ways(layer, tokens, wanted=3), strict=False))
    for name, gradient in found.items():
        close(gradient, true_gradients(tokens, True, radius)[name], rtol=1e-3, atol=1e-4)


def uncompiled(sphere, radius=None):
    """In the place of FlexAttention, which takes long to compile: the same score function and mask."""
    query, key = torch.meshgrid(*[torch.arange(len(sphere.directions))] * 2, indexing="ij")
    head = torch.arange(len(sphere.zonal))[:, None, None]
    mask = torch_attention.score_function(sphere)(torch.zeros(()), 0, head, query, key)
    if radius is not None:
        near = torch_attention.block_mask(sphere.directions, radius).mask_mod(0, 0, query, key)
        mask = mask.masked_fill(~near, -math.inf)

    def attend_in_float32(tokens):
        rows = (x.float() for x in tokens.inputs[:3])
        return torch.nn.functional.scaled_dot_product_attention(*rows, attn_mask=mask).to(tokens.query.dtype)

    return attend_in_float32


@pytest.fixture
def few_tokens(monkeypatch, harmonics):
    monkeypatch.setattr(torch_attention, "FlexAttention", uncompiled)
    monkeypatch.setattr(bench_sphere_attention, "HEIGHT", 10)  # no row of tokens is 30 degrees from another one
    monkeypatch.setattr(bench_sphere_attention, "HEIGHTS", (4, 8))
    monkeypatch.setattr(bench_sphere_attention, "MATRIX_SIZE", 64)


def test_the_cpu_benchmark_times_every_peer_and_holds_every_target(few_tokens):
    missing = []
    rows, targets = bench_sphere_attention.run(1, missing)
    assert not missing and [row for row in rows if row.refused or not row.seconds] == []
    contestants = {(row.case.removeprefix("sphere_attention "), row.contestant) for row in rows}
    forward = {name for case, name in contestants if case == "1 x 200, N = 8, D = 128 float32, forward"}
    assert forward == {
        *("evoworld", "evoworld, no bias", "SDPA", "SDPA, dense bias", "SDPA, folded", "FlexAttention"),
        "PyTorch reference",
    }
    case = "1 x 200, N = 8, D = 64 bfloat16, forward and backward"
    both = {name for found, name in contestants if found == case}
    assert both == {"evoworld", "evoworld, no bias", "SDPA", "SDPA, dense bias", "SDPA, folded"}
    assert ("20x40, one head of 64, forward", "AttentionS2") in contestants
    assert ("20x40, one head of 64, 30 degrees, forward and backward", "NeighborhoodAttentionS2") in contestants
    limits = {target.claim.removeprefix("sphere_attention "): target.limit for target in targets}
    for width in (64, 128):
        title = f"1 x 200, N = 8, D = {width}"
        assert limits[f"{title} float32, forward: SDPA without bias / ours"] == 0.85
        assert limits[f"{title} float32, forward: FlexAttention / ours"] == 3.0
        assert limits[f"{title} bfloat16, forward and backward: SDPA without bias / ours"] == 1.5
    near = "1 x 200, N = 8, D = 64 float32, 30 degrees, forward: all keys / those within the radius"
    assert limits[near] == 1.8
    assert {t.verdict for t in targets} <= {"met", "missed"}
    assert all(row.peak > 0 for row in rows)


def test_the_cpu_benchmark_refuses_what_is_wrong(few_tokens, monkeypatch):
    right = ops.sphere_attention

    def wrong(query, *arguments):
        return 1.05 * right(query, *arguments)

    monkeypatch.setattr(attention.ops, "sphere_attention", wrong)
    rows, targets = bench_sphere_attention.run(1, [], quick=True)
    ours = [row for row in rows if row.contestant.startswith("evoworld")]
    assert ours and all("is off by" in row.refused and not row.seconds for row in ours)
    assert all(row.seconds for row in rows if row.contestant in ("SDPA", "FlexAttention", "AttentionS2"))
    ratios = [target for target in targets if "memory" not in target.claim]
    assert ratios and all(target.verdict == "not measured" for target in ratios)


def test_peak_memory_is_that_of_the_call():
    def call():
        torch.ones(25_000_000).sum()
        return torch.ones(5_000_000)

    call()
    for _ in range(2):
        found = peak_bytes(call)
        assert math.isnan(found) or 90e6 < found < 140e6


@pytest.fixture
def context(harmonics, monkeypatch):
    monkeypatch.setattr(torch_attention, "FlexAttention", uncompiled)
    return Context(CpuDevice(), tiny=True, rates={"bfloat16 FLOP/s": 1e11})


def test_the_peers_of_the_gpu_report_are_asked_for_the_same(context, monkeypatch):
    attention_peers.run(context)
    best = gpu_attention.served(context)[0]
    small = replace(gpu_attention.SIZES[0], height=4)
    attention_peers.flex_within_radius(context, small, best)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 40, 1 << 40))
    attention_peers.dense(context, small, best)
    found = context.findings
    assert found.failures == [] and [row for row in found.rows if row.refused] == []
    assert {row.contestant for row in found.rows} == {
        *(best, "FlexAttention", "SDPA, log weights as a mask", "AttentionS2", "NeighborhoodAttentionS2"),
        "SDPA, dense bias",
    }
    assert [target.limit for target in found.targets] == [1.3, 30.0, 30.0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 10, 1 << 40))
    count = len(found.rows)
    attention_peers.dense(context, small, best)
    assert len(found.rows) == count and "no dense bias" in found.notes[-1]


def test_what_is_compiled_before_the_clock_runs(context, monkeypatch):
    calls = []
    monkeypatch.setattr(attention_compile, "call", lambda function, tokens: calls.append(function(tokens)))
    attention_compile.run(context)
    assert len(calls) == 3 * len(gpu_attention.SIZES)
    assert not context.findings.rows and not context.findings.failures


def test_on_a_gpu_sdpa_is_asked_for_each_of_its_kernels():
    on_gpu = types.SimpleNamespace(device=types.SimpleNamespace(name="cuda"))
    plain = gpu_attention.by_kernel(on_gpu, "SDPA", torch_attention.PLAIN_KERNELS)
    assert plain == {"SDPA, flash": SDPBackend.FLASH_ATTENTION, "SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION}
    rows = {"SDPA, flash": Row("", "", [2.0]), "SDPA, cuDNN": Row("", "", [1.0])}
    assert gpu_attention.fastest(rows, plain) == "SDPA, cuDNN"
    rows["SDPA, cuDNN"] = Row("", "", refused="it cannot")
    assert gpu_attention.fastest(rows, plain) == "SDPA, flash"
    assert gpu_attention.rate(Row("", "", [2.0], flops=1e15)) == 500.0


def test_a_chosen_kernel_is_the_one_that_runs(tokens):
    close(torch_attention.sdpa(tokens, kernel=SDPBackend.MATH), truth(tokens, bias=False), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError):  # there is no cuDNN on the CPU
        torch_attention.sdpa(tokens, kernel=SDPBackend.CUDNN_ATTENTION)
    assert named(torch.ones(2)).keys() == {"output"}
