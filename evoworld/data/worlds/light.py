"""Daylight: the hour and the weather of a world."""

from __future__ import annotations

import math
from random import Random

Light = dict[str, tuple]


def daylight(random: Random, indoors: bool) -> tuple[Light, tuple[str, ...], bool]:
    """(light of a World by its fields' names, words for it, whether lamps are what one sees by)."""
    look = random.choices(["sunny", "overcast", "evening", "night"], [5, 3, 2, 1.5 if indoors else 0.5])[0]
    azimuth = random.uniform(-math.pi, math.pi)
    height = {"sunny": random.uniform(0.4, 1.1), "evening": random.uniform(0.08, 0.3)}.get(look, 0.9)
    sun = (math.cos(azimuth) * math.cos(height), math.sin(azimuth) * math.cos(height), math.sin(height))
    sun_colour, horizon, zenith, ambient = {
        "sunny": ((3.2, 2.9, 2.4), (0.62, 0.75, 0.9), (0.12, 0.27, 0.62), 0.34),
        "overcast": ((0.0, 0.0, 0.0), (0.72, 0.74, 0.77), (0.45, 0.48, 0.53), 0.4),
        "evening": ((2.2, 1.1, 0.45), (0.95, 0.5, 0.25), (0.16, 0.18, 0.4), 0.22),
        "night": ((0.0, 0.0, 0.0), (0.02, 0.025, 0.05), (0.004, 0.006, 0.015), 0.06),
    }[look]
    strength = ambient * random.uniform(0.8, 1.2) * (1.0 if indoors else 1.7)
    above = tuple(strength * (0.6 + 0.4 * z / max(zenith)) for z in zenith)
    below = tuple(0.75 * strength * c for c in (1.0, 0.95, 0.88))
    light = {
        "ambient": (below, above),
        "sun_direction": sun,
        "sun_colour": sun_colour,
        "sky": (horizon, zenith),
    }
    return light, (look,), look in ("evening", "night")
