"""The spherical metadata of videos, read back by a parser that shares nothing with the writer."""

import struct
import xml.etree.ElementTree as ET

import pytest
import torch

av = pytest.importorskip("av")

from evoworld.apps.media import add_spherical_metadata, open_video  # noqa: E402

CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"sv3d", b"proj"}
GSPHERICAL = "{http://ns.google.com/videos/1.0/spherical/}"


def parse(data, start=0, end=None, path=()):
    """Every box of an MP4 as (path of kinds, start, end, payload)."""
    end = len(data) if end is None else end
    found = []
    while start < end:
        size = int.from_bytes(data[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        assert 8 <= size <= end - start, f"box {kind} at {start} overruns its parent"
        here, payload = (*path, kind.decode("latin1")), start + 8
        found.append((here, start, start + size, data[payload : start + size]))
        if kind in CONTAINERS:
            found += parse(data, payload, start + size, here)
        elif kind == b"stsd":
            found += parse(data, payload + 8, start + size, here)
        elif kind in (b"avc1", b"mp4v"):
            found += parse(data, payload + 78, start + size, here)
        start += size
    assert start == end
    return found


def payloads(boxes, *tail):
    return [payload for path, _, _, payload in boxes if path[-len(tail) :] == tail]


def moving_square(index, height=32, width=64):
    image = torch.zeros(height, width, 3)
    image[8:24, 4 * index : 4 * index + 16, index % 3] = 0.9
    return image


def write_video(path, num_frames=7, panorama=True):
    with open_video(path, 32, 64, fps=12, panorama=panorama) as write:
        for index in range(num_frames):
            write(moving_square(index))
    return path.read_bytes()


def decode(path):
    with av.open(str(path)) as container:
        return [(frame, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_boxes_say_full_mono_equirectangular(tmp_path):
    boxes = parse(write_video(tmp_path / "a.mp4"))
    entry = next(path[:-1] for path, *_ in boxes if path[-1] == "sv3d")
    assert entry[:6] == ("moov", "trak", "mdia", "minf", "stbl", "stsd")
    assert payloads(boxes, entry[-1], "st3d") == [b"\0\0\0\0\0"]
    assert payloads(boxes, "sv3d", "proj", "prhd") == [bytes(16)]
    assert payloads(boxes, "sv3d", "proj", "equi") == [bytes(20)]
    (source,) = payloads(boxes, "sv3d", "svhd")
    assert source[:4] == bytes(4) and source.endswith(b"\0")
    (old,) = payloads(boxes, "moov", "trak", "uuid")
    assert old[:16].hex() == "ffcc8263f8554a938814587a02521fdd"
    tags = {element.tag: element.text for element in ET.fromstring(old[16:])}
    assert tags[GSPHERICAL + "Spherical"] == tags[GSPHERICAL + "Stitched"] == "true"
    assert tags[GSPHERICAL + "ProjectionType"] == "equirectangular"


def test_index_is_in_front_and_chunks_lie_in_the_media_data(tmp_path):
    boxes = parse(write_video(tmp_path / "a.mp4"))
    top = {path[0]: (start, end) for path, start, end, _ in boxes if len(path) == 1}
    assert top["moov"][1] <= top["mdat"][0]
    (table,) = payloads(boxes, "stbl", "stco")
    offsets = struct.unpack(f">{int.from_bytes(table[4:8], 'big')}I", table[8:])
    assert min(offsets) == top["mdat"][0] + 8
    assert max(offsets) < top["mdat"][1]


def test_video_decodes_with_every_frame_and_its_colours(tmp_path):
    write_video(tmp_path / "a.mp4")
    frames = decode(tmp_path / "a.mp4")
    assert len(frames) == 7
    for index, (_, pixels) in enumerate(frames):
        error = torch.from_numpy(pixels).float() / 255 - moving_square(index)
        assert error.square().mean() < 0.01
    assert frames[0][0].format.name == "yuv420p"


def test_ffmpeg_reads_the_spherical_side_data(tmp_path):
    write_video(tmp_path / "a.mp4")
    write_video(tmp_path / "b.mp4", panorama=False)
    side_data = [{item.type.name for item in decode(tmp_path / name)[0][0].side_data} for name in ("a.mp4", "b.mp4")]
    assert "SPHERICAL" in side_data[0] and "STEREO3D" in side_data[0]
    assert "SPHERICAL" not in side_data[1]


def test_marking_twice_leaves_one_mark(tmp_path):
    once = write_video(tmp_path / "a.mp4")
    add_spherical_metadata(tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == once


@pytest.mark.parametrize("options", [{}, {"movflags": "+faststart"}])
def test_sound_and_the_place_of_the_index_do_not_matter(tmp_path, options):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream("mpeg4", rate=10)
        video.height, video.width, video.pix_fmt = 32, 64, "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(torch.zeros(1, 16000).numpy(), format="fltp", layout="mono")
        silence.sample_rate = 16000
        for index in range(10):
            pixels = (moving_square(index) * 255).byte().numpy()
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(sound.encode(silence))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))

    def packets():
        with av.open(str(path)) as container:
            return [(packet.stream.type, bytes(packet)) for packet in container.demux() if packet.size]

    before = packets()
    add_spherical_metadata(path)
    assert packets() == before
    assert len([1 for box, *_ in parse(path.read_bytes()) if box[-1] == "sv3d"]) == 1
    assert len(payloads(parse(path.read_bytes()), "trak", "uuid")) == 1


def test_64_bit_offsets_and_sizes_are_understood(tmp_path):
    """The same video with its tables turned into co64 and its media data into a box of 64-bit size."""
    path = tmp_path / "a.mp4"
    data = write_video(path, panorama=False)
    boxes = parse(data)
    place = next(start for box, start, _, _ in boxes if box[-1] == "stco")
    count = int.from_bytes(data[place + 12 : place + 16], "big")
    offsets = struct.unpack_from(f">{count}I", data, place + 16)
    grown = 4 * count
    table = struct.pack(f">I4sII{count}Q", 16 + 8 * count, b"co64", 0, count, *(o + grown + 8 for o in offsets))
    wide = bytearray(data[:place] + table + data[place + 16 + 4 * count :])
    for box, start, end, _ in boxes:
        if box == ("moov", "trak", "mdia", "minf", "stbl", "stco")[: len(box)] and box[-1] != "stco":
            wide[start : start + 4] = (end - start + grown).to_bytes(4, "big")
    media = next(start for box, start, _, _ in boxes if box == ("mdat",)) + grown
    (size,) = struct.unpack_from(">I", wide, media)
    wide[media : media + 8] = struct.pack(">I4sQ", 1, b"mdat", size + 8)
    path.write_bytes(wide)
    expected = [pixels.tobytes() for _, pixels in decode(path)]
    add_spherical_metadata(path)
    assert [pixels.tobytes() for _, pixels in decode(path)] == expected
    assert b"sv3d" in path.read_bytes()


@pytest.mark.parametrize("cut", [3, 40, 900])
def test_damaged_files_are_refused_and_left_alone(tmp_path, cut):
    path = tmp_path / "a.mp4"
    damaged = write_video(path)[:cut]
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="MP4"):
        add_spherical_metadata(path)
    assert path.read_bytes() == damaged
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_without_video_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(torch.zeros(1, 4096).numpy(), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with pytest.raises(ValueError, match="video track"):
        add_spherical_metadata(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"path": "a.avi"}, r"\.mp4"), ({"height": 31}, "even"), ({"width": 0}, "even"), ({"fps": 0}, "fps")],
)
def test_bad_arguments_leave_no_file(tmp_path, change, message):
    arguments = {"path": "a.mp4", "height": 32, "width": 64, "fps": 8} | change
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message), open_video(**arguments, panorama=True):
        pass
    assert not list(tmp_path.iterdir())


def test_a_video_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="expected"), open_video(path, 32, 64, fps=8, panorama=True) as write:
        write(moving_square(0))
        write(torch.zeros(16, 32, 3))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
