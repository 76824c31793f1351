"""A world that grows along a walk: remember, make, observe, go on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evoworld.geometry import Panorama, check_pose, make_pose, rotate_panorama

from .condition import Condition
from .conditions import continuation, fit_panorama, lay_photo, render_memory, with_known
from .first_write import first_write_config, observe_first
from .memory import Memory
from .rgbd import decode_rgbd, per_channel

WEIGHTS = Path(__file__).parent / "weights"
LONGEST_PROMPT = 2000  # characters; text encoders read a few hundred
TEXT_DIM = 384  # of no words, for a model that does not say
RELEARN_EVERY = 0.5  # metres between places from which the learned memory looks at a world that exists
SAME_PLACE = 1e-4  # metres
SAME_WAY = 1e-5  # of rotation matrices
FARTHEST = 1e4  # metres from the origin: beyond, positions in 32 bits are too coarse to walk by
TAKEN = 0.5  # mean visibility from which a place is remembered, and no other picture can be laid there


class Frame(NamedTuple):
    """A frame of a walk, as the camera at its pose sees it."""

    image: Tensor  # [H, W, 3] 0..1
    depth: Tensor  # [H, W] metres along the ray, 0: sky
    camera_to_world: Tensor  # [4, 4]
    visibility: Tensor  # [H, W] 0..1: what the memory knew before


class Given(NamedTuple):
    """What a world starts with."""

    image: Tensor  # [H, W, 3]
    mask: Tensor | None  # [H, W]
    depth: Tensor | None  # [H, W]


class World:
    """An endless world: what is made is remembered, and what is remembered binds what is made.

    Args:
        model: makes frames: `sample(condition, generator=...) -> [1, T, H, W, 4]`, such as a
            `evoworld.world.model.WorldModel`; None: without a network, holes are filled from around them.
        height: H of the panoramas; None: the model's, or 64.
        num_frames: of a segment, which are made together; None: the model's, or 1.
        voxel_size: metres, of the memory; None: the model's, or 0.1.
        device: where it lives; None: the model's, or the CPU.
        options: for `model.sample`, such as steps or text_guidance; where words are all there is, those that are not
            given are ``model.from_words``, if it has any.

    Example:
        >>> world, path = World(height=16), torch.eye(4).repeat(3, 1, 1)
        >>> path[:, 2, 3] = torch.tensor([0.0, 0.1, 0.0])
        >>> world.start(image=torch.rand(16, 32, 3), depth=torch.ones(16, 32))
        >>> frames = list(world.walk(path))
        >>> len(frames), torch.allclose(frames[0].image, frames[2].image, atol=1e-3)
        (3, True)
    """

    def __init__(
        self,
        model: Any = None,
        height: int | None = None,
        num_frames: int | None = None,
        voxel_size: float | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ):
        config = getattr(model, "config", None)
        self.model, self.options = model, options
        self.height = getattr(config, "height", 64) if height is None else height
        self.num_frames = getattr(config, "num_frames", 1) if num_frames is None else num_frames
        self.voxel_size = getattr(config, "voxel_size", 0.1) if voxel_size is None else voxel_size
        self._shows_memory = getattr(config, "uses_memory", True)
        for name, least in (("height", 2), ("num_frames", 1)):
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {number!r}")
        self.device = torch.device(getattr(model, "device", "cpu") if device is None else device)
        self.camera = Panorama(self.height, 2 * self.height)
        self._begin(self._new_memory())

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike = "tiny", device: torch.device | str = "cpu", **options: Any
    ) -> World:
        """A world that a trained model makes: one that is shipped, by its name, a file, or "none" for no network.

        Raises:
            FileNotFoundError: there is no such file, and no weights of that name are shipped.
            ModelError: the file is damaged, or holds something else.
        """
        if name_or_path == "none":
            return cls(device=device, **options)
        from .model import WorldModel

        return cls(WorldModel.load(find_weights(name_or_path), device), **options)

    def start(
        self,
        image: Tensor | None = None,  # [h, w, 3]
        depth: Tensor | None = None,  # [h, w]
        fov: float | None = None,
        prompt: str = "",
        world: Memory | str | os.PathLike | None = None,
        seed: int = 0,
        camera_to_world: Tensor | None = None,  # [4, 4]
    ) -> None:
        """Begins anew, from words, a picture, a world that exists, or several of them.

        Args:
            image: `[h, w, 3]` in 0..1: a panorama, twice as wide as high, or with `fov` a perspective photograph.
            depth: `[h, w]` metres (panorama: along the ray, photograph: along its axis), if it is known.
            fov: degrees between the left and the right edge of a photograph.
            prompt: what the world is like; none: what `world` was made with.
            world: a memory of colours, or a world file, to go on from; it is changed.
            seed: of what is made.
            camera_to_world: the pose, taken as level, that the image was seen from; None: that where the walk begins.

        Raises:
            ValueError: nothing is given, or something that is not as above, or an image of a place that the world
                remembers already (without `camera_to_world` the walk says so); WorldError for a damaged world file.
        """
        if not isinstance(prompt, str):
            raise ValueError(f"prompt: expected words, got {prompt!r}")
        if world is not None and not isinstance(world, (Memory, str, os.PathLike)):
            raise ValueError(f"world: expected a memory or the path of a world file, got {type(world).__name__}")
        if image is None and world is None and not prompt.strip():
            raise ValueError("start: expected a prompt, an image or a world, got none of them")
        if image is None and (depth is not None or fov is not None):
            raise ValueError("start: depth and fov belong to an image, and none is given")
        if camera_to_world is not None:
            check_pose(camera_to_world, "camera_to_world")
            _check_reach(camera_to_world, "camera_to_world")
        given = None if image is None else self._lay(image, depth, fov)
        memory = Memory.load(world, self.device) if isinstance(world, (str, os.PathLike)) else world
        memory = self._new_memory() if memory is None else memory
        if memory.config.feature_dim != 3:
            raise ValueError(f"world: expected a memory of colours, got one of {memory.config.feature_dim} features")
        if memory.device.type != self.device.type:
            raise ValueError(f"world: expected a memory on {self.device}, got one on {memory.device}")
        prompt = prompt if prompt.strip() else memory.prompt
        if len(prompt) > LONGEST_PROMPT:
            raise ValueError(f"prompt: expected at most {LONGEST_PROMPT} characters, got {len(prompt)}")
        if given is not None and camera_to_world is not None:
            self._check_place(memory, given, level(camera_to_world.float().cpu()))
        text = self._encode(prompt)
        memory.prompt = prompt
        self._begin(memory, given, camera_to_world, text, seed)

    def walk(
        self,
        path: Tensor,  # [N, 4, 4]
    ) -> Iterator[Frame]:
        """Frames along a path, made as they are asked for; each is remembered before it is given.

        Frames of a segment are made together; a walk that is broken off leaves all frames that it gave in the memory,
        and another one goes on from there. Time and memory do not grow with the frames made, but with the places seen.

        Args:
            path: `[N, 4, 4]` camera-to-world poses, of any orientation.

        Raises:
            ValueError: path has another shape, no poses, or one that is not rigid, not finite or farther than 10 km
                from the origin; or the world remembers the place of the image that was given.
        """
        if path.ndim != 3 or tuple(path.shape[1:]) != (4, 4) or path.shape[0] == 0:
            raise ValueError(f"path: expected poses [N, 4, 4] with N at least 1, got {list(path.shape)}")
        check_pose(path, "path")
        _check_reach(path, "path")
        path = path.detach().float().cpu()
        if self._given is not None and self._start is None:
            self._check_place(self.memory, self._given, level(path[0]))
        return self._walk(path)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the world file, from which `start(world=...)`, `Memory.load` and the commands go on."""
        if self._given is not None:  # nobody has walked yet
            start = torch.eye(4) if self._start is None else self._start
            for _ in self.walk(start[None]):
                pass
        self.memory.save(path)

    def _new_memory(self) -> Memory:
        return Memory(config=first_write_config(self.voxel_size), device=self.device)

    def _begin(
        self,
        memory: Memory,
        given: Given | None = None,
        camera_to_world: Tensor | None = None,  # [4, 4]
        text: tuple[Tensor, Tensor] | None = None,  # [1, S, E], [1, S]
        seed: int = 0,
    ) -> None:
        self.memory, self._given = memory, given
        self._generator = torch.Generator().manual_seed(seed)
        self._text = self._encode("") if text is None else text
        self._start = None if camera_to_world is None else level(camera_to_world.float().cpu())
        if self._start is None and given is None and len(memory.poses):
            self._axes = level(memory.poses[0].cpu())[:3, :3]  # pixels of frames that were seen fall on pixels again
        else:
            self._axes = None if self._start is None else self._start[:3, :3]
        encoder = getattr(self.model, "memory_encoder", None)
        self._features = None if encoder is None else encoder.new_memory()
        if self._features is not None:
            self._relearn()

    def _walk(self, path: Tensor) -> Iterator[Frame]:  # [N, 4, 4]
        if self._axes is None:
            self._axes = level(path[0])[:3, :3]
        poses = make_pose(self._axes.expand(len(path), 3, 3), path[:, :3, 3])
        elsewhere = self._start is not None and (self._start[:3, 3] - poses[0, :3, 3]).norm() > SAME_PLACE
        if self._given is not None and elsewhere:
            for _ in self._segment(self._start[None]):
                pass
        begin = 0
        while begin < len(path):
            # What is given is observed before the rest is made, so that the rest is made knowing it.
            end = begin + (1 if self._given is not None else self.num_frames)
            for frame, wanted in zip(self._segment(poses[begin:end]), path[begin:end], strict=True):
                yield _turned(frame, wanted)
            begin = end

    def _segment(self, poses: Tensor) -> Iterator[Frame]:  # [T, 4, 4] level
        """Makes the frames of a segment together, and gives them one by one as they are observed.

        A model knows segments of `num_frames`; a shorter one is made with its last frame repeated.
        """
        missing = 0 if self.model is None else max(self.num_frames - len(poses), 0)
        with torch.no_grad():
            condition = self._condition(torch.cat((poses, poses[-1:].expand(missing, 4, 4))))
            rgbd = condition.filled() if self.model is None else self._sample(condition)
            rgbd = torch.where(per_channel(condition.known_mask) > 0.5, condition.known, rgbd)[0]
            images, depths = decode_rgbd(rgbd)
        for i, pose in enumerate(poses):
            with torch.no_grad():
                new = observe_first(self.memory, images[i], depths[i], pose, self.camera)
                if self._features is not None:
                    known = new[None].to(rgbd)
                    self.model.memory_encoder.update(self._features, rgbd[i : i + 1], pose[None].to(rgbd), known)
            self._given = None
            yield Frame(images[i], depths[i], pose, condition.visibility[0, i])

    def _condition(self, poses: Tensor) -> Condition:
        condition = continuation(self.memory, poses, self.height, self._text)
        if self._given is not None:
            condition = with_known(condition, 0, *self._given)
        if self._features is None:
            return condition
        encoder, poses = self.model.memory_encoder, poses.to(self.device)
        shown = encoder.query(encoder.generate(self._features, poses), poses)
        return replace(condition, features=shown.features[None])

    def _sample(self, condition: Condition) -> Tensor:  # [1, T, H, W, 4]
        begun = condition.known_mask.any() or condition.visibility.any()
        if not self._shows_memory:
            condition = condition.without_memory()  # as it was trained
        options = self.options if begun else {**getattr(self.model, "from_words", {}), **self.options}
        return self.model.sample(condition, generator=self._generator, **options)

    def _check_place(self, memory: Memory, given: Given, pose: Tensor) -> None:  # [4, 4] level
        """Raises ValueError for a picture of a place that is remembered: what was seen first would stay."""
        if not len(memory.poses):
            return
        seen = memory.query(self.camera, pose).visibility
        if (seen if given.mask is None else seen[given.mask > 0]).mean() > TAKEN:
            raise ValueError(
                "image: the world remembers already what is seen from there, and what was seen first stays; "
                "begin elsewhere, or leave the image or the world out"
            )

    def _lay(self, image: Tensor, depth: Tensor | None, fov: float | None) -> Given:
        """A picture at the model's size."""
        image = torch.as_tensor(image)
        if not image.is_floating_point() or image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
            raise ValueError(f"image: expected floating point [h, w, 3], got {image.dtype} {list(image.shape)}")
        if not torch.isfinite(image).all():
            raise ValueError("image: expected finite values, got NaN or infinity")
        if depth is not None:
            depth = torch.as_tensor(depth)
            if depth.shape != image.shape[:2]:
                raise ValueError(f"depth: expected {list(image.shape[:2])}, got {list(depth.shape)}")
        image = image.float().clamp(0, 1)
        if fov is not None:
            shape = list(image.shape[:2])
            image, mask, depth = lay_photo(image, fov, self.height, depth)
            if not mask.any():
                raise ValueError(
                    f"image: {shape[0]} x {shape[1]} pixels at a fov of {fov:g} degrees cover no pixel of a panorama "
                    f"of {self.height} x {2 * self.height}; expected a wider or higher photograph"
                )
            return Given(image.to(self.device), mask.to(self.device), None if depth is None else depth.to(self.device))
        if image.shape[1] != 2 * image.shape[0]:
            raise ValueError(
                "image: expected a panorama, twice as wide as high, or the field of view of a photograph with fov; "
                f"got {image.shape[1]} x {image.shape[0]}"
            )
        depth = None if depth is None else fit_panorama(depth.float(), self.height, "nearest").to(self.device)
        return Given(fit_panorama(image, self.height).to(self.device), None, depth)

    def _encode(self, prompt: str) -> tuple[Tensor, Tensor]:  # [1, S, E], [1, S]
        if prompt.strip() and hasattr(self.model, "encode_text"):
            return self.model.encode_text([prompt])
        dit = getattr(getattr(self.model, "config", None), "dit", None)
        tokens = torch.zeros(1, 0, getattr(dit, "text_dim", TEXT_DIM), device=self.device)
        return tokens, torch.zeros(1, 0, dtype=torch.bool, device=self.device)

    def _relearn(self) -> None:
        """Observes a world that exists into the learned memory, from some of the places that it was seen from."""
        axes = self._axes
        if axes is None and len(self.memory.poses):
            axes = level(self.memory.poses[0].cpu())[:3, :3]
        places = self.memory.poses[:, :3, 3].cpu()
        left = torch.ones(len(places), dtype=torch.bool)
        while left.any():
            place = places[left][0]
            left &= (places - place).norm(dim=-1) > RELEARN_EVERY
            pose = make_pose(axes, place)[None]
            rgbd, visibility = render_memory(self.memory, pose, self.camera)
            with torch.no_grad():
                self.model.memory_encoder.update(self._features, rgbd, pose.to(rgbd), visibility)


def find_weights(name_or_path: str | os.PathLike) -> Path:
    """The file of a model: one that is shipped, by its name, or a file's own path.

    Raises:
        FileNotFoundError: there is no such file, and no weights of that name are shipped.
    """
    path, shipped = Path(name_or_path), WEIGHTS / f"{name_or_path}.safetensors"
    if path.is_file() or shipped.is_file():
        return path if path.is_file() else shipped
    names = sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))
    raise FileNotFoundError(
        f"{name_or_path}: expected a file of weights, as `evoworld train` writes it, or one of "
        f"{', '.join([*names, 'none'])} (none: no network, holes are filled from around them), got neither"
    )


def level(
    pose: Tensor,  # [4, 4]
) -> Tensor:  # [4, 4]
    """The level pose at the same place that looks the same way, seen from above (OpenCV axes, world z up).

    Example:
        >>> level(torch.eye(4))[:3, 1].tolist()  # eye looks straight up; its image's lower edge is at +y
        [0.0, 0.0, -1.0]
    """
    forward, down = pose[:3, 2], pose[:3, 1]
    heading = forward if forward[:2].norm() > 1e-3 else down * forward[2].sign()
    x, y = (heading[:2] / heading[:2].norm()).tolist()
    axes = [[y, 0.0, x], [-x, 0.0, y], [0.0, -1.0, 0.0]]  # columns: right, down, forward
    return make_pose(pose.new_tensor(axes), pose[:3, 3])


def _check_reach(poses: Tensor, name: str) -> None:  # [..., 4, 4]
    farthest = float(poses[..., :3, 3].detach().abs().max())
    if farthest > FARTHEST:
        raise ValueError(f"{name}: expected places within {FARTHEST:g} m of the origin, got {farthest:g} m")


def _turned(frame: Frame, wanted: Tensor) -> Frame:  # [4, 4]
    """A level frame as a camera of another orientation sees it at the same place."""
    rotation = frame.camera_to_world[:3, :3].T @ wanted[:3, :3]
    if (rotation - torch.eye(3)).abs().max() < SAME_WAY:
        return frame._replace(camera_to_world=wanted)
    depth, visibility = (rotate_panorama(plane, rotation, "nearest") for plane in (frame.depth, frame.visibility))
    return Frame(rotate_panorama(frame.image, rotation), depth, wanted, visibility)
