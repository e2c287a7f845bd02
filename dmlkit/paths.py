"""Where the project is, and writing files so that nobody ever reads half of one."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[1]


def resolve(path: str | Path) -> Path:
    """Return ``path`` as it is when absolute, else below the project root.

    JupyterLab starts kernels beside the notebook and papermill where it was called, so a path
    relative to the current folder would mean two things.
    """
    return PROJECT_ROOT / Path(path).expanduser()


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it replaces ``path`` only if the block succeeds.

    Raises:
        PermissionError: the folder cannot be written to, or its disk is full.
        FileNotFoundError: the folder was taken away meanwhile.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
    except OSError as error:  # no permission, a file in the way, a read-only or full disk
        raise PermissionError(
            f"cannot write to {path.parent} ({error.strerror}); choose another folder, make room "
            "or change its permissions"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; results and caches are as readable as any other file.
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"{path.parent} was taken away while {path.name} was written; the same command "
                "makes it again"
            ) from error
        if _is_disk_full(path.parent, error):
            raise PermissionError(
                f"cannot write to {path.parent} (no space left on its disk); make room, and the "
                "same command resumes"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _is_disk_full(folder: Path, error: Exception) -> bool:
    """Whether an error in writing to ``folder`` came from the size of its disk."""
    if getattr(error, "errno", None):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return shutil.disk_usage(folder).free < 2**16  # NumPy and PyTorch do not say


def check_writable(folder: Path) -> None:
    """Make ``folder`` and see that files can be written there, now rather than after an hour.

    Raises:
        PermissionError: they cannot, said in one sentence.
    """
    with write_atomically(folder / ".writable") as path:
        path.write_text("yes")  # an empty file fits on a full disk
    (folder / ".writable").unlink(missing_ok=True)
