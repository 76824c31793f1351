"""Conditions for each thing the model is asked for: words, a panorama, a photograph, depth, going on, coming back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from evoworld.geometry import Panorama, Pinhole, pinhole_to_panorama

from .condition import Condition
from .memory import Memory
from .rgbd import encode_rgbd

EDGE = 0.999  # share of a panorama's pixel that a photograph must cover for it to be known


def render_memory(
    memory: Memory,
    poses: Tensor,  # [T, 4, 4]
    camera: Panorama,
) -> tuple[Tensor, Tensor]:  # [T, H, W, 4], [T, H, W]
    """What the memory shows at poses, as `encode_rgbd` has it, and whether it was seen.

    Raises:
        ValueError: a pose is not rigid or not finite.

    Example:
        >>> memory, poses = Memory(0.1), torch.eye(4).expand(2, 4, 4)
        >>> rgbd, visibility = render_memory(memory, poses, Panorama(4, 8))
        >>> rgbd.shape, visibility.max().item()
        (torch.Size([2, 4, 8, 4]), 0.0)
    """
    views = [memory.query(camera, pose) for pose in poses]
    rgbd = torch.stack([encode_rgbd(view.features, view.depth) for view in views])
    return rgbd, torch.stack([view.visibility for view in views]).clamp(0, 1)


def relative_positions(
    poses: Tensor,  # [T, 4, 4]
) -> Tensor:  # [T, 3]
    """Where the cameras stand, in the axes of the first: metres right, down and forward.

    Example:
        >>> poses = torch.eye(4).repeat(2, 1, 1)
        >>> poses[1, 2, 3] = 0.5
        >>> relative_positions(poses)[1].tolist()
        [0.0, 0.0, 0.5]
    """
    return (poses[:, :3, 3] - poses[:1, :3, 3]) @ poses[0, :3, :3]


def text_condition(
    poses: Tensor,  # [T, 4, 4] level, of one yaw
    height: int,
    text: tuple[Tensor, Tensor],  # [1, S, E], [1, S]
) -> Condition:
    """From words alone: a segment of which nothing is known and of which the memory shows nothing.

    Args:
        poses: `[T, 4, 4]`.
        height: H of the panoramas.
        text: the tokens and which of them are there, as a text encoder gives them; S = 0 for no words.

    Returns:
        `Condition` with B = 1.

    Example:
        >>> nothing = torch.zeros(1, 0, 384), torch.zeros(1, 0, dtype=torch.bool)
        >>> condition = text_condition(torch.eye(4).expand(3, 4, 4), 8, nothing)
        >>> condition.known.shape, condition.filled().abs().max().item()
        (torch.Size([1, 3, 8, 16, 4]), 0.0)
    """
    tokens, mask = text
    shape = (1, poses.shape[0], height, 2 * height)
    known, known_mask, memory = (torch.zeros(*shape, n, device=tokens.device) for n in (4, 2, 4))
    position = relative_positions(poses).to(tokens.device)[None]
    return Condition(known, known_mask, memory, torch.zeros(shape, device=tokens.device), position, tokens, mask)


def continuation(
    memory: Memory,
    poses: Tensor,  # [T, 4, 4] level, of one yaw
    height: int,
    text: tuple[Tensor, Tensor],  # [1, S, E], [1, S]
) -> Condition:
    """From what the memory shows at the poses, for places seen before and for those beyond."""
    condition = text_condition(poses, height, text)
    shown, visibility = render_memory(memory, poses, Panorama(height, 2 * height))
    return replace(condition, memory=shown[None].to(condition.known), visibility=visibility[None].to(condition.known))


def with_known(
    condition: Condition,
    frame: int,
    image: Tensor,  # [H, W, 3] 0..1
    mask: Tensor | None = None,  # [H, W] 0..1
    depth: Tensor | None = None,  # [H, W] metres
) -> Condition:
    """The same, with a frame's colours given where the mask says so, and its depth where one is given.

    A panorama is known everywhere, a photograph where it lies (`lay_photo`); depth that is not given is estimated.

    Raises:
        ValueError: the image, the mask or the depth is not of the condition's size.

    Example:
        >>> nothing = torch.zeros(1, 0, 384), torch.zeros(1, 0, dtype=torch.bool)
        >>> condition = text_condition(torch.eye(4)[None], 8, nothing)
        >>> depth_wanted = with_known(condition, 0, torch.ones(8, 16, 3))
        >>> depth_wanted.known_mask[0, 0].mean((0, 1)).tolist(), depth_wanted.filled()[0, 0, 0, 0].tolist()
        ([1.0, 0.0], [1.0, 1.0, 1.0, 0.0])
    """
    height, width = condition.known.shape[2:4]
    for name, tensor, expected in (
        ("image", image, (height, width, 3)),
        ("mask", mask, (height, width)),
        ("depth", depth, (height, width)),
    ):
        if tensor is not None and tuple(tensor.shape) != expected:
            raise ValueError(f"{name}: expected {list(expected)}, got {list(tensor.shape)}")
    colour_known = torch.ones_like(image[..., 0]) if mask is None else mask.to(image.dtype)
    given = torch.zeros_like(colour_known) if depth is None else depth
    depth_known = torch.zeros_like(colour_known) if depth is None else colour_known
    known, known_mask = condition.known.clone(), condition.known_mask.clone()
    known[0, frame] = encode_rgbd(image, given).to(known)
    known_mask[0, frame] = torch.stack((colour_known, depth_known), -1).to(known)
    return replace(condition, known=known, known_mask=known_mask)


def fit_panorama(
    image: Tensor,  # [h, 2h, C] or [h, 2h]
    height: int,
    mode: str = "area",
) -> Tensor:  # [H, 2H, C] or [H, 2H]
    """A panorama at another size: the mean over each pixel's area, or with mode "nearest" (for depth) a value of it.

    Raises:
        ValueError: the image is not twice as wide as high.
    """
    if image.ndim not in (2, 3) or image.shape[1] != 2 * image.shape[0]:
        raise ValueError(f"image: expected a panorama twice as wide as high, got {list(image.shape)}")
    planes = image[None, None] if image.ndim == 2 else image.permute(2, 0, 1)[None]
    if mode == "area" and height > image.shape[0]:
        mode = "bilinear"
    fitted = F.interpolate(planes, size=(height, 2 * height), mode="nearest-exact" if mode == "nearest" else mode)[0]
    return fitted[0] if image.ndim == 2 else fitted.permute(1, 2, 0)


def lay_photo(
    image: Tensor,  # [h, w, 3] 0..1
    fov: float,
    height: int,
    depth: Tensor | None = None,  # [h, w] metres along the axis
) -> tuple[Tensor, Tensor, Tensor | None]:  # [H, 2H, 3], [H, 2H], [H, 2H]
    """A perspective photograph in the middle of a panorama, its mask, and its depth along the rays.

    Args:
        image: `[h, w, 3]`.
        fov: degrees between its left and right edge, above 0 and below 180.
        height: H of the panorama.
        depth: `[h, w]`, if it is known.

    Raises:
        ValueError: fov or a shape is another.

    Example:
        >>> panorama, mask, _ = lay_photo(torch.ones(48, 48, 3), 90.0, 16)
        >>> panorama.shape, round(mask.mean().item(), 2)
        (torch.Size([16, 32, 3]), 0.12)
    """
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"image: expected [h, w, 3], got {list(image.shape)}")
    if not 0 < fov < 180:
        raise ValueError(f"fov: expected degrees between 0 and 180, got {fov}")
    camera = Pinhole.from_fov(image.shape[0], image.shape[1], math.radians(fov))
    distance = None
    if depth is not None:
        if depth.shape != image.shape[:2]:
            raise ValueError(f"depth: expected {list(image.shape[:2])}, got {list(depth.shape)}")
        distance, seen = pinhole_to_panorama(camera.range_from_depth(depth.float()), camera, height, mode="nearest")
        distance = torch.where(seen > 0, distance, 0.0)
    # Pixels of the photograph at its centre as large as the panorama's, so that none is passed over.
    shrink = math.pi / height * camera.fx
    if shrink > 1:
        size = [max(round(n / shrink), 1) for n in image.shape[:2]]
        planes = F.interpolate(image.permute(2, 0, 1)[None], size=size, mode="area")[0]
        image = planes.permute(1, 2, 0).contiguous()
        camera = Pinhole(*size, camera.fx * size[1] / camera.width, camera.fy * size[0] / camera.height,
                         size[1] / 2, size[0] / 2)  # fmt: skip
    panorama, mask = pinhole_to_panorama(image, camera, height)
    return panorama, (mask >= EDGE).to(panorama.dtype), distance


def stack_conditions(conditions: Sequence[Condition]) -> Condition:
    """Several conditions of the same sizes as one batch; texts are padded to the longest.

    Example:
        >>> text = [(torch.zeros(1, n, 384), torch.ones(1, n, dtype=torch.bool)) for n in (2, 5)]
        >>> batch = stack_conditions([text_condition(torch.eye(4)[None], 4, t) for t in text])
        >>> batch.known.shape[0], batch.text_mask.sum(1).tolist()
        (2, [2, 5])
    """
    longest = max(c.text.shape[1] for c in conditions)
    stacked = {}
    for name in (field.name for field in fields(Condition)):
        parts = [getattr(c, name) for c in conditions]
        if name == "text":
            parts = [F.pad(x, (0, 0, 0, longest - x.shape[1])) for x in parts]
        elif name == "text_mask":
            parts = [F.pad(x, (0, longest - x.shape[1])) for x in parts]
        stacked[name] = None if parts[0] is None else torch.cat(parts)
    return Condition(**stacked)
