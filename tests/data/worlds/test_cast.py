"""Casting against the solids' own inequalities, which know nothing of rays."""

import pytest
import torch

from evoworld.data.worlds.cast import cast
from evoworld.data.worlds.solids import BOX, CYLINDER, ELLIPSOID, SolidList, normals


@pytest.fixture(scope="module")
def solids():
    generator = torch.Generator().manual_seed(0)
    made = SolidList()
    for i in range(40):
        centre, half, yaw = torch.rand(7, generator=generator).split((3, 3, 1))
        yaw = 6 * yaw.item() if i % 2 else 0.0
        made.add(i % 3, tuple((6 * centre - 3).tolist()), tuple((0.5 * half + 0.1).tolist()), i, 100 + i, yaw)
    return made.build()


@pytest.fixture(scope="module")
def rays():
    """8 families of 4 bundles of 16 rays, some along axes."""
    generator = torch.Generator().manual_seed(1)
    origins = torch.rand(8, 4, 16, 3, generator=generator) * 6 - 3
    directions = torch.randn(8, 4, 16, 3, generator=generator)
    directions[0, :2] = torch.tensor([0.0, 0.0, -1.0])
    directions[0, 2:, :, 1] = 0
    return origins, torch.nn.functional.normalize(directions, dim=-1)


def level_in(solids, points):  # [..., 3] -> [..., P]: below 1 inside of a solid, 1 on its surface
    points = points.double()
    levels = []
    for i in range(len(solids.centre)):
        c, s = solids.cosine[i].double(), solids.sine[i].double()
        x, y, z = (points - solids.centre[i].double()).unbind(-1)
        x, y, z = (
            v.abs() / h for v, h in zip((c * x + s * y, c * y - s * x, z), solids.half_size[i].double(), strict=True)
        )
        boxes, ellipsoids, _ = solids.counts
        if i < boxes:
            levels.append(torch.stack((x, y, z)).amax(0))
        elif i < boxes + ellipsoids:
            levels.append((x**2 + y**2 + z**2).sqrt())
        else:
            levels.append(torch.maximum((x**2 + y**2).sqrt(), z))
    return torch.stack(levels, -1)


def test_rays_end_on_the_first_surface_that_they_enter(solids, rays):
    origins, directions = rays
    distance, solid = cast(solids, origins, directions)
    hit = distance.isfinite()
    assert 0.1 < hit.float().mean() < 0.9
    ends = origins[hit] + distance[hit, None] * directions[hit]
    assert (level_in(solids, ends).gather(-1, solid[hit][:, None]) - 1).abs().max() < 1e-4

    reach = distance.where(hit, 12.0)
    steps = torch.linspace(0, 1, 400)[1:-1]
    along = origins[..., None, :] + (reach[..., None] * steps)[..., None] * directions[..., None, :]
    inside = level_in(solids, along) < 1 - 1e-3  # [F, G, K, S, P]
    entered = inside[..., 1:, :] & ~inside[..., :-1, :]
    assert not entered.any()


def test_bundles_change_nothing(solids, rays):
    origins, directions = rays
    distance, solid = cast(solids, origins, directions)
    order = torch.randperm(512, generator=torch.Generator().manual_seed(2))
    for shape in ((1, 1, 512, 3), (512, 1, 1, 3), (4, 8, 16, 3)):
        shuffled = cast(solids, *(x.reshape(-1, 3)[order].view(shape) for x in (origins, directions)))
        assert shuffled[0].flatten().equal(distance.flatten()[order])
        assert shuffled[1].flatten().equal(solid.flatten()[order])


def test_looks_as_far_as_asked_and_leaves_rays_out(solids, rays):
    origins, directions = rays
    distance, _ = cast(solids, origins, directions)
    far = torch.full_like(distance, 2.0)
    far[..., ::3] = 0
    near, _ = cast(solids, origins, directions, far)
    asked = (far > 0) & (distance <= 2)
    assert near[asked].equal(distance[asked]) and asked.any()
    assert (near[far > 0] >= distance[far > 0]).all()


@pytest.mark.parametrize("kind", [BOX, ELLIPSOID, CYLINDER])
def test_distance_and_normal_from_all_sides(kind):
    made = SolidList()
    made.add(kind, (1.0, 2.0, 3.0), (0.5, 0.25, 0.75), 0, 1)
    solids = made.build()
    axes = torch.cat((torch.eye(3), -torch.eye(3)))
    half = torch.tensor([0.5, 0.25, 0.75] * 2)
    centre = torch.tensor([1.0, 2.0, 3.0])
    distance, solid = cast(solids, (centre + 4 * axes)[:, None, None], -axes[:, None, None])
    torch.testing.assert_close(distance[:, 0, 0], 4 - half)
    torch.testing.assert_close(normals(solids, centre + half[:, None] * axes, solid[:, 0, 0]), axes)
    assert cast(solids, centre.expand(6, 1, 1, 3), axes[:, None, None])[0].isinf().all()  # from within
