"""What a camera sees of a procedural world: exact colours, depth and object ids, on the world's device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from evoworld.geometry import Camera

from .cast import cast
from .patterns import mix
from .scene import World
from .solids import normals

_OFF_SURFACE = 1e-3  # metres: where rays towards a light begin
_STEEPEST = 0.15  # cosine: a pixel covers more of a surface the more slanted it is, up to this
_FAR = 1e4  # metres: as far as the sun
_TILE = 4  # pixels: the rays of a tile of 4 x 4 are cast as a bundle, and those of 4 x 4 tiles as a family
_RAYS_AT_ONCE = {"cpu": 1 << 14, "cuda": 1 << 20}  # so that temporary tensors fit the cache, or fill the card


@dataclass(frozen=True)
class Rendering:
    """Frames of a world."""

    image: torch.Tensor  # [T, H, W, 3] 0..1, as displayed
    depth: torch.Tensor  # [T, H, W] metres, the camera's kind of depth; 0: sky
    object_id: torch.Tensor  # [T, H, W] int64; 0: the building, the ground or the sky
    camera_to_world: torch.Tensor  # [T, 4, 4]


def render(
    world: World,
    camera: Camera,
    camera_to_world: torch.Tensor,  # [T, 4, 4]
) -> Rendering:
    """Renders frames by casting a ray through each pixel's centre, and one towards the room's lamp and to the sun."""
    camera_to_world = camera_to_world.to(world.solids.centre.device)
    at_once = max(1, _RAYS_AT_ONCE.get(camera_to_world.device.type, 1 << 20) // camera.num_rays)
    parts = [_render(world, camera, poses) for poses in camera_to_world.split(at_once)]
    image, depth, object_id = (torch.cat(part) for part in zip(*parts, strict=True))
    return Rendering(image, depth, object_id, camera_to_world)


def _render(world: World, camera: Camera, camera_to_world):
    """(image, depth, object_id) of a few frames."""
    shape = (len(camera_to_world), camera.height, camera.width)
    rays = [camera.rays(pose) for pose in camera_to_world]
    origins, directions = (
        _tiles(torch.stack([ray[i] for ray in rays]).view(*shape, 3)) for i in range(2)
    )  # [F, G, K, 3]
    distance, solid = cast(world.solids, origins, directions)
    hit = distance.isfinite()
    distance = distance.where(hit, 0)
    points = origins + distance[..., None] * directions
    colour = _shade(world, points, directions, solid, hit, distance * camera.pixel_angle())
    colour = torch.where(hit[..., None], colour, _sky(world, directions))
    object_id = world.solids.object_id[solid].where(hit, 0)
    depth = _untiled(distance[..., None], shape)[..., 0]
    return (
        _displayed(_untiled(colour, shape)),
        torch.stack([camera.depth_from_range(frame) for frame in depth]),
        _untiled(object_id[..., None], shape)[..., 0],
    )


def _shade(world: World, points, directions, solid, hit, pixel):
    """The light that points [F, G, K, 3] send back [F, G, K, 3]; where nothing was hit it means nothing."""
    normal = normals(world.solids, points, solid)
    footprint = pixel / (normal * directions).sum(-1).abs().clamp_min(_STEEPEST)
    material = world.solids.material[solid]
    start = points + _OFF_SURFACE * normal

    below, above = world.ambient
    light = torch.lerp(below, above, 0.5 + 0.5 * normal[..., 2:])
    room = _room_of(world, start)
    to_lamp = world.lamps[room] - start
    distance = to_lamp.norm(dim=-1)
    to_lamp = to_lamp / distance[..., None]
    facing = (normal * to_lamp).sum(-1).clamp_min(0)
    lit = hit & (world.lamp_colours[room].sum(-1) > 0)
    received = _unblocked(world, start, to_lamp, distance, facing / distance.square().clamp_min(0.05), lit)
    light = light + received[..., None] * world.lamp_colours[room]

    if world.sun_colour.any():
        facing = (normal * world.sun_direction).sum(-1).clamp_min(0)
        far = torch.full_like(facing, _FAR)
        received = _unblocked(world, start, world.sun_direction.expand_as(start), far, facing, hit)
        light = light + received[..., None] * world.sun_colour
    emission = world.emissions[material][..., None]
    return _albedo(world, points, normal, solid, material, footprint) * (light + emission)


def _unblocked(world: World, start, towards, distance, received, lit):
    """What points receive [F, G, K] of what a light would send them: nothing where something stands between."""
    lit = lit & (received > 0)
    nearest, _ = cast(world.shadow_casters, start, towards, distance.where(lit, 0))
    return received.where(lit & (nearest >= distance), 0)


def _albedo(world: World, points, normal, solid, material, footprint):
    local = world.solids.to_local(points - world.solids.centre[solid], solid)
    facing = world.solids.to_local(normal, solid).abs()
    x, y, z = local.unbind(-1)
    up, along_x = facing[..., 2] > 0.7, facing[..., 0] > facing[..., 1]
    u = torch.where(up, x, torch.where(along_x, y, x))
    v = torch.where(up, y, z)
    seed = world.seed % 65521 + 31 * solid
    share = mix(world.patterns[material], world.periods[material], seed, u, v, footprint)
    first, second = world.colours[material].unbind(-2)
    return torch.lerp(first, second, share[..., None])


def _room_of(world: World, points: torch.Tensor) -> torch.Tensor:  # [..., 3] -> [...]
    """The room whose rectangle is nearest to each point."""
    x, y = points[..., :1], points[..., 1:2]
    x0, y0, x1, y1 = world.room_bounds.unbind(-1)
    outside = torch.maximum(torch.maximum(x0 - x, x - x1), torch.maximum(y0 - y, y - y1))
    return outside.argmin(-1)


def _sky(world: World, directions: torch.Tensor) -> torch.Tensor:
    horizon, zenith = world.sky
    height = directions[..., 2:]
    colour = torch.lerp(horizon, zenith, height.clamp(0, 1).sqrt())
    cosine = (directions * normalize(world.sun_direction, dim=0)).sum(-1, keepdim=True).clamp_min(0)
    return colour + world.sun_colour * (0.15 * cosine**32 + 2 * (cosine > 0.9995))


def _displayed(linear: torch.Tensor) -> torch.Tensor:
    """Soft highlights, then the display's gamma."""
    return (1 - torch.exp(-1.3 * linear.clamp_min(0))).pow(1 / 2.2)


def _tiles(image: torch.Tensor) -> torch.Tensor:  # [T, H, W, C] -> [F, G, K, C]
    """Pixels tile by tile; rows and columns that fill the last tiles repeat the last pixel."""
    size = _TILE * _TILE
    height, width = (-(-pixels // size) for pixels in image.shape[1:3])
    rows = torch.arange(height * size, device=image.device).clamp_max(image.shape[1] - 1)
    columns = torch.arange(width * size, device=image.device).clamp_max(image.shape[2] - 1)
    split = image[:, rows][:, :, columns].view(-1, height, _TILE, _TILE, width, _TILE, _TILE, image.shape[3])
    return split.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, size, size, image.shape[3])


def _untiled(tiles: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:  # [F, G, K, C] -> [T, H, W, C]
    """The inverse of `_tiles` for T, H and W."""
    frames, height, width = shape
    size = _TILE * _TILE
    blocks = tiles.view(frames, -(-height // size), -(-width // size), _TILE, _TILE, _TILE, _TILE, tiles.shape[-1])
    return blocks.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)[:, :height, :width]
