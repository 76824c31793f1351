"""Procedural walks by where they lead, which is found without rendering them."""

from __future__ import annotations

from torch import Tensor

from evoworld.data.procedural import ProceduralWalks
from evoworld.data.walk import Walk
from evoworld.data.worlds import World, caption, render
from evoworld.geometry import Panorama


def path_of(walks: ProceduralWalks, index: int) -> Tensor:  # [T, 4, 4]
    """The poses of a walk, at next to no cost: they do not depend on how large its pictures are."""
    small = ProceduralWalks(walks.split, 1, walks.num_frames, walks.num_walks, kinds=walks.kinds)
    return small[index].camera_to_world


def first_frame(walks: ProceduralWalks, index: int) -> Walk:
    """A walk's first frame, without rendering the others."""
    pose, world = path_of(walks, index)[:1], walks.world(index)
    rendering = render(world, Panorama(walks.height, 2 * walks.height), pose)
    words = caption(world, pose[0, :3, 3], world.seed)
    return Walk(rendering.image, rendering.depth, pose, (words,), f"{walks.split}-{index}")


def leads_elsewhere(
    world: World,
    path: Tensor,  # [T, 4, 4]
    num_frames: int,
) -> bool:
    """Whether the last frames of a path all lie in other rooms than its first frame does."""
    rooms = [_room_at(world, pose[:2, 3].tolist()) for pose in path[[0, *range(-num_frames, 0)]]]
    return None not in rooms and rooms[0] not in rooms[1:]


def walks_into_new_rooms(walks: ProceduralWalks, count: int, num_frames: int) -> list[int]:
    """The first indices of walks through apartments whose last frames lie in other rooms than their first.

    Args:
        walks: where to look; as many as it has at most.
        count: how many indices.
        num_frames: how many frames are the last.

    Raises:
        ValueError: there are not as many.
    """
    found: list[int] = []
    for index in range(len(walks)):
        if len(found) == count:
            break
        world = walks.world(index)
        if len(world.rooms) > 1 and leads_elsewhere(world, path_of(walks, index), num_frames):
            found.append(index)
    if len(found) < count:
        raise ValueError(
            f"walks: expected {count} whose last {num_frames} frames lie in a new room, found {len(found)} among "
            f"{len(walks)} of {walks.num_frames} frames"
        )
    return found


def _room_at(world: World, place: list[float]) -> int | None:
    inside = (
        index
        for index, room in enumerate(world.rooms)
        if all(low <= x <= high for low, x, high in zip(room.low, place, room.high, strict=True))
    )
    return next(inside, None)
