"""What is killed resumes with the same command, to the same rows."""

import os
import random
import shutil
import signal
import subprocess

import pytest

from tests.drills.breaking import (
    CHAPTER,
    ONE_LOSS,
    TWO_WORKERS,
    assert_one_sentence,
    assert_whole,
    cached,
    heal,
    inject,
    kill,
    processes,
    row_files,
    run,
    said,
    start,
    wait_until,
)

NUM_RANDOM = 8
draw = random.Random(0)
# One in each eighth of an undisturbed run.
MOMENTS = [(eighth + draw.random()) / NUM_RANDOM for eighth in range(NUM_RANDOM)]

# Half of a file is written and waits to be renamed.
WRITING = """
import contextlib, fnmatch, os
write = write_atomically

@contextlib.contextmanager
def write_atomically(path):
    with write(path) as temporary:
        yield temporary
        if fnmatch.fnmatch(str(path), {pattern!r}):
            os.truncate(temporary, temporary.stat().st_size // 2)
            pause()
"""
# All of an array is written, and nothing says so yet.
CACHING = """
write = _write

def _write(folder, shapes, fill):
    def fill_and_wait(arrays):
        fill(arrays)
        if folder.parent.name == {kind!r}:
            pause()
    write(folder, shapes, fill_and_wait)
"""
DECODING = """
decode_file, decoded = decode_rgb, []

def decode_rgb(data):
    decoded.append(data)
    if len(decoded) == 30:
        pause()
    return decode_file(data)
"""
TRAINING = """
show = tqdm

def tqdm(steps, *arguments, **options):
    for step in show(steps, *arguments, **options):
        if step == 50:
            pause()
        yield step
"""
EVALUATION = """
measure, measured = retrieval_metrics, []

def retrieval_metrics(*arguments, **options):
    measured.append(1)
    if len(measured) == 5:
        pause()
    return measure(*arguments, **options)
"""


def writing(pattern):
    return "dmlkit.paths", WRITING.format(pattern=pattern)


STAGES = [  # in the order in which a run comes to them
    writing("*/fingerprints/*"),
    ("dmlkit.datasets.decoding", DECODING),
    ("dmlkit.datasets.cache", CACHING.format(kind="images")),
    ("dmlkit.datasets.cache", CACHING.format(kind="features")),
    ("dmlkit.training", TRAINING),
    ("dmlkit.evaluation", EVALUATION),
    writing("*/runs/*seed*.npz"),
    writing("*/runs/*.json"),
    writing("*/runs.csv"),
    writing("*/figures/*.png"),
    writing("*/tables/*.csv"),
    writing("*/chapter.ipynb"),
    writing("*/index.html"),
]


def assert_same(where, undisturbed):
    assert row_files(where / "results") == row_files(undisturbed / "results")
    assert cached(where) == cached(undisturbed)
    assert_whole(where)
    # What a killed writer left must not be taken for a figure or a table.
    assert "src='" in (page := (where / "results" / "index.html").read_text())
    assert f"{CHAPTER}/figures/." not in page


def running(where, seconds, *arguments):
    """Return a run that has gone on for so long; for less where the machine is faster by now."""
    while True:
        runner = start(where, *arguments)
        try:
            runner.wait(seconds)
        except subprocess.TimeoutExpired:
            return runner
        seconds *= 0.8
        for made in ("results", "cache"):
            shutil.rmtree(where / made)


@pytest.mark.parametrize("moment", MOMENTS, ids="{:.2f}".format)
def test_killed_at_random_it_resumes_to_the_same_rows(
    tmp_path, undisturbed, on_photographs, moment
):
    """SIGKILL of runner, workers and every second time kernels, at a random part of the run; rows,
    results by class, embeddings and caches equal; every file whole; no process left."""
    whole, seconds = undisturbed
    runner = running(tmp_path, moment * seconds, *on_photographs, *TWO_WORKERS)
    kill(runner, tmp_path, kernels_too=MOMENTS.index(moment) % 2 == 0)
    assert_whole(tmp_path)
    assert run(tmp_path, *on_photographs, *TWO_WORKERS) == 0, said(tmp_path)
    assert_same(tmp_path, whole)


def test_killed_at_every_stage_in_turn_it_resumes_to_the_same_rows(
    tmp_path, undisturbed, on_photographs, record_property
):
    """The same command killed again and again: while it checks files, decodes, writes caches of
    images and features, trains, evaluates, has written half of results by class, row, runs.csv,
    figure, table, notebook, index; then rows and caches equal."""
    for number, stage in enumerate(STAGES):
        reached = inject(tmp_path, *stage)
        runner = start(tmp_path, *on_photographs, *TWO_WORKERS)
        wait_until(lambda: reached.exists() or runner.poll() is not None)  # noqa: B023
        assert reached.exists(), f"stage {number}: {said(tmp_path)}"
        kill(runner, tmp_path, kernels_too=number % 2 == 0)
        assert_whole(tmp_path)
    heal(tmp_path)
    assert run(tmp_path, *on_photographs, *TWO_WORKERS) == 0, said(tmp_path)
    assert_same(tmp_path, undisturbed[0])
    record_property("survived", f"{len(STAGES)} of {len(STAGES)}")


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, (130, 143)), (signal.SIGINT, (130,))],
    ids=["term", "int"],
)
def test_a_polite_signal_ends_all_processes_with_one_sentence(tmp_path, one_loss, number, status):
    """SIGTERM to the runner alone, as from systemd or kill; SIGINT to all, as from Ctrl-C: within
    60 s it ends, in 30 more no process is left, one sentence is said, the command resumes."""
    reached = inject(tmp_path, "dmlkit.training", TRAINING.replace("50", "5"))
    runner = start(tmp_path, *ONE_LOSS)
    wait_until(reached.exists)
    (os.kill if number == signal.SIGTERM else os.killpg)(runner.pid, number)
    assert runner.wait(60) in status
    wait_until(lambda: not processes(tmp_path), seconds=30)
    assert_one_sentence(tmp_path, "the same command resumes")
    heal(tmp_path)
    assert run(tmp_path, *ONE_LOSS) == 0, said(tmp_path)
    assert row_files(tmp_path / "results") == row_files(one_loss / "results")
