"""The processes that execute notebooks, here and on a cluster elsewhere."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dmlkit import workers


def environment():
    return {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "TMPDIR")}


def die_once(marker):
    """Kill this process, the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


DASK = [sys.executable, "-m", "dask"]


def begin(noted):
    """Note the number of this process, and go on for long."""
    Path(noted).write_text(str(os.getpid()))
    time.sleep(600)


@pytest.fixture(scope="module")
def scheduler():
    """Return the address of a scheduler in a process of its own."""
    command = [*DASK, "scheduler", "--port", "0", "--no-dashboard"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            told = next(line for line in process.stderr if "Scheduler at" in line)
            yield re.search(r"tcp://\S+", told)[0]
        finally:
            process.terminate()


@contextmanager
def worker_of(scheduler, *, threads=1):
    """Run a worker of that scheduler in a process of its own."""
    command = [*DASK, "worker", scheduler, "--nthreads", str(threads), "--no-dashboard"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


def test_each_local_worker_has_a_gpu_of_its_own_as_far_as_there_are(monkeypatch):
    monkeypatch.setattr(workers, "_gpus", lambda: ["0", "1"])
    assert workers.local_workers(wants_gpu=True, threads=1) == 2
    with workers.connect(3, None) as client:
        assert workers.num_workers(client) == 3
        seen = client.run(environment).values()
        folders = {environment["TMPDIR"] for environment in seen}
        gpus = sorted(str(environment["CUDA_VISIBLE_DEVICES"]) for environment in seen)
    assert gpus == ["0", "1", str(os.environ.get("CUDA_VISIBLE_DEVICES"))]
    assert len(folders) == 1 and not Path(folders.pop()).exists()  # it went with the cluster


def test_processes_that_share_runs_have_a_gpu_each(monkeypatch):
    monkeypatch.setattr(workers, "_gpus", lambda: ["1", "2", "5", "6", "7"])
    assert workers.local_workers(wants_gpu=True, threads=1, processes=2) == 2
    with workers.connect(2, None, 2) as client:
        seen = client.run(environment).values()
        gpus = sorted(environment["CUDA_VISIBLE_DEVICES"] for environment in seen)
    assert gpus == ["1,2", "5,6"]
    with pytest.raises(ValueError, match="6 processes per run need as many GPUs; here are 5"):
        workers.local_workers(wants_gpu=True, threads=1, processes=6)


def test_cores_are_shared_out_where_no_gpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(workers, "_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert workers.local_workers(wants_gpu=False, threads=4) == 4
    assert workers.local_workers(wants_gpu=False, threads=32) == 1


def test_what_a_lost_worker_was_doing_is_done_again(tmp_path):
    with workers.connect(1, None) as client:
        assert client.submit(die_once, str(tmp_path / "died")).result(timeout=60) == "done"


def test_an_interrupt_ends_all_workers_at_once():
    with pytest.raises(KeyboardInterrupt), workers.connect(2, None) as client:
        running = [client.submit(time.sleep, 600 + n) for n in range(2)]
        pids = client.run(os.getpid).values()
        raise KeyboardInterrupt
    del running
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_cluster_elsewhere_is_refused_if_workers_would_disturb_each_other(scheduler):
    refused = pytest.raises(ValueError, match="start it with --nthreads 1")
    with worker_of(scheduler, threads=2), refused, workers.connect(None, scheduler):
        pass


def test_an_interrupt_ends_what_was_begun_on_a_cluster_elsewhere(scheduler, tmp_path):
    child = tmp_path / "child"
    with worker_of(scheduler):
        with pytest.raises(KeyboardInterrupt), workers.connect(None, scheduler) as client:
            begun = client.submit(begin, str(child))
            while not child.exists() or not child.read_text():
                time.sleep(0.1)
            raise KeyboardInterrupt
        del begun
        pid = int(child.read_text())
        while psutil.pid_exists(pid):
            time.sleep(0.1)
        # The cluster itself goes on.
        with workers.connect(None, scheduler) as client:
            assert client.submit(sum, [1, 2]).result(timeout=60) == 3


def test_a_cluster_with_other_code_is_refused(scheduler, copied_book, monkeypatch):
    (copied_book / "01_evaluation.py").write_text("edited")
    monkeypatch.setattr(workers, "BOOK", copied_book)
    refused = pytest.raises(ValueError, match="has other code")
    with worker_of(scheduler), refused, workers.connect(None, scheduler):
        pass


def test_visible_gpus_are_those_that_the_caller_may_use(monkeypatch):
    listed = subprocess.CompletedProcess([], 0, "GPU 0: a\nGPU 1: b\nGPU 2: c\n")
    monkeypatch.setattr(workers.shutil, "which", lambda name: name)
    monkeypatch.setattr(workers.subprocess, "run", lambda *_, **__: listed)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert workers._gpus() == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert workers._gpus() == ["2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert workers._gpus() == []


def test_local_workers_listen_to_this_machine_alone():
    with workers.connect(1, None) as client:
        client.wait_for_workers(1)
        pids = [*client.run(os.getpid).values(), os.getpid()]
        open_to = {
            connection.laddr.ip
            for pid in pids
            for connection in psutil.Process(pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    assert open_to == {"127.0.0.1"}


def test_a_cluster_that_has_lost_its_workers_is_not_waited_for(scheduler, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 5)
    gone = pytest.raises(OSError, match="has no workers any more; start some")
    with worker_of(scheduler) as worker, gone, workers.connect(None, scheduler) as client:
        workers.check_alive(client)
        worker.terminate()
        worker.wait()
        workers.check_alive(client)


def test_what_is_no_address_is_named():
    refused = pytest.raises(ValueError, match="localhost is no address; give --scheduler tcp://")
    with refused, workers.connect(None, "localhost"):
        pass


def test_a_missing_scheduler_is_named(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.2)
    refused = pytest.raises(OSError, match="no Dask scheduler with workers answers at tcp://127")
    with refused, workers.connect(None, "tcp://127.0.0.1:1"):
        pass
