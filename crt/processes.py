"""Which of the processes of a run this one is, as torchrun says in the environment. Without torchrun: the only one."""

import os


def rank() -> int:
    """This process' number among `world_size()`."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """The number of processes, on all machines together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
