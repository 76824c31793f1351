"""What the applications write for people: stills, depth images, video and contact sheets.

Stills and videos of panoramas carry the metadata by which 360-degree viewers know them. Every file is written under
another name beside its place and moved there when it is whole.
"""

from evoworld.apps.media.contact_sheet import Tile, contact_sheet
from evoworld.apps.media.depth import color_map, depth_preview, depth_unit
from evoworld.apps.media.spherical import add_spherical_metadata
from evoworld.apps.media.stills import add_gpano, gpano_xmp, to_uint8, write_still
from evoworld.apps.media.video import check_video, open_video
from evoworld.world.atomic import atomic_path

__all__ = [
    "Tile",
    "add_gpano",
    "add_spherical_metadata",
    "atomic_path",
    "check_video",
    "color_map",
    "contact_sheet",
    "depth_preview",
    "depth_unit",
    "gpano_xmp",
    "open_video",
    "to_uint8",
    "write_still",
]
