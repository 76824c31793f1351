"""Walks kept on disk: each is made once, then read."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .walk import Walk

_DAMAGED = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile)


class CachedWalks(Sequence[Walk]):
    """The same walks, which are written to a folder when they are first asked for and read from it afterwards.

    Files appear whole or not at all, so several processes may share a folder; one that is damaged is made again. Walks
    are on the CPU. Colours are kept in 8 bits and depth in half precision, and a walk that was just made is read back
    too: it is the same every time.

    Args:
        walks: where walks come from. Its ``identity``, a string, names all that they depend on; each identity has a
            folder of its own below ``folder``.
        folder: where to keep them; made if it is not there. A walk of 24 frames of 64 x 128 takes 1.2 MB.

    Raises:
        ValueError: walks have no identity.

    Example:
        >>> import tempfile
        >>> from evoworld.data import ProceduralWalks
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     walks = CachedWalks(ProceduralWalks("train", height=8, num_frames=2), folder)
        ...     bool((walks[0].image == walks[0].image).all())
        True
    """

    def __init__(self, walks: Sequence[Walk], folder: str | os.PathLike) -> None:
        identity = getattr(walks, "identity", "")
        if not identity:
            raise ValueError(
                f"walks: expected an identity that names what they depend on, got none in {type(walks).__name__}"
            )
        self.walks, self.identity = walks, identity
        self.folder = Path(folder) / hashlib.sha256(identity.encode()).hexdigest()[:12]
        self.folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.walks)

    def __getitem__(self, index: int) -> Walk:
        if not -len(self) <= index < len(self):
            raise IndexError(f"walk {index} of {len(self)}")
        path = self.folder / f"{index % len(self):08d}.npz"
        try:
            return _read(path)
        except _DAMAGED:
            _write(path, self.walks[index])
            return _read(path)


def _write(path: Path, walk: Walk) -> None:
    arrays = {
        "image": (walk.image.clamp(0, 1) * 255).round().to(torch.uint8),
        "camera_to_world": walk.camera_to_world,
    }
    if walk.depth is not None:
        arrays["depth"] = walk.depth.to(torch.float16)
    if walk.object_id is not None:
        arrays["object_id"] = walk.object_id.to(torch.int16)
    words = json.dumps({"name": walk.name, "captions": walk.captions}).encode()
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            np.savez(
                file, words=np.frombuffer(words, np.uint8), **{name: x.cpu().numpy() for name, x in arrays.items()}
            )
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path: Path) -> Walk:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "words"}
        words = json.loads(file["words"].tobytes())
    return Walk(
        arrays["image"].float() / 255,
        arrays["depth"].float() if "depth" in arrays else None,
        arrays["camera_to_world"],
        tuple(words["captions"]),
        words["name"],
        arrays["object_id"].long() if "object_id" in arrays else None,
    )
