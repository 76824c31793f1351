"""python -m benchmarks.picture_sphere_attention: what attention with a zonal bias does to a panorama, for README.

With query zero and areas as weights it is a blur on the sphere. Above: a panorama, blurred by sphere_attention, and
blurred as if it were a plain image, equally wide at the horizon. Below: where three queries look, and what both blurs
look like straight up.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv1d, interpolate, normalize, pad

from benchmarks.inputs import DEFAULT_CAPTURE
from evoworld.apps.media.stills import to_uint8
from evoworld.geometry import Panorama, Pinhole, panorama_to_pinhole, pose_from_euler
from evoworld.ops import sphere_attention

KAPPA = 80.0  # of the density exp(kappa x.y): e^-1/2 at 6.4 degrees
PIXELS = Panorama(256, 512)  # of a tile
KEYS = Panorama(128, 256)
GAP = 8  # between tiles
UP = pose_from_euler(torch.tensor([0.0, 0.0, 0.0, math.pi / 2, 0.0, 0.0]))[:3, :3]
QUERIES = torch.tensor([[0.1, -1.0, 0.1], [0.05, -0.2, -1.0], [-0.6, 0.4, 1.0]])  # by the pole, at the seam, ahead
COLORS = torch.tensor([[1.0, 0.3, 0.2], [0.2, 0.9, 0.4], [0.3, 0.5, 1.0]])


def attend(x: Tensor, value: Tensor) -> Tensor:  # [L, 3], [S, 16] -> [L, 16]
    """Attention of queries zero in directions x to the pixels of KEYS."""
    query, key = torch.zeros(1, 1, len(x), 16), torch.zeros(1, 1, KEYS.num_rays, 16)
    directions, area = KEYS.directions().flatten(0, -2), KEYS.solid_angle().flatten()
    return sphere_attention(
        query, key, value[None, None], x, directions, torch.tensor([[0.0, KAPPA]]), key_log_weight=area.log()
    )[0, 0]


def blur_on_the_sphere(image: Tensor) -> Tensor:  # [H, W, 3] of PIXELS
    value = interpolate(image.permute(2, 0, 1)[None], (KEYS.height, KEYS.width), mode="area")[0].flatten(1).T
    parts = [attend(x, pad(value, (0, 13))) for x in PIXELS.directions().flatten(0, -2).split(4096)]
    return torch.cat(parts)[:, :3].reshape(image.shape)


def blur_in_the_plane(image: Tensor) -> Tensor:  # [H, W, 3] of PIXELS
    sigma = PIXELS.height / math.pi / KAPPA**0.5
    reach = math.ceil(3 * sigma)
    kernel = normalize((-0.5 * (torch.arange(-reach, reach + 1) / sigma).square()).exp(), p=1, dim=0)[None, None]
    for dim in (0, 1):
        lines = image.movedim(dim, -1)
        padded = pad(lines.reshape(1, -1, lines.shape[-1]), (reach, reach), mode="replicate")
        image = conv1d(padded.movedim(1, 0), kernel).reshape(lines.shape).movedim(-1, dim)
    return image


def where_queries_look(image: Tensor) -> Tensor:  # [H, W, 3] of PIXELS
    """The attention of each of QUERIES, which is the gradient of what it gets to the values, in a colour of its own."""
    value = torch.zeros(KEYS.num_rays, 16, requires_grad=True)
    attend(normalize(QUERIES, dim=-1), value).diagonal().sum().backward()
    density = value.grad[:, : len(QUERIES)] / KEYS.solid_angle().view(-1, 1)
    shares = (density / density.amax(0)).T.reshape(1, -1, KEYS.height, KEYS.width)
    shares = interpolate(shares, (PIXELS.height, PIXELS.width), mode="bilinear")[0]  # [3, H, W]
    grey = 0.8 * image.mean(-1, keepdim=True)
    return grey * (1 - shares.sum(0)[..., None]) + torch.einsum("ihw, ic -> hwc", shares, COLORS)


def picture(panorama: Tensor) -> Tensor:  # [H, 2H, 3] -> [H', W', 3]
    image = interpolate(panorama.permute(2, 0, 1)[None], (PIXELS.height, PIXELS.width), mode="area")[0].permute(1, 2, 0)
    camera = Pinhole.from_fov(PIXELS.height, PIXELS.width, math.radians(130))
    blurs = blur_on_the_sphere(image), blur_in_the_plane(image)
    upwards = [panorama_to_pinhole(blurred, camera, UP) for blurred in blurs]
    rows = [image, *blurs], [where_queries_look(image), *upwards]
    framed = [torch.cat([pad(tile, (0, 0, 0, GAP, 0, GAP), value=1.0) for tile in row], 1) for row in rows]
    return torch.cat(framed)[:-GAP, :-GAP]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    default = DEFAULT_CAPTURE / "rgb" / "0009.jpg"
    parser.add_argument("panorama", nargs="?", type=Path, default=default, help="an image of H x 2H pixels")
    parser.add_argument("--out", type=Path, default=Path("docs/sphere_attention.jpg"), help="the JPEG to write")
    arguments = parser.parse_args()
    panorama = torch.from_numpy(numpy.array(Image.open(arguments.panorama).convert("RGB"))).float() / 255
    Image.fromarray(to_uint8(picture(panorama))).save(arguments.out, quality=90)
    print(arguments.out)


if __name__ == "__main__":
    main()
