"""Randomness: one visible call per run, and independent streams derived from its seed."""

import hashlib
import random

import numpy as np
import torch

from dmlkit.processes import rank


def set_seed(seed: int, *, num_threads: int | None = None) -> None:
    """Seed Python, NumPy and PyTorch, and fix the number of CPU threads.

    The thread count belongs here because sums are split over threads, so results on a CPU are
    reproducible only at one thread count.

    Args:
        seed: any integer >= 0.
        num_threads: threads PyTorch uses within an operation; None leaves them as they are.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a seed in [0, 2**63) for one named use, e.g. ``derive_seed(3, "sampler")``.

    Streams that share a seed would be correlated (a sampler and an augmentation drawing the same
    numbers); hashing the name with the seed makes them independent and stable across versions.
    """
    digest = hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_of_images(seed: int) -> torch.Generator:
    """Return a generator of what is drawn image by image, such as crops.

    Where several processes share a run, each has a stream of its own, as each has other images.
    """
    return torch.Generator().manual_seed(derive_seed(seed, "process", rank()) if rank() else seed)
