"""Arrays that are computed once and memory-mapped afterwards, whichever process comes first."""

import math
import mmap
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from dmlkit.paths import PROJECT_ROOT, check_writable
from dmlkit.processes import rank

# Python names it from 3.13 on; the number is that of Linux.
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
Shapes = dict[str, tuple[tuple[int, ...], type]]


def cache_folder() -> Path:
    """Return the folder of all caches: ``.cache`` of the project, or what DMLKIT_CACHE names."""
    return Path(os.environ.get("DMLKIT_CACHE") or PROJECT_ROOT / ".cache").expanduser()


def is_cached(name: str) -> bool:
    """Whether the arrays called ``name`` are complete."""
    return (cache_folder() / name).is_dir()


def bytes_begun(name: str) -> int:
    """Return the room on the disk that a writer of ``name`` has taken, or a killed one has left."""
    partial = _partial(cache_folder() / name)
    try:
        return sum(path.stat().st_size for path in partial.glob("*.npy"))
    except FileNotFoundError:  # it has just been completed
        return 0


def cached_arrays(
    name: str, shapes: Shapes, fill: Callable[[dict[str, np.ndarray]], None]
) -> dict[str, Tensor]:
    """Return memory-mapped arrays from the folder ``name``, letting ``fill`` write them if absent.

    Processes that need the same arrays at once wait for the first to write them. A killed writer
    leaves nothing that a later one would read; what it left is removed by the next.

    Args:
        name: unique for the content, with its sub-folder, e.g. ``images/0a1b2c-48``.
        shapes: shape and NumPy scalar type of each array.
        fill: writes the values into the arrays it is given.
    """
    folder = cache_folder() / name
    while rank() and not folder.is_dir():
        time.sleep(0.2)  # of processes that share a run the first one draws, as if it were alone
    if not folder.is_dir():
        try:
            check_writable(folder.parent)
        except PermissionError as error:
            raise PermissionError(f"{error}; DMLKIT_CACHE names the folder of caches") from error
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _write(folder, shapes, fill)
    return {array: _mapped(folder / f"{array}.npy", *shapes[array]) for array in shapes}


def _mapped(path: Path, shape: tuple[int, ...], dtype: type) -> Tensor:
    """Return the array in ``path``, read from disk as it is used; writing to it changes no file.

    PyTorch has no read-only tensors, so the mapping is private. By default Linux refuses a private
    mapping larger than memory, for it might all be written to; MAP_NORESERVE says that it is not.
    """
    if not math.prod(shape):
        return torch.from_numpy(np.load(path))
    flags = mmap.MAP_PRIVATE | NO_RESERVE
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    start = len(mapped) - math.prod(shape) * np.dtype(dtype).itemsize  # behind the header
    return torch.from_numpy(np.frombuffer(mapped, dtype, offset=start).reshape(shape))


def _write(folder: Path, shapes: Shapes, fill: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Fill the arrays beside ``folder`` and rename them into place."""
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)  # of a writer that was killed
    partial.mkdir()
    try:
        arrays = {
            array: _allocate(partial / f"{array}.npy", shape, dtype)
            for array, (shape, dtype) in shapes.items()
        }
        fill(arrays)
        for array in arrays.values():
            array.flush()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(folder: Path) -> Path:
    """Return where ``folder`` is written before it is whole."""
    return folder.with_name(f".{folder.name}.partial")


def _allocate(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Return a new array in ``path`` whose room on the disk is taken.

    Raises:
        PermissionError: the disk is too small; without asking now, a later write would kill the
            process.
    """
    try:
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        raise PermissionError(
            f"{path.parent.parent} has no room for {size / 1e9:.1f} GB ({error.strerror}); make "
            "room, or set DMLKIT_CACHE to a folder on another disk"
        ) from error
    return array
