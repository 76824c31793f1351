"""Which tiles of tokens hold pairs within a radius: lists of key tiles for each query tile, or the other way round."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import device_of, single
from .sphere_attention_columns import FAR, PLACE_BLOCK, Places

SLACK = tl.constexpr(1e-5)  # of a distance on the unit sphere: much more than rounding
RUN = tl.constexpr(16)  # places that share a ball: a tile's tokens along a curve do not fill one ball
_SCAN = 32  # tiles that one step of the search looks at
_SCAN_WARPS = 8


class TileLists(NamedTuple):
    """For each tile the tiles of the other side that it meets: first those wholly within the radius, then the rest."""

    tiles: Tensor  # [T, width] int32: the first `met` of a row
    inside: Tensor  # [T] int32: how many of them need no mask
    met: Tensor  # [T] int32
    width: int


def tile_lists(
    rows: Places,  # with directions
    row_block: int,  # places of a tile
    columns: Places,  # with directions
    column_block: int,
    max_chord2: float,
) -> TileLists:
    """The tiles of ``columns`` that each tile of ``rows`` meets, in ascending order within the two groups."""
    tiles, width = triton.cdiv(rows.num_tokens, row_block), triton.cdiv(columns.num_tokens, column_block)
    lists = torch.empty(tiles, width, dtype=torch.int32, device=rows.directions.device)
    inside, met = torch.empty(2, tiles, dtype=torch.int32, device=lists.device)
    if tiles:
        near, far = run_balls(rows), run_balls(columns)
        with device_of(near):
            sphere_attention_lists_kernel[(tiles,)](
                near,
                far,
                lists,
                inside,
                met,
                near.shape[1],
                far.shape[1],
                width,
                single(max_chord2**0.5),
                ROW_RUNS=row_block // RUN.value,
                COLUMN_RUNS=column_block // RUN.value,
                BLOCK=_SCAN,
                num_warps=_SCAN_WARPS,
            )
    return TileLists(lists, inside, met, width)


def run_balls(
    places: Places,  # with directions
) -> Tensor:  # [5, P / RUN] float32: a ball's centre and radius, and how many tokens it holds
    balls = torch.empty(5, places.num_places // RUN.value, device=places.directions.device)
    if balls.numel():
        with device_of(balls):
            sphere_attention_balls_kernel[(places.num_places // PLACE_BLOCK,)](
                places.directions, balls, places.num_tokens, places.num_places, BLOCK=PLACE_BLOCK
            )
    return balls


@triton.jit(do_not_specialize=["num_tokens", "num_places"])
def sphere_attention_balls_kernel(
    directions,  # [3, P]
    balls,  # [5, P / RUN]
    num_tokens,
    num_places,
    BLOCK: tl.constexpr,
):
    # What: a ball around the tokens of each run of places, and their number.
    # Maths: its centre is their mean, its radius their largest distance from it.
    # Gradient: none.
    # Mapping: a program a block of places.
    # Memory: the block's directions, read once.
    run = tl.program_id(0) * (BLOCK // RUN) + tl.arange(0, BLOCK // RUN)
    place = run[:, None] * RUN + tl.arange(0, RUN)[None, :]
    exists = place < num_tokens
    count = tl.sum(exists.to(tl.float32), 1)
    distance2 = tl.zeros([BLOCK // RUN, RUN], tl.float32)
    for i in tl.static_range(3):
        coordinate = tl.load(directions + i * num_places + place, mask=exists, other=0.0)
        centre = tl.where(count > 0.0, tl.sum(coordinate, 1) / tl.maximum(count, 1.0), FAR)
        distance2 += (coordinate - centre[:, None]) * (coordinate - centre[:, None])
        tl.store(balls + i * (num_places // RUN) + run, centre)
    tl.store(balls + 3 * (num_places // RUN) + run, tl.sqrt(tl.max(tl.where(exists, distance2, 0.0), 1)))
    tl.store(balls + 4 * (num_places // RUN) + run, count)


@triton.jit(do_not_specialize=["num_near", "num_far", "width", "max_chord"])
def sphere_attention_lists_kernel(
    near,  # [5, num_near]
    far,  # [5, num_far]
    lists,  # [T, width] int32
    inside,  # [T] int32
    met,  # [T] int32
    num_near,
    num_far,
    width,
    max_chord,
    ROW_RUNS: tl.constexpr,  # of a tile
    COLUMN_RUNS: tl.constexpr,  # of a tile of the other side
    BLOCK: tl.constexpr,
):
    # What: the tiles of the other side that may hold a token within the radius of one of this tile's.
    # Maths: distances of two balls' points lie between |a - b| - r - s and |a - b| + r + s; any or all pairs of balls.
    # Gradient: none.
    # Mapping: a program a tile; it goes through the other side twice, for tiles wholly within the radius and the rest.
    # Memory: the other side's balls, from the cache; a row of the lists written once.
    tile = tl.program_id(0)
    pair = tl.arange(0, ROW_RUNS * COLUMN_RUNS)
    mine = near + tile * ROW_RUNS + pair % ROW_RUNS
    found = 0
    for rest in tl.static_range(2):
        for first in range(0, width, BLOCK):
            other = first + tl.arange(0, BLOCK)
            exists = other < width
            theirs = far + (other * COLUMN_RUNS)[:, None] + (pair // ROW_RUNS)[None, :]
            distance2 = tl.zeros([BLOCK, ROW_RUNS * COLUMN_RUNS], tl.float32)
            for i in tl.static_range(3):
                coordinate = tl.load(theirs + i * num_far, mask=exists[:, None], other=0.0)
                difference = coordinate - tl.load(mine + i * num_near)[None, :]
                distance2 += difference * difference
            distance = tl.sqrt(distance2)
            reach = tl.load(theirs + 3 * num_far, mask=exists[:, None], other=0.0)
            reach += tl.load(mine + 3 * num_near)[None, :] + SLACK
            tokens = tl.load(theirs + 4 * num_far, mask=exists[:, None], other=0.0)
            tokens = tl.minimum(tokens, tl.load(mine + 4 * num_near)[None, :])
            furthest = tl.max(tl.where(tokens == RUN, distance + reach, FAR), 1)
            nearest = tl.min(tl.where(tokens > 0, distance - reach, FAR), 1)
            wanted = (
                exists & (nearest <= max_chord) & (furthest > max_chord) if rest else exists & (furthest <= max_chord)
            )
            position = tl.cumsum(wanted.to(tl.int32), 0)
            tl.store(lists + tile.to(tl.int64) * width + found + position - 1, other, mask=wanted)
            found += tl.max(position, 0)
        if rest:
            tl.store(met + tile, found)
        else:
            tl.store(inside + tile, found)
