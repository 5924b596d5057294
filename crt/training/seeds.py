"""One seed, and from it one for each purpose."""

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive_seed(seed, "noise", epoch)`; equal on every machine."""
    words = [part if isinstance(part, int) else int.from_bytes(part.encode(), "big") for part in purpose]
    state = np.random.SeedSequence([seed, *words]).generate_state(2, np.uint32)
    return int(state[0]) << 31 ^ int(state[1])
