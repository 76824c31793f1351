"""Which frames of a capture are observed and which are kept to judge the result."""


def split_frames(num_frames: int, hold_out: int | None) -> tuple[list[int], list[int]]:
    """Split the frames of a walk into observed ones and held-out ones.

    Frame i is held out when `i % hold_out == hold_out // 2`: every `hold_out`-th frame, starting half a period in, so
    that each held-out frame lies between observed ones and the first frame is always observed.

    Args:
        num_frames: frames in the capture.
        hold_out: the period, at least 2; 0 or None holds nothing out.

    Returns:
        The observed and the held-out indices, both ascending. A walk shorter than half a period has none held out.

    Raises:
        ValueError: `num_frames` is negative, or `hold_out` is 1 or negative.

    >>> split_frames(16, 8)
    ([0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15], [4, 12])
    >>> split_frames(3, None)
    ([0, 1, 2], [])
    """
    if num_frames < 0:
        raise ValueError(f"num_frames: expected 0 or more, got {num_frames}")
    if hold_out is None or hold_out == 0:
        return list(range(num_frames)), []
    if hold_out < 2:
        raise ValueError(f"hold_out: expected 2 or more (or 0 to hold nothing out), got {hold_out}")
    held_out = list(range(hold_out // 2, num_frames, hold_out))
    observed = [index for index in range(num_frames) if index % hold_out != hold_out // 2]
    return observed, held_out
