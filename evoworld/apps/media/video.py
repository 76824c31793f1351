"""MP4 video, encoded with PyAV."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from evoworld.apps.media.spherical import add_spherical_metadata
from evoworld.apps.media.stills import to_uint8
from evoworld.world.atomic import atomic_path

# In order of preference; which of them a build of FFmpeg has depends on its licence.
CODECS = {
    "libx264": {"crf": "18", "preset": "fast"},
    "libopenh264": {"b": "8000000"},
    "mpeg4": {"qscale": "3"},
}
BT709 = 1  # the number of the BT.709 primaries, transfer and matrix in ITU-T H.273
LIMITED_RANGE = 1  # FFmpeg's AVCOL_RANGE_MPEG


@contextmanager
def open_video(
    path: str | os.PathLike, height: int, width: int, fps: float, panorama: bool
) -> Iterator[Callable[[torch.Tensor | np.ndarray], None]]:
    """Opens an MP4 for writing and gives the function that adds one frame to it.

    H.264 where the FFmpeg of PyAV has it, yuv420p, BT.709, with the index in front. The file appears at `path` when
    the block ends well, and not at all when it does not.

    Args:
        path: where to (`.mp4`). Missing folders are made.
        height, width: of the frames, in pixels; both even, for the colour is stored at half the resolution.
        fps: frames a second.
        panorama: whether the frames are full equirectangular panoramas; then the file says so
            (`add_spherical_metadata`).

    Returns:
        A function that takes a frame, `[H, W, 3]` of 0..1 or uint8.

    Raises:
        ValueError: a name, size or rate that cannot be, or PyAV is not installed.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "walk.mp4"
        >>> with open_video(path, 32, 64, fps=8, panorama=True) as write:
        ...     for brightness in (0.2, 0.4, 0.6):
        ...         write(torch.full((32, 64, 3), brightness))
        >>> b"sv3d" in path.read_bytes()
        True
    """
    check_video(path, height, width, fps)
    av = _import_av()
    with atomic_path(path) as temporary, _as_os_error(av, path):
        with av.open(str(temporary), "w", options={"movflags": "+faststart"}) as container:
            stream = _add_stream(av, container, height, width, Fraction(fps).limit_denominator(1000))

            def write(image: torch.Tensor | np.ndarray) -> None:
                pixels = image if isinstance(image, np.ndarray) else to_uint8(image)
                if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
                    raise ValueError(f"image: expected {[height, width, 3]}, got {list(pixels.shape)} {pixels.dtype}")
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))

            yield write
            container.mux(stream.encode(None))
        if panorama:
            add_spherical_metadata(temporary)


def check_video(path: str | os.PathLike, height: int, width: int, fps: float) -> None:
    """Raises ValueError where `open_video` would, so that a command can say so before a long job."""
    _import_av()
    if Path(path).suffix.lower() != ".mp4":
        raise ValueError(f"video: expected a name that ends in .mp4, got {Path(path).name!r}")
    if height < 2 or width < 2 or height % 2 or width % 2:
        raise ValueError(f"video: expected an even height and width, got {height} x {width}")
    if not 0 < fps <= 1000:
        raise ValueError(f"fps: expected a number above 0 and up to 1000, got {fps}")


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ValueError('video needs PyAV: pip install "evoworld[app]"') from error
    return av


@contextmanager
def _as_os_error(av: ModuleType, path: str | os.PathLike) -> Iterator[None]:
    """PyAV's errors are not all OSErrors; callers expect those where a file cannot be written."""
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _add_stream(av: ModuleType, container, height: int, width: int, rate: Fraction):
    name = next((name for name in CODECS if name in av.codecs_available), None)
    if name is None:
        raise ValueError(f"video: PyAV has none of the encoders {', '.join(CODECS)}")
    stream = container.add_stream(name, rate=rate, options=CODECS[name])
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.color_primaries = context.color_trc = context.colorspace = BT709
    context.color_range = LIMITED_RANGE
    return stream
