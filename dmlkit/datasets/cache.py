"""Arrays that are computed once and memory-mapped afterwards, whichever process comes first."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from dmlkit.paths import PROJECT_ROOT, write_atomically


def cached_array(
    name: str, shape: tuple[int, ...], dtype: type, fill: Callable[[np.ndarray], None]
) -> Tensor:
    """Return the memory-mapped array ``.cache/<name>.npy``, letting ``fill`` write it if absent.

    Processes that need the same array at once wait for the first to write it. A killed writer
    leaves nothing that a later one would read.

    Args:
        name: unique for the content, with its sub-folder, e.g. ``images/0a1b2c-48``.
        shape: shape of the array.
        dtype: NumPy scalar type of the array.
        fill: writes the values into the array it is given.
    """
    path: Path = PROJECT_ROOT / ".cache" / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            with write_atomically(path) as temporary:
                array = np.lib.format.open_memmap(temporary, "w+", dtype, shape)
                fill(array)
                array.flush()
    # Copy-on-write, because PyTorch has no read-only tensors and warns about read-only arrays.
    return torch.from_numpy(np.load(path, mmap_mode="c"))
