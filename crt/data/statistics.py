"""Pixel statistics of prepared drops."""

from collections.abc import Sequence

import numpy as np

from crt.data.store import Store


def mean_and_std(stores: Sequence[Store], chunk: int = 4096) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of all training pixels, in [0,1] units; exact, in one pass.

    A channel without any variation gets a standard deviation of 1.
    """
    channels = stores[0].spec.channels
    counts = np.zeros((channels, 256), np.int64)
    for store in stores:
        for start in range(0, len(store), chunk):
            used = ~store.validation[start : start + chunk]
            part = store.images[start : start + chunk][used].reshape(-1, channels)
            counts += np.stack([np.bincount(part[:, c], minlength=256) for c in range(channels)])
    values = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    return mean.tolist(), np.where(std > 0, std, 1.0).tolist()
