"""Under what circumstances a run was made: code, versions, memory."""

import platform
import resource
import subprocess
from functools import lru_cache

import numpy as np
import torch
import torchvision

from dmlkit.paths import PROJECT_ROOT


def peak_mib(cuda: bool) -> int:
    """Return the most memory held: of the GPU by this run, or of RAM by this process so far."""
    if cuda:
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10  # KiB on Linux


@lru_cache(maxsize=1)
def commit() -> str:
    """Return the short hash of the checked-out commit, with ``+`` if tracked files differ.

    But not the chapters' notebooks: these are built from their sources, and JupyterLab saves into
    them what cells show.
    """
    git = ["git", "-C", str(PROJECT_ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", ":!book/*.ipynb"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def versions() -> str:
    """Return the versions of Python and of the libraries that make the numbers."""
    return (
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, numpy {np.__version__}"
    )
