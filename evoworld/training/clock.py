"""How much of a stage is over, in steps or in minutes, counted over all the processes that worked on it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass
class StageClock:
    """Counts a stage's steps and seconds; `seconds` goes into checkpoints, so that a resumed run has what is left.

    Example:
        >>> clock = StageClock(steps=10, minutes=math.inf)
        >>> clock.step = 5
        >>> clock.fraction(), clock.over()
        (0.5, False)
    """

    steps: int  # that the stage lasts, if it is not measured in minutes
    minutes: float  # that it lasts; infinite: measured in steps
    step: int = 0  # done
    seconds: float = 0.0  # spent, up to `_since`
    _since: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Seconds spent so far."""
        return self.seconds + time.monotonic() - self._since

    def fraction(self) -> float:
        """0..1: how much is over."""
        if math.isfinite(self.minutes):
            return min(1.0, self.elapsed() / (60 * self.minutes))
        return min(1.0, self.step / self.steps)

    def over(self) -> bool:
        return self.fraction() >= 1.0

    def seconds_left(self) -> float:
        """As the pace so far says; infinite before there is one."""
        done = self.fraction()
        return self.elapsed() / done * (1 - done) if done > 0 else math.inf
