"""Where the host learns the size of a result for nothing, and where it would have to wait for a device to tell it."""

from __future__ import annotations

import torch


def sizes_are_free(device: torch.device) -> bool:
    """Whether picking some elements out of many, whose number only the data tell, costs no wait.

    True on the CPU, where picking saves work. A GPU runs behind the host: to learn how many there are the host would
    have to stop until the GPU has caught up, so code that runs there keeps all elements and masks those it does not
    want.
    """
    return device.type == "cpu"
