"""Some of many rays: picked out on the CPU, all of them with the others masked on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from evoworld.geometry import waiting


class Selection:
    """The rays at which a mask is set.

    On the CPU only those are worked on. On a GPU all are, because picking some out would make the host wait
    (`evoworld.geometry.waiting`); `take` then puts in a value with which the others do nothing.

    Example:
        >>> odd = Selection(torch.tensor([False, True, False, True]))
        >>> values = odd.take(torch.arange(4.0), other=float("nan"))
        >>> odd.put(torch.zeros(4), 10 * values).tolist()
        [0.0, 10.0, 0.0, 30.0]
    """

    def __init__(
        self,
        mask: Tensor,  # [R] bool
    ):
        self.mask = mask
        self.index = mask.nonzero()[:, 0] if waiting.sizes_are_free(mask.device) else None  # [S]

    @property
    def empty(self) -> bool:
        """Whether it is known that no ray is selected."""
        return self.index is not None and self.index.numel() == 0

    def take(
        self,
        values: Tensor,  # [R, ...]
        other: float | None = None,
    ) -> Tensor:  # [S, ...], or [R, ...]
        """The values of the selected rays; where all are kept, with `other` for the rest, or their own if None."""
        if self.index is not None:
            return values[self.index]
        return values if other is None else torch.where(self._mask_for(values), values, other)

    def put(
        self,
        values: Tensor,  # [R, ...]
        new: Tensor,  # [S, ...], or [R, ...]
    ) -> Tensor:  # [R, ...]
        """The values, with new ones for the selected rays."""
        if self.index is not None:
            return values.index_copy(0, self.index, new)
        return torch.where(self._mask_for(values), new, values)

    def image_width(self, width: int) -> int:
        """Pixels in a row of the rays that `take` gives, if all of them had so many: 0 (no image) if some are left."""
        return width if self.index is None else 0

    def _mask_for(self, values: Tensor) -> Tensor:
        return self.mask.view(-1, *[1] * (values.ndim - 1))
