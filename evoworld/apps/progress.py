"""Progress bars with the time left, on stderr; a terminal sees them, a log file does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar; gives the function that moves it on by one.

    Example:
        >>> with progress_bar("Counting", total=3) as advance:
        ...     for _ in range(3):
        ...         advance()
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("·"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a progress bar that counts those the loop has finished.

    Example:
        >>> list(track([1, 2, 3], "Counting"))
        [1, 2, 3]
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else 0
    with progress_bar(description, total) as advance:
        for item in items:
            yield item
            advance()
