import os
import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource
import sys

import torch

from crt.memory import keep_freed_memory

def step():
    held = [torch.zeros(10 << 20) for _ in range(4)]  # 40 MiB each: more than glibc ever keeps by itself

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what: str, **variables: str) -> int:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, what],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose allocator this sets")
def test_freed_memory_is_used_again_without_page_faults_unless_the_user_has_settings_of_their_own():
    left, kept, own = faults("leave"), faults("keep"), faults("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert kept < left / 10  # not none: the heap can still be growing
    assert own > left / 2
