"""Whether a generated world is the one its caption asked for, to a classifier that has learnt from true renderings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from evoworld.data.walk import Walk

from .efficientnet import NUM_FEATURES, EfficientNetLite0, panorama_features

LEAST_COUNT = 5  # captions that a word must stand in for it to be learnt
RIDGE = 2.0  # of the mean diagonal of the kernel: the best of 0.1 to 10 on a fifth of the training split
ROWS = 8  # latitudes whose mean colours are looked at
BANDS, SHADES = 3, 4  # latitudes whose shares of SHADES^3 colours are looked at
BLOCKS = (NUM_FEATURES, 3 * ROWS, BANDS * SHADES**3)  # of a description; each counts as much


def panorama_description(
    model: EfficientNetLite0,
    image: Tensor,  # [B, H, 2H, 3] 0..1
) -> Tensor:  # [B, F]
    """What a panorama shows, whatever its yaw: the network's mean features, colours by latitude, shares of colours."""
    features = panorama_features(model, image).mean(1)
    image = image.float()
    rows = torch.nn.functional.adaptive_avg_pool2d(image.permute(0, 3, 1, 2), (ROWS, 1)).flatten(1)
    shade = (image * SHADES).clamp(0, SHADES - 1).long()
    colour = (shade[..., 0] * SHADES + shade[..., 1]) * SHADES + shade[..., 2]  # [B, H, W]
    shares = []
    for band in colour.flatten(2).chunk(BANDS, 1):
        found = band.flatten(1)
        counts = torch.zeros(len(image), SHADES**3, device=image.device)
        shares.append(
            (counts.scatter_add_(1, found, torch.ones_like(found, dtype=counts.dtype)) / found.shape[1]).sqrt()
        )
    return torch.cat((features, rows, *shares), 1)


def choose_captions(walks: Sequence[Walk], count: int) -> list[Walk]:
    """Walks whose first captions have as few words in common as possible: the first, then ever the least like them.

    Raises:
        ValueError: fewer walks than asked for.
    """
    if len(walks) < count:
        raise ValueError(f"walks: expected at least {count}, got {len(walks)}")
    words = [words_of(walk.captions[0]) for walk in walks]
    chosen = [0]
    while len(chosen) < count:
        rest = [i for i in range(len(walks)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(_unlike(words[i], words[j]) for j in chosen)))
    return [walks[i] for i in chosen]


def _unlike(first: set[str], second: set[str]) -> float:
    return 1 - len(first & second) / max(len(first | second), 1)


def words_of(caption: str) -> set[str]:
    """The words of a caption and its pairs of neighbouring words.

    >>> sorted(words_of("A red sofa"))
    ['a', 'a red', 'red', 'red sofa', 'sofa']
    """
    words = re.findall(r"[a-z0-9']+", caption.lower())
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


@dataclass(frozen=True)
class CaptionClassifier:
    """Tells which of some captions a panorama fits best.

    Each caption is the vector of the words in it, rare ones longer, of length 1; ridge regression from descriptions of
    true renderings to the vectors of their captions says what words a picture calls for; the nearest caption is the one
    with the largest cosine to it.

    >>> descriptions = torch.tensor([[0.0], [1.0]]).repeat(20, 1)
    >>> classifier = fit_classifier(descriptions, ["a kitchen", "a garden"] * 20)
    >>> classifier.nearest(torch.tensor([[0.1], [0.8]]), ["the garden", "the kitchen"]).tolist()
    [1, 0]
    """

    words: dict[str, int]
    rarity: Tensor  # [K] of each word
    mean_words: Tensor  # [K]
    mean: Tensor  # [F] of the descriptions
    scale: Tensor  # [F]
    slope: Tensor  # [F, K]

    def embed(self, captions: Sequence[str]) -> Tensor:  # [B, K]
        """Captions as vectors, relative to the mean caption."""
        return _vectors(self.words, self.rarity, captions) - self.mean_words

    def nearest(
        self,
        description: Tensor,  # [B, F]
        captions: Sequence[str],
    ) -> Tensor:  # [B] int64
        """The number of the caption that fits each description best. No gradient."""
        wanted = ((description.double() - self.mean) / self.scale) @ self.slope
        return torch.nn.functional.cosine_similarity(wanted[:, None], self.embed(captions)[None], dim=-1).argmax(1)


def fit_classifier(
    description: Tensor,  # [B, F]
    captions: Sequence[str],
    blocks: Sequence[int] | None = None,
    ridge: float = RIDGE,
) -> CaptionClassifier:
    """The classifier that true renderings and their captions teach.

    Args:
        description: `[B, F]`, of `panorama_description`.
        captions: B of them.
        blocks: numbers of neighbouring columns that count as much together as any other block; None: one block.
        ridge: how much large slopes cost, in units of the descriptions' mean squared length.

    Raises:
        ValueError: not as many captions as descriptions, or no word in enough captions.
    """
    if len(description) != len(captions):
        raise ValueError(f"captions: expected one for each of {len(description)} descriptions, got {len(captions)}")
    counts = Counter(word for caption in captions for word in words_of(caption))
    kept = sorted(word for word, count in counts.items() if count >= LEAST_COUNT)
    if not kept:
        raise ValueError(f"captions: expected words that stand in at least {LEAST_COUNT} captions, found none")
    words = {word: number for number, word in enumerate(kept)}
    rarity = torch.tensor([len(captions) / counts[word] for word in kept], dtype=torch.float64).log1p()
    vectors = _vectors(words, rarity, captions)
    x = description.detach().double().cpu()
    size = torch.tensor(blocks or [x.shape[1]])
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-4) * size.repeat_interleave(size).sqrt()
    x, mean_words = (x - mean) / scale, vectors.mean(0)
    kernel = x @ x.mT
    damping = ridge * kernel.diagonal().mean() * torch.eye(len(x), dtype=torch.float64)
    slope = x.mT @ torch.linalg.solve(kernel + damping, vectors - mean_words)
    return CaptionClassifier(words, rarity, mean_words, mean, scale, slope)


def _vectors(words: dict[str, int], rarity: Tensor, captions: Sequence[str]) -> Tensor:  # [B, K]
    vectors = torch.zeros(len(captions), len(words), dtype=torch.float64)
    for vector, caption in zip(vectors, captions):
        known = [words[word] for word in words_of(caption) if word in words]
        vector[known] = rarity[known]
    return torch.nn.functional.normalize(vectors, dim=-1)
