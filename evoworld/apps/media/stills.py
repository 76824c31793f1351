"""PNG and JPEG stills; those of panoramas say so in Google's Photo Sphere metadata (GPano)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from evoworld.apps.media.files import atomic_path

PNG_XMP_KEYWORD = "XML:com.adobe.xmp"
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
    xmp = gpano_xmp(height, width) if panorama else None
    suffix = path.suffix.lower()
    if suffix == ".png":
        options: dict = {"format": "PNG", "compress_level": 4}
        if xmp is not None:
            options["pnginfo"] = PngInfo()
            options["pnginfo"].add_itxt(PNG_XMP_KEYWORD, xmp.decode())
    elif suffix in (".jpg", ".jpeg"):
        options = {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0}
        if xmp is not None:
            options["xmp"] = xmp
    else:
        raise ValueError(f"path: expected a name that ends in .png or .jpg, got {path.name!r}")
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, **options)
