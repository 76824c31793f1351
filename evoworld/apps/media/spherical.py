"""Marks an MP4 file as a 360-degree video.

Two standards are written, since players know one or the other: the boxes `st3d` and `sv3d` in the video's sample
entry (Google, "Spherical Video V2 RFC") and a `uuid` box with an XML description in the video's track ("Spherical
Video RFC", version 1). The box structure is that of ISO/IEC 14496-12.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from evoworld.world.atomic import atomic_path

SPHERICAL_V1_UUID = bytes.fromhex("ffcc8263f8554a938814587a02521fdd")
VISUAL_SAMPLE_ENTRY_BYTES = 78  # the fixed fields of a video's sample entry, before its own boxes
MAX_UINT32 = 2**32 - 1

_V1_XML = (
    '<?xml version="1.0"?><rdf:SphericalVideo xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    ' xmlns:GSpherical="http://ns.google.com/videos/1.0/spherical/">'
    "<GSpherical:Spherical>true</GSpherical:Spherical><GSpherical:Stitched>true</GSpherical:Stitched>"
    "<GSpherical:StitchingSoftware>EvoWorld</GSpherical:StitchingSoftware>"
    "<GSpherical:ProjectionType>equirectangular</GSpherical:ProjectionType></rdf:SphericalVideo>"
)


def _box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(payload), kind) + payload


def _full_box(kind: bytes, payload: bytes) -> bytes:
    return _box(kind, bytes(4) + payload)  # version 0, no flags


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and payload of the boxes that `data` is made of."""
    position = 0
    while position < len(data):
        if len(data) - position < 8:
            raise ValueError("damaged MP4: a box is cut off")
        size, kind = struct.unpack_from(">I4s", data, position)
        header = 8
        if size == 1 and len(data) - position >= 16:
            (size,) = struct.unpack_from(">Q", data, position + 8)
            header = 16
        if size < header or position + size > len(data):
            raise ValueError(f"damaged MP4: box {kind!r} has a wrong size")
        yield kind, data[position + header : position + size]
        position += size


def _edit(data: bytes, path: tuple[bytes, ...], change: Callable[[bytes], bytes]) -> bytes:
    """`data` with the payload of every box at `path` (kinds, outermost first) replaced by `change` of it."""
    if not path:
        return change(data)
    return b"".join(
        _box(kind, _edit(payload, path[1:], change) if kind == path[0] else payload) for kind, payload in _boxes(data)
    )


def _sample_entry_boxes() -> bytes:
    mono = _full_box(b"st3d", b"\0")
    pose = _full_box(b"prhd", struct.pack(">3i", 0, 0, 0))  # yaw, pitch, roll
    whole_sphere = _full_box(b"equi", struct.pack(">4I", 0, 0, 0, 0))  # nothing cropped at any side
    source = _full_box(b"svhd", b"EvoWorld\0")
    return mono + _box(b"sv3d", source + _box(b"proj", pose + whole_sphere))


def _mark_sample_descriptions(stsd: bytes) -> bytes:
    head, entries = stsd[:8], stsd[8:]  # version, flags and the number of entries
    marked = []
    for kind, entry in _boxes(entries):
        fixed, inner = entry[:VISUAL_SAMPLE_ENTRY_BYTES], entry[VISUAL_SAMPLE_ENTRY_BYTES:]
        kept = b"".join(_box(k, p) for k, p in _boxes(inner) if k not in (b"st3d", b"sv3d"))
        marked.append(_box(kind, fixed + kept + _sample_entry_boxes()))
    return head + b"".join(marked)


def _is_video(trak: bytes) -> bool:
    handlers = []
    _edit(trak, (b"mdia", b"hdlr"), lambda hdlr: handlers.append(hdlr[8:12]) or hdlr)
    return handlers == [b"vide"]


def _mark_track(trak: bytes) -> bytes:
    if not _is_video(trak):
        return trak
    trak = _edit(trak, (b"mdia", b"minf", b"stbl", b"stsd"), _mark_sample_descriptions)
    kept = [
        _box(kind, payload)
        for kind, payload in _boxes(trak)
        if not (kind == b"uuid" and payload.startswith(SPHERICAL_V1_UUID))
    ]
    return b"".join(kept) + _box(b"uuid", SPHERICAL_V1_UUID + _V1_XML.encode())


def _shift_chunk_offsets(moov: bytes, delta: int) -> bytes:
    """Adds `delta` to the place in the file of every chunk of media data."""

    def shift(letter: str) -> Callable[[bytes], bytes]:
        def change(table: bytes) -> bytes:
            (count,) = struct.unpack_from(">I", table, 4)
            offsets = [offset + delta for offset in struct.unpack_from(f">{count}{letter}", table, 8)]
            if letter == "I" and max(offsets, default=0) > MAX_UINT32:
                raise ValueError("the MP4's 32-bit chunk offsets leave no room for spherical metadata; split the video")
            return table[:8] + struct.pack(f">{count}{letter}", *offsets)

        return change

    tables = (b"trak", b"mdia", b"minf", b"stbl")
    moov = _edit(moov, (*tables, b"stco"), shift("I"))
    return _edit(moov, (*tables, b"co64"), shift("Q"))


def _top_level(file: BinaryIO) -> list[tuple[bytes, int, int, int]]:
    """Kind, start, start of the payload and end of every box of a file."""
    end_of_file = file.seek(0, os.SEEK_END)
    boxes = []
    position = 0
    while position < end_of_file:
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            raise ValueError("not a whole MP4 file: the last box is cut off")
        size, kind = struct.unpack(">I4s", header[:8])
        payload = 8
        if size == 1 and len(header) == 16:
            (size,) = struct.unpack(">Q", header[8:])
            payload = 16
        elif size == 0:
            size = end_of_file - position
        if size < payload or position + size > end_of_file:
            raise ValueError(f"not a whole MP4 file: box {kind!r} at byte {position} has a wrong size")
        boxes.append((kind, position, position + payload, position + size))
        position += size
    return boxes


def add_spherical_metadata(path: str | os.PathLike) -> None:
    """Rewrites an MP4 file so that players show its video as a full equirectangular panorama.

    Sound and other tracks stay as they are. Marking a file twice leaves one mark.

    Raises:
        ValueError: the file is not a whole MP4 file, is fragmented or holds no video; it is then left as it was.
        OSError: the file cannot be read or written.
    """
    path = Path(path)
    with open(path, "rb") as source:
        boxes = _top_level(source)
        kinds = [kind for kind, *_ in boxes]
        if kinds.count(b"moov") != 1 or b"moof" in kinds:
            raise ValueError(f"{path}: expected an MP4 file with one movie box and no fragments")
        _, start, payload, end = boxes[kinds.index(b"moov")]
        source.seek(payload)
        moov = source.read(end - payload)
        if not any(kind == b"trak" and _is_video(trak) for kind, trak in _boxes(moov)):
            raise ValueError(f"{path}: expected an MP4 file with a video track")
        marked = _edit(moov, (b"trak",), _mark_track)
        media_follows = any(kind == b"mdat" and at > start for kind, at, *_ in boxes)
        if media_follows:
            marked = _shift_chunk_offsets(marked, len(marked) + 8 - (end - start))
        with atomic_path(path) as temporary, open(temporary, "wb") as target:
            source.seek(0)
            target.write(source.read(start))
            target.write(_box(b"moov", marked))
            source.seek(end)
            shutil.copyfileobj(source, target, 1 << 20)
