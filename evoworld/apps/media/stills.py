"""PNG and JPEG stills; those of panoramas say so in Google's Photo Sphere metadata (GPano)."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evoworld.world.atomic import atomic_path

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEADER_END = 33  # signature and IHDR chunk
PNG_LEVEL = 4  # of 9: less than half the time of the default for 4 % more bytes
JPEG_QUALITY = 93

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"
   GPano:ProjectionType="equirectangular"
   GPano:UsePanoramaViewer="True"
   GPano:StitchingSoftware="EvoWorld"
   GPano:FullPanoWidthPixels="{width}"
   GPano:FullPanoHeightPixels="{height}"
   GPano:CroppedAreaImageWidthPixels="{width}"
   GPano:CroppedAreaImageHeightPixels="{height}"
   GPano:CroppedAreaLeftPixels="0"
   GPano:CroppedAreaTopPixels="0"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def gpano_xmp(height: int, width: int) -> bytes:
    """The XMP packet that marks an image of `height` x `width` pixels as a full equirectangular panorama.

    Source: Google, "Photo Sphere XMP Metadata" (namespace `http://ns.google.com/photos/1.0/panorama/`).

    Example:
        >>> b'GPano:FullPanoWidthPixels="1024"' in gpano_xmp(512, 1024)
        True
    """
    return _XMP.format(height=height, width=width).encode()


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """An image `[H, W, 3]` with values 0..1 as 8-bit numbers; values outside are clipped, NaN becomes 0.

    Example:
        >>> to_uint8(torch.tensor([[[0.0, 0.5, 2.0]]])).tolist()
        [[[0, 128, 255]]]
    """
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"image: expected [H, W, 3], got {list(image.shape)}")
    image = image.detach().float().nan_to_num(0.0).clamp(0, 1)
    return (image * 255 + 0.5).to(torch.uint8).cpu().numpy()


def write_still(
    path: str | os.PathLike,
    image: torch.Tensor | np.ndarray,  # [H, W, 3] 0..1, or uint8
    panorama: bool,
) -> None:
    """Writes an image as 8-bit PNG or JPEG (by the suffix of `path`), a panorama with its GPano metadata.

    Args:
        path: where to; `.png`, `.jpg` or `.jpeg`. Missing folders are made.
        image: `[H, W, 3]` float of 0..1, or uint8.
        panorama: whether the image is a full equirectangular panorama (then W = 2H).

    Raises:
        ValueError: another suffix, another shape, or a panorama that is not twice as wide as high.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "still.jpg"
        >>> write_still(path, torch.full((16, 32, 3), 0.5), panorama=True)
        >>> Image.open(path).size, b"equirectangular" in path.read_bytes()
        ((32, 16), True)
    """
    path = Path(path)
    pixels = image if isinstance(image, np.ndarray) else to_uint8(image)
    height, width = pixels.shape[:2]
    if panorama and width != 2 * height:
        raise ValueError(f"image: a panorama is twice as wide as high, got {height} x {width}")
    suffix = path.suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"path: expected a name that ends in .png or .jpg, got {path.name!r}")
    with atomic_path(path) as temporary:
        if suffix == ".png":
            Image.fromarray(pixels).save(temporary, format="PNG", compress_level=PNG_LEVEL)
            if panorama:
                add_gpano(temporary)
        else:
            metadata = {"xmp": gpano_xmp(height, width)} if panorama else {}
            Image.fromarray(pixels).save(temporary, format="JPEG", quality=JPEG_QUALITY, subsampling=0, **metadata)


def add_gpano(path: str | os.PathLike) -> None:
    """Puts the GPano metadata of a full panorama into a PNG file, where it has none yet; the pixels stay as they are.

    Source: PNG specification, 11.3.3.4 (iTXt); Adobe, "XMP Specification Part 3", 1.1.5 (its keyword in PNG).

    Raises:
        ValueError: not a PNG file.
        OSError: the file cannot be read or written.
    """
    path = Path(path)
    data = path.read_bytes()
    if not data.startswith(PNG_SIGNATURE) or data[12:16] != b"IHDR":
        raise ValueError(f"{path}: expected a PNG file")
    if b"iTXtXML:com.adobe.xmp\0" in data:
        return
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    # Keyword, then: not compressed, no compression method, no language, no translated keyword.
    chunk = b"iTXt" + b"XML:com.adobe.xmp\0" + bytes(4) + gpano_xmp(height, width)
    chunk = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data[:PNG_HEADER_END] + chunk + data[PNG_HEADER_END:])
