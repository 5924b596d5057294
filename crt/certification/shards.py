"""Processes that share the images of one run, as torchrun starts them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from crt.errors import UserError
from crt.processes import world_size


@contextmanager
def all_done() -> Iterator[None]:
    """Leave the block only when every process has left it.

    Raises:
        UserError: another process ended before its share was done.
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
