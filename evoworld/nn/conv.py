"""Convolutions of equirectangular images, in the place of torch.nn.Conv2d: its arguments, its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evoworld.ops.library import autocast_dtype

from .equi_conv import equi_conv2d, same_padding
from .pad import SphericalPad2d, spherical_pad

Size = int | tuple[int, int]
_PADS = (nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)


class _PanoramaConv2d(nn.Conv2d):
    """What both convolutions share: Conv2d's parameters, without its padding with zeros."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: str | Size = "same",
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            dilation=dilation,
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self._extent = tuple(gap * (taps - 1) + 1 for taps, gap in zip(self.kernel_size, self.dilation))
        self.padding = self._resolved(_checked_padding(padding))
        self.padding_mode = "spherical"

    def _resolved(self, padding: str | tuple[int, int]) -> str | tuple[int, int]:
        return padding

    def _check_image(self, image: Tensor) -> None:
        if image.ndim not in (3, 4) or image.shape[-3] != self.in_channels:
            raise ValueError(f"image: expected [B, {self.in_channels}, H, W], got {list(image.shape)}")
        height, width = image.shape[-2:]
        if self.padding == "same" and (height % self.stride[0] or width % self.stride[1]):
            raise ValueError(
                f"image: with padding='same' its {height} x {width} pixels must be whole multiples of the stride "
                f"{self.stride}, or the result would not close over the seam: resize the image, or give the padding"
            )


class SphericalConv2d(_PanoramaConv2d):
    """A Conv2d that continues the panorama over the seam and the poles instead of filling in zeros.

    output = Conv2d(padding=0)(spherical_pad(image)): inside the image exactly Conv2d, to which it is the drop-in: the
    arguments, in their order, state dict and cost are Conv2d's; only the default of padding differs. Rolling the
    panorama about the vertical axis, by multiples of the stride, rolls the result.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype: as for torch.nn.Conv2d.
        padding: rows and columns that the image is continued by on each side, or "valid" (none), or "same": H / stride
            rows and W / stride columns come out, output i centred on input pixels [i * stride, (i + 1) * stride), or
            half a pixel beside that where torch has it: as Conv2d(padding="same") without a stride, and as
            Conv2d(padding=kernel_size // 2) with one.

    Calling it takes [B, C, H, W] or [C, H, W] and returns [B, C', H', W'] alike; gradients as of Conv2d, any order.

    Raises:
        ValueError: padding is none of these; on a call, the image has an odd width and rows beyond a pole are needed,
            or with "same" its height or width is no multiple of the stride.

    >>> conv = SphericalConv2d(3, 8, 3)
    >>> conv.load_state_dict(nn.Conv2d(3, 8, 3, padding=1).state_dict())
    <All keys matched successfully>
    >>> conv(torch.rand(1, 3, 16, 32)).shape
    torch.Size([1, 8, 16, 32])
    """

    def _conv_forward(
        self,
        image: Tensor,  # [B, C, H, W]
        weight: Tensor,  # [C', C / groups, kh, kw]
        bias: Tensor | None,  # [C']
    ) -> Tensor:  # [B, C', H', W']
        self._check_image(image)
        top, bottom, left, right = self._sides()
        if top or bottom or left or right:
            image = spherical_pad(image, (left, right, top, bottom))
        return nn.functional.conv2d(image, weight, bias, self.stride, 0, self.dilation, self.groups)

    def _sides(self) -> list[int]:
        if self.padding != "same":
            return [side for side in self.padding for _ in range(2)]
        before = [same_padding(extent, step) for extent, step in zip(self._extent, self.stride)]
        after = [max(extent - step - first, 0) for extent, step, first in zip(self._extent, self.stride, before)]
        return [before[0], after[0], before[1], after[1]]


class EquiConv2d(_PanoramaConv2d):
    """A Conv2d whose kernel lies on the sphere: its taps are those of the equator, turned to each pixel's latitude.

    output(p) = sum_k weight_k image(R_p d_k) + bias, where d_k are the directions of a pixel's neighbours at the
    equator (spaced 2 pi / W and pi / H, times the dilation) and R_p turns the equator's frame to that of pixel p. The
    image is read bilinearly, over the seam and the poles. So a shape gives the same response at any latitude, where
    Conv2d sees it stretched by 1 / cos(latitude); near the equator it is SphericalConv2d up to the pixels' curvature.

    Where the taps look is computed once for each latitude, in float64, for each size, kernel, dtype and device. The
    columns that are multiplied with the kernel are made tile by tile, in the backward pass again: they are never
    stored, and memory is Conv2d's. No sum depends on the order of threads. Runs under torch.compile and autocast.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype: as for torch.nn.Conv2d.
        padding: "same"; or what this amounts to, kernel_size // 2 for an odd kernel, so that a Conv2d's arguments fit.

    Calling it takes [B, C, H, W] or [C, H, W], any width, odd ones too, and returns [B, C', H / stride, W / stride]
    alike, centred as SphericalConv2d with "same". Gradients to image, weight and bias, of every order.

    Raises:
        ValueError: padding that does not keep the panorama closed; on a call, a height or width that is no multiple of
            the stride.

    Source: Coors, Condurache, Geiger, "SphereNet", ECCV 2018 (section 3.1); Fernandez-Labrador et al., "Corners for
    Layout", RA-L 2020 (EquiConvs).

    >>> conv = EquiConv2d(3, 8, kernel_size=3, stride=2)
    >>> conv(torch.rand(1, 3, 16, 32)).shape
    torch.Size([1, 8, 8, 16])
    """

    def _resolved(self, padding: str | tuple[int, int]) -> str:
        same = tuple(map(same_padding, self._extent, self.stride))
        closed = (0 <= 2 * pad - extent + step < step for pad, extent, step in zip(same, self._extent, self.stride))
        if padding == "same" or (padding == same and all(closed)):
            return "same"
        raise ValueError(
            f"padding: EquiConv2d maps the whole sphere to the whole sphere, so for kernel_size {self.kernel_size}, "
            f"stride {self.stride} and dilation {self.dilation} it must be 'same' (its padding before the image is "
            f"{same}), got {padding}"
        )

    def _conv_forward(
        self,
        image: Tensor,  # [B, C, H, W]
        weight: Tensor,  # [C', C / groups, kh, kw]
        bias: Tensor | None,  # [C']
    ) -> Tensor:  # [B, C', H / stride, W / stride]
        self._check_image(image)
        dtype = autocast_dtype(image.device.type)
        if dtype is not None:
            image, weight, bias = (tensor if tensor is None else tensor.to(dtype) for tensor in (image, weight, bias))
        batched = image if image.ndim == 4 else image[None]
        output = equi_conv2d(batched, weight, self.stride, self.dilation, self.groups)
        if bias is not None:
            output = output + bias[:, None, None]
        return output if image.ndim == 4 else output[0]


def replace_conv2d(
    model: nn.Module,
) -> nn.Module:
    """Makes a convolutional model seamless: its padding becomes spherical, its weights stay.

    Every torch.nn.Conv2d that pads, in whatever mode, becomes a SphericalConv2d with the same padding, and every
    ZeroPad2d, ReflectionPad2d, ReplicationPad2d and CircularPad2d without negative sides a SphericalPad2d. Parameters
    are kept, not copied: an optimizer that holds them goes on. Hooks of the replaced modules are not carried over.
    Left as they are: Conv2d without padding or whose weight another module computes (weight and spectral norm),
    transposed convolutions, subclasses, and padding that a model's own forward calls as a function.

    Args:
        model: changed in place, unless it is such a module itself. It must be given panoramas whose width is even at
            every level, and its normalisation and attention layers are not touched.

    Returns:
        model, or what replaces it.

    >>> encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 4, stride=2, padding=1))
    >>> replace_conv2d(encoder)[2]
    SphericalConv2d(8, 4, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1), padding_mode=spherical)
    """
    replaced: dict[nn.Module, nn.Module] = {}  # a module that is used in two places stays one

    def replacement(module: nn.Module) -> nn.Module:
        if module not in replaced:
            replaced[module] = _spherical(module)
        return replaced[module]

    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = replacement(child)
    return replacement(model)


def _spherical(module: nn.Module) -> nn.Module:
    if type(module) in _PADS and min(module.padding) >= 0:
        return SphericalPad2d(module.padding).train(module.training)
    if type(module) is not nn.Conv2d or module.padding in ((0, 0), "valid") or "weight" not in module._parameters:
        return module
    conv = SphericalConv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        bias=False,
        device="meta",
    )
    conv.weight, conv.bias = module.weight, module.bias
    return conv.train(module.training)


def _checked_padding(padding: str | Size) -> str | tuple[int, int]:
    if padding == "same":
        return padding
    if padding == "valid":
        return (0, 0)
    pair = (padding, padding) if isinstance(padding, int) else padding
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(p, int) and p >= 0 for p in pair):
        raise ValueError(f"padding: expected 'same', 'valid', or one or two numbers of pixels >= 0, got {padding!r}")
    return tuple(pair)
