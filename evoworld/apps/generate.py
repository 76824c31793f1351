"""`evoworld generate`: words, a picture or a world that exists become a walk through a world that is remembered."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import evoworld
from evoworld.apps.generated import write_pictures, write_walk
from evoworld.apps.media import atomic_path, check_video
from evoworld.apps.photo import read_photo
from evoworld.apps.progress import progress_bar
from evoworld.apps.render import check_output_folder
from evoworld.apps.routes import loop, stretches
from evoworld.apps.trajectories import MAX_FRAMES, level_pose, read_path, yaw_of
from evoworld.world import Memory
from evoworld.world.evolve import LONGEST_PROMPT, Frame, World

ROUTES = ("forward", "loop", "explore")
SAMPLING = ("steps", "text_guidance", "memory_guidance")
EYES = 1.5  # metres above the ground where a new world begins
LARGEST_STEP = 1.0  # metres between frames: what lies further on has nothing in common with what was made
LARGEST_LEAP = 3.0  # metres from any place that a world was seen from to where a path through it begins
SAVE_SECONDS = 20.0  # between two writings of the world while it is made


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument("--prompt", metavar="WORDS", help="what the world is like")
    parser.add_argument("--image", metavar="FILE", help="what it looks like: a panorama, or with --fov a photo")
    parser.add_argument("--fov", type=float, metavar="DEGREES", help="of a perspective photo, horizontal")
    parser.add_argument("--world", metavar="FILE", help="go on from a world file, of generate or reconstruct")
    parser.add_argument(
        "--trajectory",
        default="loop",
        metavar="forward|loop|explore|FILE.json",
        help="straight on, a circle and back (default), where there is space, or a path file",
    )
    parser.add_argument("--frames", type=int, default=33, metavar="N", help="default 33")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="another number makes another world; default 0"
    )
    parser.add_argument("--out", default="generated", metavar="DIR", help="folder for the results; default generated")
    parser.add_argument("--model", default="tiny", metavar="NAME|FILE", help="default tiny; none: no network")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--steps", type=int, metavar="N", help="of sampling; default 2, more from words alone")
    text = "above 1: the words count more; default 1, more where they are all there is"
    parser.add_argument("--text-guidance", type=float, metavar="S", help=text)
    parser.add_argument("--memory-guidance", type=float, metavar="S", help="above 1: the memory counts more; default 1")
    parser.add_argument("--fps", type=float, default=8.0, help="frames a second of the video; default 8")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    asked = check(args)
    out = Path(args.out)
    check_output_folder(out / "walk")
    image = None if args.image is None else read_photo(args.image, args.fov)
    path = None if args.trajectory in ROUTES else read_path(args.trajectory, args.frames)
    if path is not None:
        check_steps(path, args.trajectory)
        asked["frames"] = len(path)  # a path file may say how many
    if args.model == "none" and args.image is None and args.world is None:
        print("Without a network (--model none) nothing comes of words: the world will be grey.")
    with _memory_advice(args.device):
        world = load(args)
        memory = None if args.world is None else Memory.load(args.world, args.device)
        start = first_pose(memory, path, args.world)
        seen_from = None if image is None else start
        prompt = args.prompt or ""
        world.start(image, fov=args.fov, prompt=prompt, world=memory, seed=args.seed, camera_to_world=seen_from)
        known = make(world, args.trajectory, path, start, asked["frames"], out, args.fps, asked)
    write_pictures(out, known, asked, image)
    print(f"Done, {len(known)} frames of {world.camera.height} x {world.camera.width}:")
    results = {
        "walk.mp4": "a 360° video",
        "walk": "its frames and their depth; itself a capture",
        "stills": "360° and perspective views",
        "world.safetensors": "the world; render walks through it, generate --world goes on from it",
        "contact_sheet.png": "all at a glance",
        "generate.json": "what was asked for",
    }
    for name, what in results.items():
        print(f"  {out / name!s:<{len(str(out)) + 20}}  {what}")
    return 0


def check(args: argparse.Namespace) -> dict:
    """What is asked for, as the JSON file says it.

    Raises:
        ValueError: options that contradict each other or cannot be; the message names the option.
    """
    if args.prompt is None and args.image is None and args.world is None:
        raise ValueError("expected --prompt, --image or --world, or several of them, got none")
    for name in ("image", "world", "model", "out"):
        if getattr(args, name) == "":
            raise ValueError(f"--{name}: expected a {'folder' if name == 'out' else 'file'}, got no name")
    if args.prompt is not None:
        if not args.prompt.strip():
            raise ValueError("--prompt: expected words, got none")
        if len(args.prompt) > LONGEST_PROMPT:
            raise ValueError(f"--prompt: expected at most {LONGEST_PROMPT} characters, got {len(args.prompt)}")
    if args.fov is not None and args.image is None:
        raise ValueError("--fov: belongs to --image, which is not given")
    if not 1 <= args.frames <= MAX_FRAMES:
        raise ValueError(f"--frames: expected 1 to {MAX_FRAMES}, got {args.frames}")
    for name, value in sampling(args).items():
        least = 1 if name == "steps" else 0
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"--{name.replace('_', '-')}: expected a number from {least} on, got {value}")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed: expected a number from 0 on, got {args.seed}")
    if args.trajectory not in ROUTES and not args.trajectory.lower().endswith(".json"):
        raise ValueError(f"--trajectory: expected {', '.join(ROUTES)} or a path file (.json), got {args.trajectory!r}")
    check_device(args.device)
    check_video("walk.mp4", 2, 4, args.fps)
    names = ("prompt", "image", "fov", "world", "trajectory", "frames", "seed", "model", "device", *SAMPLING)
    return {name: getattr(args, name) for name in names}


def sampling(args: argparse.Namespace) -> dict[str, float]:
    """What is asked for of `SAMPLING`; for the rest the world has defaults."""
    return {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}


def check_device(name: str) -> None:
    """Raises ValueError for a device that is not here."""
    if name != "cpu" and not name.startswith("cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {name!r}")
    if name != "cpu" and not torch.cuda.is_available():
        raise ValueError("--device: there is no CUDA device here; --device cpu works everywhere")


def check_steps(
    path: torch.Tensor,  # [N, 4, 4]
    name: str,
) -> None:
    """Raises ValueError where a path jumps."""
    steps = (path[1:, :3, 3] - path[:-1, :3, 3]).norm(dim=-1)
    if len(steps) and float(steps.max()) > LARGEST_STEP:
        frame = int(steps.argmax()) + 1
        raise ValueError(
            f"{name}: jumps by {float(steps.max()):.1f} m at frame {frame}; expected at most {LARGEST_STEP:g} m "
            "between frames: ask for more frames, or set the keys nearer together"
        )


def load(args: argparse.Namespace) -> World:
    """The world of the command's model."""
    if args.model == "none":
        return World.load("none", args.device)
    return World.load(args.model, args.device, **sampling(args))


def first_pose(memory: Memory | None, path: torch.Tensor | None, name: str | None) -> torch.Tensor:  # [4, 4]
    """Where the walk begins: at the path's first pose, else where the world was last added to, else upright.

    Raises:
        ValueError: the world was seen from nowhere, or the path begins far from all places that it was seen from.
    """
    if memory is None:
        return level_pose(torch.tensor([0.0, 0.0, EYES]), torch.tensor(0.0)) if path is None else path[0]
    places = memory.poses.cpu()
    if len(places) == 0:
        raise ValueError(f"{name}: this world is empty, nothing was observed into it")
    if path is None:
        return level_pose(places[-1, :3, 3], yaw_of(places[-1]))
    nearest = float((places[:, :3, 3] - path[0, :3, 3]).norm(dim=-1).min())
    if nearest > LARGEST_LEAP:
        raise ValueError(
            f"--trajectory: begins {nearest:.1f} m from the nearest place that {name} was seen from; expected at most "
            f"{LARGEST_LEAP:g} m"
        )
    return path[0]


def walk(
    world: World,
    trajectory: str,
    path: torch.Tensor | None,  # [N, 4, 4]
    start: torch.Tensor,  # [4, 4]
    num_frames: int,
) -> Iterator[Frame]:
    """The frames of a path, or of a route that is planned on the way."""
    if path is not None:
        yield from world.walk(path)
        return
    (first,) = world.walk(start[None])
    yield first
    if num_frames == 1:
        return
    if trajectory == "loop":
        yield from world.walk(loop(first.depth.cpu(), start, num_frames)[1:])
        return
    route = stretches(trajectory, (first.depth.cpu(), start), num_frames, world.num_frames)
    poses = next(route)
    while True:
        for frame in world.walk(poses):
            yield frame
        try:
            poses = route.send(frame.depth.cpu())
        except StopIteration:
            return


def make(
    world: World,
    trajectory: str,
    path: torch.Tensor | None,  # [N, 4, 4]
    start: torch.Tensor,  # [4, 4]
    num_frames: int,
    out: Path,
    fps: float,
    asked: dict,
) -> list[float]:
    """Makes and writes the walk; whatever stops it, all finished frames and a world file that loads are left.

    Returns:
        The share of each frame that the memory knew before.

    Raises:
        What stopped it, after the rest is written.
    """
    world_file, known = out / "world.safetensors", []
    write_request(out, asked, 0, math.nan)
    begun, kept = time.perf_counter(), -math.inf

    def frames(advance: Callable[[], None], check_stop: Callable[[], None]) -> Iterator[Frame]:
        nonlocal kept
        for frame in walk(world, trajectory, path, start, num_frames):
            yield frame
            advance()
            if time.perf_counter() - kept > SAVE_SECONDS:
                world.save(world_file)
                kept = time.perf_counter()
            check_stop()

    with stopped_between_frames() as check_stop:
        try:
            with progress_bar("Generating", num_frames) as advance:
                write_walk(out, world.camera, frames(advance, check_stop), fps, known)
        finally:
            write_request(out, asked, len(known), (time.perf_counter() - begun) / max(len(known), 1))
            if len(world.memory.poses):
                world.save(world_file)
    return known


@contextmanager
def stopped_between_frames() -> Iterator[Callable[[], None]]:
    """Holds Ctrl-C and a request to end back until a frame is written; a second one is followed at once.

    Gives a function that raises KeyboardInterrupt if there was one. Only the main thread can hold signals back.
    """
    asked_to_stop = threading.Event()

    def stop(number, frame) -> None:
        if asked_to_stop.is_set():
            raise KeyboardInterrupt
        asked_to_stop.set()

    def check_stop() -> None:
        if asked_to_stop.is_set():
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield check_stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    check_stop()  # asked for after the last frame


def write_request(out: Path, asked: dict, finished: int, seconds: float) -> None:
    """Writes what was asked for and how far it came."""
    came = {"finished_frames": finished, "seconds_a_frame": round(seconds, 4) if math.isfinite(seconds) else None}
    with atomic_path(out / "generate.json") as temporary:
        content = {"asked": asked, **came, "evoworld": evoworld.__version__, "torch": torch.__version__}
        temporary.write_text(json.dumps(content, indent=2) + os.linesep, encoding="utf-8")


@contextmanager
def _memory_advice(device: str) -> Iterator[None]:
    """Turns a device that is full into a message that says what to do."""
    try:
        yield
    except RuntimeError as error:  # on the CPU torch has no error of its own for it
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        raise OSError(
            f"out of memory on {device}: use a smaller model (--model tiny), --device cpu, or close what else uses it"
        ) from error
