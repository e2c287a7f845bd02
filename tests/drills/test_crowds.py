"""Many kernels at once, kernels that die, and two runners on one folder."""

import pytest

from tests.drills.breaking import (
    CHAPTER,
    ONE_LOSS,
    PATIENCE,
    TWO_WORKERS,
    assert_one_sentence,
    assert_whole,
    heal,
    inject,
    row_files,
    run,
    said,
    start,
)

SIXTEEN = ("--workers", "16", "-p", "SEEDS", "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]")
SIXTEEN += ("-p", "METHODS", "[contrastive]", "-p", "REFERENCES", "[]")
SIXTEEN += ("-p", "STEPS", "100", "-p", "MEASURE_EVERY", "100")


def test_sixteen_kernels_start_at_once(tmp_path, record_property):
    """16 notebooks of one run at once, twice: every kernel answers, none is tried again."""
    for attempt in ("first", "second"):
        where = tmp_path / attempt
        where.mkdir()
        assert run(where, *SIXTEEN) == 0, said(where)
        assert said(where) == []  # a kernel that is tried again is reported
        assert len(list((where / "results" / CHAPTER / "runs").glob("*.json"))) == 16
        assert_whole(where)
    assert row_files(tmp_path / "first/results") == row_files(tmp_path / "second/results")
    record_property("survived", "32 of 32")


DIES = """
import os, signal

def fit(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
"""
DIES_ONCE = """
import os, signal
train = fit

def fit(*arguments, **options):
    if not REACHED.exists():
        REACHED.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return train(*arguments, **options)
"""


def test_a_kernel_that_dies_once_is_tried_again_and_reported(tmp_path, one_loss):
    """SIGKILL of a training kernel: the run succeeds with the same rows and says what happened."""
    reached = inject(tmp_path, "dmlkit.training", DIES_ONCE)
    assert run(tmp_path, *ONE_LOSS) == 0, said(tmp_path)
    assert reached.exists()
    assert row_files(tmp_path / "results") == row_files(one_loss / "results")
    assert_one_sentence(tmp_path, CHAPTER, "kernel died")


def test_a_kernel_that_dies_twice_is_given_up_and_reported(tmp_path, one_loss):
    """SIGKILL of each training kernel: one sentence, no notebook; later the command resumes."""
    inject(tmp_path, "dmlkit.training", DIES)
    assert run(tmp_path, *ONE_LOSS) == 1
    sentences = [sentence for sentence in said(tmp_path) if "twice" in sentence]
    assert len(sentences) == 1 and CHAPTER in sentences[0]
    assert "Traceback" not in "".join(said(tmp_path))
    assert not (tmp_path / "results" / CHAPTER / "chapter.ipynb").exists()
    heal(tmp_path)
    assert run(tmp_path, *ONE_LOSS) == 0, said(tmp_path)
    assert row_files(tmp_path / "results") == row_files(one_loss / "results")


@pytest.mark.parametrize("attempt", range(2))
def test_two_runners_on_one_folder_both_succeed(tmp_path, undisturbed, on_photographs, attempt):
    """Two same commands on one results folder and one cache: both succeed, rows and caches whole
    and equal to those of one."""
    runners = [start(tmp_path, *on_photographs, *TWO_WORKERS) for _ in range(2)]
    assert [runner.wait(PATIENCE) for runner in runners] == [0, 0], said(tmp_path)
    assert row_files(tmp_path / "results") == row_files(undisturbed[0] / "results")
    assert_whole(tmp_path)
