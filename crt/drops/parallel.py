"""Work on many items with all cores, results in order, in bounded memory."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_INLINE = 512  # so few images are decoded faster than processes start


def map_chunks(
    function: Callable[[list[T]], list[R]], items: Sequence[T], chunk: int, workers: int
) -> Iterator[R]:
    """The results of `function` over `items`, which it gets in lists of `chunk`, in the order of the items.

    Args:
        function: importable by name, as it runs in other processes.
        workers: processes; 0: one per core. Few items are worked on in this process.
    """
    chunks = (list(items[start : start + chunk]) for start in range(0, len(items), chunk))
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(items) <= _INLINE:
        for part in chunks:
            yield from function(part)
        return
    # Only so many tasks are out at a time: results cannot pile up where their consumer is the slow part.
    # Spawned, not forked: the parent may have threads (Arrow's, BLAS's).
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        pending: deque[Future[list[R]]] = deque()
        for part in chunks:
            pending.append(pool.submit(function, part))
            if len(pending) >= 2 * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
