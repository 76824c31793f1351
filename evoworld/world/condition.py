"""What a segment of frames is made from: what is known of it, what the memory shows, where it lies, and the words."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .fill import fill_rgbd


@dataclass(frozen=True)
class Condition:
    """The conditions of B segments of T level panoramas H x W, all of a segment with the same yaw.

    ``rgbd`` values are those of `evoworld.world.rgbd`; where a mask or the visibility is 0 they mean nothing.
    """

    known: Tensor  # [B, T, H, W, 4] RGB-D given from outside: a photo, a panorama, a first frame
    known_mask: Tensor  # [B, T, H, W, 2] 0..1: whether the colour, and whether the depth, is known
    memory: Tensor  # [B, T, H, W, 4] RGB-D that the memory shows
    visibility: Tensor  # [B, T, H, W] 0..1: whether what the memory shows was seen
    position: Tensor  # [B, T, 3] metres: of the camera from that of the first frame, x right, y down, z forward
    text: Tensor  # [B, S, E] tokens of the words; S = 0: none
    text_mask: Tensor  # [B, S] bool: which of them are there
    features: Tensor | None = None  # [B, T, h, w, F] the learned memory's, at the size of the model's tokens

    def filled(self) -> Tensor:  # [B, T, H, W, 4]
        """The prediction without a network: what is known, else what the memory shows, else filled from around."""
        colour = torch.where(self.known_mask[..., :1] > 0.5, self.known[..., :3], self.memory[..., :3])
        depth = torch.where(self.known_mask[..., 1:] > 0.5, self.known[..., 3:], self.memory[..., 3:])
        return fill_rgbd(torch.cat((colour, depth), -1), self.seen())

    def seen(self) -> Tensor:  # [B, T, H, W, 2]
        """0..1: what is known or visible, of the colour and of the depth."""
        return torch.stack((self.visibility, self.visibility), -1).maximum(self.known_mask)

    def without_memory(self) -> Condition:
        """The same, as if the memory were empty."""
        features = None if self.features is None else torch.zeros_like(self.features)
        return replace(self, visibility=torch.zeros_like(self.visibility), features=features)

    def without_text(self) -> Condition:
        """The same without words."""
        return replace(self, text_mask=torch.zeros_like(self.text_mask))

    def roll(self, columns: int) -> Condition:
        """The same, turned to the right by whole pixels; between those of tokens, features are interpolated."""
        width = self.known.shape[-2]
        turn = -2 * torch.pi * columns / width  # of the axes, as the image turns the other way
        cosine, sine = torch.cos(torch.tensor(turn)).item(), torch.sin(torch.tensor(turn)).item()
        x, y, z = self.position.unbind(-1)
        images = ("known", "known_mask", "memory")
        rolled = {name: getattr(self, name).roll(columns, -2) for name in images}
        features = self.features
        if features is not None:
            whole, rest = divmod(columns * features.shape[-2], width)
            features = features.roll(whole, -2)
            if rest:
                features = features.lerp(features.roll(1, -2), rest / width)
        position = torch.stack((cosine * x - sine * z, y, sine * x + cosine * z), -1)
        visibility = self.visibility.roll(columns, -1)
        return replace(self, **rolled, visibility=visibility, features=features, position=position)

    def to(self, device: torch.device | str) -> Condition:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: x.to(device) for name, x in moved.items() if x is not None})
