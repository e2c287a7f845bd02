"""The processes that execute notebooks: a Dask cluster of this machine, or any other."""

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from distributed import Client, Future, Nanny, Scheduler, SpecCluster

from dmlkit.chapters import BOOK
from dmlkit.paths import PROJECT_ROOT

PATIENCE = 30  # seconds, for a cluster to answer


def local_workers(*, wants_gpu: bool, threads: int, processes: int = 1) -> int:
    """Return how many notebooks share this machine well.

    Args:
        wants_gpu: one per GPU, if there are any.
        threads: else, one per so many cores.
        processes: each of which takes so many GPUs, or so many times these cores.

    Raises:
        ValueError: fewer GPUs than processes.
    """
    gpus = len(_gpus()) if wants_gpu else 0
    if 0 < gpus < processes:
        raise ValueError(f"{processes} processes per run need as many GPUs; here are {gpus}")
    return max(1, (gpus or (os.cpu_count() or 1) // threads) // processes)


@contextmanager
def connect(workers: int | None, scheduler: str | None, processes: int = 1) -> Iterator[Client]:
    """Yield a client of a cluster: of new processes here, or of the one at an address.

    A notebook whose worker is lost is given to another, or to the same started anew.

    Args:
        workers: number of processes here, which get GPUs of their own as far as there are any.
        scheduler: address such as ``tcp://host:8786``, whose workers see the same files.
        processes: GPUs of each worker here, one for each process that shares its runs.

    Raises:
        OSError: nothing answers at the address, or it has no workers.
        ValueError: its workers have other code, or take several notebooks at once.
    """
    if scheduler:
        with _client_of(scheduler) as client:
            _check(client, processes)
            try:
                yield client
            except BaseException:
                with suppress(Exception):  # of a cluster that is gone; the first error counts
                    _stop_notebooks(client)
                raise
        return
    # So that temporary files are gone in the end, whichever process is killed.
    with tempfile.TemporaryDirectory(prefix="dmlkit-", ignore_cleanup_errors=True) as folder:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        with _cluster(workers or 1, folder, processes) as cluster:
            try:
                with Client(cluster) as client:
                    client.wait_for_workers(workers or 1)
                    yield client
            except BaseException:
                # Killed, since a notebook that is interrupted politely counts as a dead kernel and
                # is tried again. Rows are whole or absent, and kernels follow what made them.
                for nanny in cluster.workers.values():
                    nanny.auto_restart = False
                    if nanny.process and nanny.process.process:
                        nanny.process.process.kill()
                raise


def _stop_notebooks(client: Client) -> None:
    """End what this client has begun, and no more; a running notebook has no other end."""
    ours = [Future(key, client) for key in client.futures]
    busy = [worker for worker, stacks in client.call_stack(ours).items() if stacks]
    client.cancel(ours, force=True)
    if busy:
        client.restart_workers(busy, raise_for_error=False)


def check_alive(client: Client) -> None:
    """Raise if the cluster is gone, in which notebooks would be waited for without end.

    Raises:
        OSError: the scheduler does not answer, or has had no worker for a while.
    """
    address = client.scheduler.address if client.scheduler else "its address"
    if client.status not in ("running", "connecting"):
        raise OSError(f"the Dask scheduler at {address} is gone; the same command resumes")
    with suppress(OSError, TimeoutError):
        if num_workers(client):
            return
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except OSError as error:
        raise OSError(
            f"the Dask scheduler at {address} has no workers any more; start some, and the same "
            "command resumes"
        ) from error


def num_workers(client: Client) -> int:
    """Return how many workers a cluster has."""
    return len(client.scheduler_info(n_workers=-1)["workers"])


def _cluster(workers: int, folder: str, processes: int) -> SpecCluster:
    """Return a cluster of processes with one thread each, no limit of memory and no web page."""
    gpus = _gpus()
    of_all = {"nthreads": 1, "memory_limit": 0, "local_directory": folder}
    of_all |= {"silence_logs": logging.CRITICAL}
    env = {"TMPDIR": folder}
    # Any ports: several runners may work on one machine. And only this one: whoever reaches a
    # worker can let it execute code.
    here = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    of_all |= here
    own = []
    for first in range(0, workers * processes, processes):
        taken = gpus[first : first + processes]
        own.append({"CUDA_VISIBLE_DEVICES": ",".join(taken)} if len(taken) == processes else {})
    return SpecCluster(
        workers={
            n: {"cls": Nanny, "options": of_all | {"env": env | own[n]}} for n in range(workers)
        },
        scheduler={"cls": Scheduler, "options": here},
        silence_logs=logging.CRITICAL,
    )


def _gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, without importing torch."""
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    mine = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
    return [name for name in mine.split(",") if name] if count else []


def _client_of(scheduler: str) -> Client:
    try:
        client = Client(scheduler, timeout=PATIENCE)
        client.wait_for_workers(1, timeout=PATIENCE)
    except ValueError as error:
        raise ValueError(f"{scheduler} is no address; give --scheduler tcp://host:8786") from error
    except OSError as error:
        raise OSError(
            f"no Dask scheduler with workers answers at {scheduler}; start `dask scheduler`, and "
            "`dask worker ADDRESS --nthreads 1` once for each GPU"
        ) from error
    return client


def _check(client: Client, processes: int) -> None:
    """Raise if workers would make other numbers than this process, or disturb each other."""
    ours = digest_of_code()
    workers = client.scheduler_info(n_workers=-1)["workers"]
    for address, theirs in client.run(digest_of_code).items():
        if theirs != ours:
            raise ValueError(
                f"the worker {address} has other code than this process; let both run from the "
                "same folder, at the same commit, and start the worker anew"
            )
        if workers[address]["nthreads"] > 1:
            raise ValueError(
                f"the worker {address} would run several notebooks in one process; start it with "
                "--nthreads 1, and further ones with --nworkers"
            )
        if not workers[address].get("nanny"):
            raise ValueError(
                f"the worker {address} has no nanny, which ends notebooks; start it with one"
            )
    for address, theirs in client.run(_gpus).items():
        if 0 < len(theirs) < processes:
            raise ValueError(
                f"{processes} processes per run need as many GPUs; the worker {address} has "
                f"{len(theirs)}"
            )


def digest_of_code() -> str:
    """Return a digest of the package and the chapters as they lie where this is called."""
    digest = hashlib.sha256()
    for path in sorted([*(PROJECT_ROOT / "dmlkit").rglob("*.py"), *BOOK.glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
