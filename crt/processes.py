"""Which of a run's processes this one is, as torchrun says in the environment; else the only one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from crt.errors import UserError


def rank() -> int:
    """This process' number among `world_size()`."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes, on all machines together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def finished_together() -> Iterator[None]:
    """Leave the block only when every process has left it.

    Raises:
        UserError: Another process ended before its share was done.
    """
    if world_size() == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(days=30))  # shares may end hours apart
    try:
        yield
        dist.barrier()
    except RuntimeError as error:
        raise UserError(
            "another process of this run was lost: run the same command again, finished images are kept"
        ) from error
    finally:
        dist.destroy_process_group()
