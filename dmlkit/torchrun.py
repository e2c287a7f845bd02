"""Fill the rows of a chapter with several processes per training run, each with a GPU of its own.

``torchrun --nproc-per-node 4 -m dmlkit.torchrun 02_baseline_losses '{"SEEDS": [0]}'``; for whole
profiles, ``dmlkit run --processes-per-run 4`` does the same.
"""

import json
import os
import sys
import threading
import time
from typing import Any

import psutil
import torch
import torch.distributed as dist

from dmlkit.chapters import (
    chapter_source,
    checked_parameters,
    parameter_defaults,
    read_notebook,
    up_to_runs,
)
from dmlkit.paths import PROJECT_ROOT


def fill_rows(chapter: str, parameters: dict[str, Any]) -> None:
    """Execute a chapter up to its cell tagged ``runs``, as a script.

    Args:
        chapter: name of the chapter.
        parameters: values that replace those of its parameters cell.
    """
    given = checked_parameters(parameters, parameter_defaults(chapter), chapter)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(up_to_runs(read_notebook(chapter_source(chapter))).cells):
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and "pictures" not in tags:
            exec(compile(cell.source, f"{chapter}, cell {number}", "exec"), namespace)
        if "parameters" in tags:
            namespace |= given


def _follow(runner: int) -> None:
    """End this process when the one that called torchrun is gone, which torchrun does not do."""
    while psutil.pid_exists(runner):
        time.sleep(1)
    os._exit(1)


def main() -> int:
    """Join the processes that torchrun started, fill the rows, and return the exit status."""
    chapter, parameters = sys.argv[1], json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}")
    if runner := int(os.environ.get("DMLKIT_STARTED_BY", 0)):
        threading.Thread(target=_follow, args=[runner], daemon=True).start()
    os.chdir(PROJECT_ROOT / "book")
    os.environ.setdefault("MPLBACKEND", "agg")
    has_gpus = torch.cuda.is_available() and parameters.get("DEVICE") != "cpu"
    if has_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if has_gpus else "gloo")
    try:
        fill_rows(chapter, parameters)
    except Exception as error:
        print(f"dmlkit: {chapter}: {error}", file=sys.stderr)
        raise
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
