"""The distortion-aware convolution of equirectangular images, and its two gradients, as PyTorch custom ops.

Where a tap of the kernel looks depends on the latitude alone, up to a shift along the row. So one small table
[H', K, 4] (K taps, four pixels each) describes the convolution: `gather` a tile of columns [pixels, K, C] by a weighted
embedding_bag, multiply it with the kernel, go on with the next tile. Tiles bound the memory, and on a CPU they stay in
its cache. The transposed table [H, stride, E] does the same for the gradient of the image: it gathers what the forward
pass spread, so that no sum depends on the order of threads.

The three ops are bilinear and each is the derivative of the other two, so gradients of every order exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Pair = tuple[int, int]

_CACHED_TABLES = 256  # of 55 kB each for 128 rows of a 3x3 kernel
_GATHERED_CHANNELS = 16  # at a time, if there are so many: a cache line of float32
_ROUNDING = 1e-12  # weights below it would be 0 if sines were exact
_INDEX_BYTES = 16  # of an entry of a bag: two or three int32 while it is computed, and a weight


def same_padding(extent: int, stride: int) -> int:
    """Pixels before the image, so that output i is centred on pixels [i * stride, (i + 1) * stride).

    Where that is between two pixels, torch's habit: kernel // 2 with a stride, and (kernel - 1) // 2 without.
    """
    return max((extent - stride + (stride > 1)) // 2, 0)


def tap_coordinates(
    height: int,
    width: int,
    kernel_size: Pair,
    stride: Pair,
    dilation: Pair,
) -> tuple[Tensor, Tensor]:
    """Where every tap looks, as float64 pixel indices: rows [H', K], and columns [H', K] of output column 0.

    Around a pixel of the equator the taps are the centres of its neighbours, (a, b) radians east and north, in the
    direction d = (cos b sin a, sin b, cos b cos a) (east, up, ahead). These points of the tangent plane are carried
    rigidly to the latitude of output row i by a turn about the east axis:
    d' = (x, y cos lat + z sin lat, z cos lat - y sin lat).
    No tap comes nearer to a pole than half a pixel, where the outermost rows have their centres: so a bilinear sample
    lies between two rows of the image always, and a tap beyond the pole takes its longitude from there.

    Source: Coors, Condurache, Geiger, "SphereNet", ECCV 2018, section 3.1 (their gnomonic projection and its inverse,
    written as the rotation that they amount to, which has no pole at 90 degrees); Fernandez-Labrador et al., "Corners
    for Layout: End-to-End Layout Recovery from 360 Images" (EquiConvs), RA-L 2020.
    """
    centres, offsets = [], []
    for taps, step, gap in zip(kernel_size, stride, dilation):
        extent = gap * (taps - 1) + 1
        centres.append(extent / 2 - same_padding(extent, step))
        offsets.append((torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) * gap)
    output_rows = torch.arange(height // stride[0], dtype=torch.float64) * stride[0] + centres[0]
    lat = ((0.5 - output_rows / height) * math.pi)[:, None, None]
    north = (-offsets[0] * math.pi / height)[:, None]
    east = offsets[1] * (2 * math.pi / width)

    x, y, z = north.cos() * east.sin(), north.sin(), north.cos() * east.cos()
    x, y, z = x.expand_as(y * lat + z), y * lat.cos() + z * lat.sin(), z * lat.cos() - y * lat.sin()
    rows = (0.5 - torch.atan2(y, torch.hypot(x, z)) / math.pi) * height - 0.5
    columns = torch.atan2(x, z) / (2 * math.pi) * width + centres[1] - 0.5
    return rows.flatten(1), columns.flatten(1)


@dataclass(frozen=True)
class _Table:
    """Bags of weighted pixels, the same in every column but for a turn about the axis.

    Entry e of bag b in column t is row `base[b, e] + (shift[b, e] + t * step) mod period` of what is gathered from.
    """

    base: Tensor  # [rows, bags, E] int32, which _table checks to be wide enough
    shift: Tensor  # [rows, bags, E] int32, 0 <= shift < period
    weight: Tensor  # [rows, bags, E]
    columns: int
    step: int  # columns * step <= period
    period: int
    source_rows: int  # of one image

    def gather(
        self,
        source: Tensor,  # [images * source_rows, C] contiguous
        images: int,
        rows: slice,
    ) -> Tensor:  # [images * rows * columns * bags, C]
        """The weighted sums of some rows of bags, for every column, for every image."""
        base, shift, weight = self.base[rows, None], self.shift[rows, None], self.weight[rows, None]
        turn = torch.arange(self.columns, device=source.device, dtype=torch.int32)[:, None, None] * self.step
        turned = shift + turn  # [rows, columns, bags, E], below twice the period
        index = torch.where(turned < self.period, turned, turned - self.period).add_(base)
        weight = weight.expand_as(index)
        if images > 1:
            first = torch.arange(images, device=source.device, dtype=torch.int32) * self.source_rows
            index, weight = index + first[:, None, None, None, None], weight.expand(images, *weight.shape)
        entries = index.shape[-1]
        return torch.nn.functional.embedding_bag(
            index.reshape(-1, entries), source, mode="sum", per_sample_weights=weight.reshape(-1, entries)
        )


@lru_cache(maxsize=_CACHED_TABLES)
def _table(
    height: int, width: int, kernel_size: Pair, stride: Pair, dilation: Pair, dtype: torch.dtype, device: torch.device
) -> _Table:
    """Output row i, tap k -> the four pixels around where it looks, and their bilinear weights."""
    if height * width * math.prod(kernel_size) > torch.iinfo(torch.int32).max:
        raise ValueError(f"image: {height} x {width} pixels times {kernel_size} taps is more than 2^31 - 1")
    with torch.inference_mode(False):
        row, column = tap_coordinates(height, width, kernel_size, stride, dilation)
        top, left = row.floor(), column.floor()
        down, right = row - top, column - left
        rows = torch.stack((top, top, top + 1, top + 1), -1).long()
        columns = torch.stack((left, left + 1, left, left + 1), -1).long()
        weight = torch.stack(((1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right), -1)
        base = rows.clamp(0, height - 1) * width  # rounding may ask for the row beyond, with a weight of 1e-15
        base, shift = (index.to(device, torch.int32) for index in (base, columns % width))
        return _Table(base, shift, weight.to(device, dtype), width // stride[1], stride[1], width, height * width)


@lru_cache(maxsize=_CACHED_TABLES)
def _transposed_table(
    height: int, width: int, kernel_size: Pair, stride: Pair, dilation: Pair, dtype: torch.dtype, device: torch.device
) -> _Table:
    """Input row r, column p modulo the stride -> the (output pixel, tap) pairs that look there.

    Rows near the poles are seen more often than others; shorter bags are filled up with weight 0.
    """
    with torch.inference_mode(False):
        table = _table(height, width, kernel_size, stride, dilation, torch.float64, torch.device("cpu"))
        output_rows, taps, _ = table.base.shape
        step, columns = stride[1], table.columns
        phase = table.shift % step
        bag = (table.base // width * step + phase).flatten()
        shift = ((phase - table.shift) // step % columns * taps).flatten()
        first = torch.arange(output_rows, dtype=torch.int32)[:, None] * columns * taps + torch.arange(taps).int()
        base = first[..., None].expand_as(table.base).flatten()

        weight = table.weight.flatten()
        seen = (weight > _ROUNDING).nonzero()[:, 0]  # all taps of the middle column lie on pixels
        order = seen[torch.argsort(bag[seen], stable=True)]
        bag, shift, base, weight = bag[order], shift[order], base[order], weight[order]
        counts = torch.bincount(bag, minlength=height * step)
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(bag)) - starts[bag]
        filler = starts.clamp(max=len(bag) - 1)[:, None]  # an entry of the bag's own, as 0 times a NaN is NaN

        def bags(values: Tensor, fill: Tensor) -> Tensor:
            filled = fill.expand(-1, int(counts.max())).contiguous()
            filled[bag, place] = values
            return filled.reshape(height, step, -1).to(device)

        weight = bags(weight, torch.zeros(len(counts), 1, dtype=torch.float64)).to(dtype)
        base, shift = bags(base, base[filler]), bags(shift, shift[filler])
        return _Table(base, shift, weight, columns, taps, columns * taps, output_rows * columns * taps)


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


def _tiles(images: int, rows: int, bytes_of_row: int, budget: int) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of rows: whole images while these are small, else rows of one image."""
    image_step = max(budget // max(bytes_of_row * rows, 1), 1)
    row_step = rows if image_step > 1 else max(budget // max(bytes_of_row, 1), 1)
    return ((image, row) for image in _slices(images, image_step) for row in _slices(rows, row_step))


def _tile_bytes(device: torch.device) -> int:
    """Of columns at a time: on a CPU they stay in the second-level cache, and in memory that is mapped already."""
    return 2 << 20 if device.type == "cpu" else 128 << 20


def _d_columns_bytes(device: torch.device) -> int:
    """Of the columns' gradient at a time, which the transposed table gathers from all over the image."""
    return 16 << 20 if device.type == "cpu" else 256 << 20


@torch.library.custom_op("evoworld_nn::equi_conv2d", mutates_args=())
def equi_conv2d(
    image: Tensor,  # [B, C, H, W]
    weight: Tensor,  # [C', C / groups, kh, kw]
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:  # [B, C', H / stride, W / stride]
    """The convolution: columns of every output pixel, times the kernel."""
    table = _table(*image.shape[2:], *_key(weight, stride, dilation))
    kernel = _kernel_matrices(weight, groups)
    batch, channels, *size = _output_shape(image, weight, stride)
    output = image.new_empty((batch, *size, channels))
    for images, rows, columns in _columns(image, table):
        tile = output[images, rows]
        tile.copy_(_multiply(columns, kernel).reshape(tile.shape))
    return output.permute(0, 3, 1, 2).contiguous(memory_format=_format_of(image))


@torch.library.custom_op("evoworld_nn::equi_conv2d_weight", mutates_args=())
def equi_conv2d_weight(
    image: Tensor,  # [B, C, H, W]
    d_output: Tensor,  # [B, C', H / stride, W / stride]
    kernel_size: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:  # [C', C / groups, kh, kw]
    """The gradient of the weight: columns of every output pixel, times its gradient; tiles are added up in float32."""
    d_weight = image.new_empty((d_output.shape[1], image.shape[1] // groups, *kernel_size))
    table = _table(*image.shape[2:], *_key(d_weight, stride, dilation))
    d_output = d_output.permute(0, 2, 3, 1).contiguous()
    d_kernel = torch.zeros_like(
        _kernel_matrices(d_weight, groups), dtype=torch.promote_types(image.dtype, torch.float32)
    )
    for images, rows, columns in _columns(image, table):
        d_kernel += _outer(columns, d_output[images, rows].reshape(len(columns), -1), groups)
    return d_weight.copy_(d_kernel.permute(0, 3, 2, 1).reshape(d_weight.shape))


@torch.library.custom_op("evoworld_nn::equi_conv2d_image", mutates_args=())
def equi_conv2d_image(
    d_output: Tensor,  # [B, C', H / stride, W / stride]
    weight: Tensor,  # [C', C / groups, kh, kw]
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:  # [B, C, H, W]
    """The gradient of the image: that of the columns, some channels at a time, gathered by the transposed table."""
    batch, channels, height, width = _image_shape(d_output, weight, stride, groups)
    table = _transposed_table(height, width, *_key(weight, stride, dilation))
    kernel = _kernel_matrices(weight, groups)
    d_image = weight.new_empty((batch, height, width, groups, channels // groups))
    d_pixels = d_output.permute(0, 2, 3, 1).contiguous().flatten(1, 2).unflatten(-1, (groups, -1))
    bytes_of_channel = table.source_rows * weight.element_size()
    bytes_of_index = table.weight[0].numel() * table.columns * _INDEX_BYTES
    for images, _ in _tiles(batch, 1, bytes_of_channel * channels, _d_columns_bytes(weight.device)):
        count = images.stop - images.start
        step = max(_d_columns_bytes(weight.device) // (bytes_of_channel * count), _GATHERED_CHANNELS)
        for group in _slices(groups, max(step * groups // channels, 1)):
            d_tile = d_pixels[images, :, group].flatten(0, 1)
            for part in _slices(channels // groups, step):
                d_columns = _multiply_transposed(d_tile, kernel[group, :, part])
                bytes_of_row = width * d_columns[0, 0].nbytes + bytes_of_index
                for _, rows in _tiles(1, height, bytes_of_row * count, _tile_bytes(weight.device)):
                    d_part = d_image[images, rows, :, group, part]
                    d_part.copy_(table.gather(d_columns.flatten(0, 1), count, rows).view(d_part.shape))
                del d_columns  # before the next ones are made
    return d_image.flatten(-2).permute(0, 3, 1, 2).contiguous(memory_format=_format_of(d_output))


def _columns(
    image: Tensor,  # [B, C, H, W]
    table: _Table,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles of the output: images, rows, and the columns [images * rows * W', K, C] of their pixels."""
    channels = image.shape[1]
    pixels = image.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()
    rows, taps, corners = table.base.shape
    bytes_of_row = table.columns * taps * (channels * image.element_size() + corners * _INDEX_BYTES)
    for images, at in _tiles(len(image), rows, bytes_of_row, _tile_bytes(image.device)):
        source = pixels[images.start * table.source_rows : images.stop * table.source_rows]
        columns = table.gather(source, images.stop - images.start, at)
        yield images, at, columns.reshape(-1, taps, channels)


def _kernel_matrices(
    weight: Tensor,  # [C', C / groups, kh, kw]
    groups: int,
) -> Tensor:  # [G, K, C / G, C' / G]
    return weight.flatten(2).unflatten(0, (groups, -1)).permute(0, 3, 2, 1).contiguous()


def _is_depthwise(kernel: Tensor) -> bool:
    return kernel.shape[0] > 1 and kernel.shape[2:] == (1, 1)


def _by_group(
    columns: Tensor,  # [P, K, C]
    groups: int,
) -> Tensor:  # [G, P, K * C / G]
    return columns.unflatten(-1, (groups, -1)).permute(2, 0, 1, 3).reshape(groups, len(columns), -1)


def _multiply(
    columns: Tensor,  # [P, K, C]
    kernel: Tensor,  # [G, K, C / G, C' / G]
) -> Tensor:  # [P, C']
    if _is_depthwise(kernel):
        return (columns * kernel[:, :, 0, 0].mT).sum(1)
    return (_by_group(columns, len(kernel)) @ kernel.flatten(1, 2)).transpose(0, 1).flatten(1)


def _multiply_transposed(
    d_output: Tensor,  # [P, G, C' / G]
    kernel: Tensor,  # [G, K, C / G, C' / G]
) -> Tensor:  # [P, K, C] contiguous
    if _is_depthwise(kernel):
        return (d_output.mT * kernel[:, :, 0, 0].mT.contiguous()).contiguous()
    product = d_output.transpose(0, 1) @ kernel.flatten(1, 2).mT  # [G, P, K * C / G]
    return product.unflatten(-1, kernel.shape[1:3]).permute(1, 2, 0, 3).flatten(2).contiguous()


def _outer(
    columns: Tensor,  # [P, K, C]
    d_output: Tensor,  # [P, C']
    groups: int,
) -> Tensor:  # [G, K, C / G, C' / G]
    if groups == columns.shape[-1] == d_output.shape[-1] and groups > 1:
        return (columns * d_output[:, None]).sum(0).mT[..., None, None]
    product = _by_group(columns, groups).mT @ d_output.unflatten(-1, (groups, -1)).transpose(0, 1)
    return product.unflatten(1, (columns.shape[1], -1))


def _key(weight: Tensor, stride: list[int], dilation: list[int]) -> tuple[Pair, Pair, Pair, torch.dtype, torch.device]:
    """What a table is made for, besides the image's size."""
    return tuple(weight.shape[2:]), tuple(stride), tuple(dilation), weight.dtype, weight.device


def _output_shape(image: Tensor, weight: Tensor, stride: list[int]) -> tuple[int, ...]:
    return (image.shape[0], weight.shape[0], image.shape[2] // stride[0], image.shape[3] // stride[1])


def _image_shape(d_output: Tensor, weight: Tensor, stride: list[int], groups: int) -> tuple[int, ...]:
    height, width = d_output.shape[2] * stride[0], d_output.shape[3] * stride[1]
    return (d_output.shape[0], weight.shape[1] * groups, height, width)


def _format_of(image: Tensor) -> torch.memory_format:
    """Channels last only where it is that and nothing else, as torch's convolutions have it."""
    last = image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


@equi_conv2d.register_fake
def _(image, weight, stride, dilation, groups):
    return image.new_empty(_output_shape(image, weight, stride)).contiguous(memory_format=_format_of(image))


@equi_conv2d_weight.register_fake
def _(image, d_output, kernel_size, stride, dilation, groups):
    return image.new_empty((d_output.shape[1], image.shape[1] // groups, *kernel_size))


@equi_conv2d_image.register_fake
def _(d_output, weight, stride, dilation, groups):
    shape = _image_shape(d_output, weight, stride, groups)
    return d_output.new_empty(shape).contiguous(memory_format=_format_of(d_output))


def _setup(ctx, inputs, output):
    *tensors, ctx.options = inputs[0], inputs[1], inputs[2:]
    ctx.save_for_backward(*tensors)


def _d_equi_conv2d(ctx, d_output):
    image, weight = ctx.saved_tensors
    needs_image, needs_weight = ctx.needs_input_grad[:2]
    d_image = equi_conv2d_image(d_output, weight, *ctx.options) if needs_image else None
    d_weight = equi_conv2d_weight(image, d_output, weight.shape[2:], *ctx.options) if needs_weight else None
    return d_image, d_weight, None, None, None


def _d_equi_conv2d_image(ctx, image):
    d_output, weight = ctx.saved_tensors
    needs_output, needs_weight = ctx.needs_input_grad[:2]
    d_d_output = equi_conv2d(image, weight, *ctx.options) if needs_output else None
    d_weight = equi_conv2d_weight(image, d_output, weight.shape[2:], *ctx.options) if needs_weight else None
    return d_d_output, d_weight, None, None, None


def _d_equi_conv2d_weight(ctx, weight):
    image, d_output = ctx.saved_tensors
    _, *options = ctx.options
    needs_image, needs_output = ctx.needs_input_grad[:2]
    d_image = equi_conv2d_image(d_output, weight, *options) if needs_image else None
    d_d_output = equi_conv2d(image, weight, *options) if needs_output else None
    return d_image, d_d_output, None, None, None, None


for _op, _derivative in (
    (equi_conv2d, _d_equi_conv2d),
    (equi_conv2d_image, _d_equi_conv2d_image),
    (equi_conv2d_weight, _d_equi_conv2d_weight),
):
    _op.register_autograd(_derivative, setup_context=_setup)
