"""Disks that fill up, folders that vanish or cannot be written to, files that change, clocks."""

import json
import os
import shutil
import subprocess
import time

import pytest
from PIL import Image

from tests.drills.breaking import (
    CHAPTER,
    ONE_LOSS,
    assert_one_sentence,
    assert_whole,
    heal,
    inject,
    row_files,
    run,
    said,
    start,
    wait_until,
)
from tests.drills.conftest import draw_photographs, of


@pytest.fixture
def mount():
    """Return a function that mounts something; undone at the end."""
    mounted = []

    def do(*arguments, on):
        on.mkdir(parents=True, exist_ok=True)
        command = ["mount", *map(str, arguments), str(on)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        mounted.append(on)

    yield do
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)])


def fill_up(folder, leave):
    """Write a file that leaves so many bytes of the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    size = shutil.disk_usage(folder).free - leave
    (folder / "ballast").write_bytes(b"0" * size)
    return folder / "ballast"


@pytest.mark.parametrize("leave", [0, 4096, 12288, 65536, 131072], ids="{} bytes".format)
def test_a_full_disk_of_results_is_said_and_resumed_from(tmp_path, one_loss, mount, leave):
    """The disk of results is full at the start, at the first files, the row, the figures or the
    notebook: one sentence names the folder, all files are whole; with room the same rows."""
    mount("-t", "tmpfs", "-o", "size=8m", "drill", on=tmp_path / "results")
    ballast = fill_up(tmp_path / "results", leave)
    assert run(tmp_path, *ONE_LOSS) in (1, 2)
    assert_one_sentence(tmp_path, str(tmp_path / "results"), "make room")
    ballast.unlink()
    assert_whole(tmp_path)
    assert run(tmp_path, *ONE_LOSS) == 0, said(tmp_path)
    assert row_files(tmp_path / "results") == row_files(one_loss / "results")


@pytest.mark.parametrize("leave", [0, 4096, 65536, 1 << 20], ids="{} bytes".format)
def test_a_full_disk_of_caches_is_said_and_resumed_from(
    tmp_path, undisturbed, on_photographs, mount, leave
):
    """The disk of caches is full: one sentence names the folder, or the images are decoded for
    every batch and the rows are the same. With room the same rows."""
    mount("-t", "tmpfs", "-o", "size=8m", "drill", on=tmp_path / "cache")
    ballast = fill_up(tmp_path / "cache", leave)
    if run(tmp_path, *on_photographs):
        assert_one_sentence(tmp_path, str(tmp_path / "cache"), "make room")
    ballast.unlink()
    assert_whole(tmp_path)
    assert run(tmp_path, *on_photographs) == 0, said(tmp_path)
    assert row_files(tmp_path / "results") == row_files(undisturbed[0] / "results")


def test_a_disk_too_small_for_drawn_birds_is_said_and_resumed_from(tmp_path, one_loss, mount):
    """Drawn birds cannot be decoded anew: one sentence; with room the same rows."""
    mount("-t", "tmpfs", "-o", "size=8m", "drill", on=tmp_path / "cache")
    ballast = fill_up(tmp_path / "cache", 65536)
    assert run(tmp_path, *ONE_LOSS) == 1
    assert_one_sentence(tmp_path, str(tmp_path / "cache"), "DMLKIT_CACHE", "make room")
    ballast.unlink()
    assert_whole(tmp_path)
    assert run(tmp_path, *ONE_LOSS) == 0, said(tmp_path)
    assert row_files(tmp_path / "results") == row_files(one_loss / "results")


@pytest.mark.parametrize("first", ["runs/*.json", "runs.csv", "figures/*.png", "tables/main.md"])
def test_results_that_are_taken_away_meanwhile_are_made_again(
    tmp_path, undisturbed, on_photographs, first
):
    """The results folder is renamed while the command runs, once a row, a table or a figure is
    there: success or one sentence; then the same command makes the same rows."""
    runner = start(tmp_path, *on_photographs)
    folder = tmp_path / "results" / CHAPTER
    wait_until(lambda: any(folder.glob(first)) or runner.poll() is not None)
    (tmp_path / "results").rename(tmp_path / "taken away")
    if runner.wait(600):
        assert_one_sentence(tmp_path)
    assert run(tmp_path, *on_photographs) == 0, said(tmp_path)
    assert row_files(tmp_path / "results") == row_files(undisturbed[0] / "results")


def times(folder):
    """Return when each row was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(f"{CHAPTER}/runs/[!.]*")}


@pytest.mark.parametrize("year", [1990, 2060])
def test_files_of_another_time_are_neither_stale_nor_made_again(
    tmp_path, undisturbed, on_photographs, photographs, year
):
    """Results, caches and photographs get times of 1990 or 2060: success, no row is written again;
    a second command executes nothing; a removed row is made again, equal."""
    whole, _ = undisturbed
    for folder in ("results", "cache"):
        shutil.copytree(whole / folder, tmp_path / folder)
    data = shutil.copytree(photographs, tmp_path / "photographs")
    moment = (year - 1970) * 365.25 * 24 * 3600
    for path in tmp_path.rglob("*"):
        os.utime(path, (moment, moment))
    before = times(tmp_path / "results")
    arguments = (*on_photographs, "-p", "DATA_DIR", data)
    assert run(tmp_path, *arguments) == 0, said(tmp_path)
    assert times(tmp_path / "results") == before
    notebook = tmp_path / "results" / CHAPTER / "chapter.ipynb"
    executed = notebook.stat().st_mtime_ns
    assert run(tmp_path, *arguments) == 0, said(tmp_path)
    assert notebook.stat().st_mtime_ns == executed
    next((tmp_path / "results" / CHAPTER / "runs").glob("*.json")).unlink()
    assert run(tmp_path, *arguments) == 0, said(tmp_path)
    assert row_files(tmp_path / "results") == row_files(whole / "results")


# Behind the import of a module that runner and kernels both have.
CLOCK_JUMPS = """
import time
now, began = time.time, time.monotonic()
time.time = lambda: now() - 3600 * (time.monotonic() - began > 3)
"""


def test_a_clock_set_back_by_an_hour_changes_nothing(tmp_path, undisturbed, on_photographs):
    """time.time() of every process falls back by an hour after three seconds: the same rows, times
    taken are not negative, and a second command executes nothing."""
    inject(tmp_path, "dmlkit.paths", CLOCK_JUMPS)
    assert run(tmp_path, *on_photographs) == 0, said(tmp_path)
    assert row_files(tmp_path / "results") == row_files(undisturbed[0] / "results")
    notebook = tmp_path / "results" / CHAPTER / "chapter.ipynb"
    assert json.loads(notebook.read_text())["metadata"]["dmlkit"]["seconds"] > 0
    rows = row_files(tmp_path / "results")[f"{CHAPTER}/runs.csv"]
    assert len(rows) == 6
    heal(tmp_path)
    executed = notebook.stat().st_mtime_ns
    assert run(tmp_path, *on_photographs) == 0, said(tmp_path)
    assert notebook.stat().st_mtime_ns == executed


def test_a_data_folder_that_cannot_be_written_to_suffices(
    tmp_path, undisturbed, on_photographs, photographs, mount
):
    """Photographs on a file system mounted read-only: the same rows, and no file there changed."""

    def listing():
        states = ((path, path.stat()) for path in sorted(photographs.rglob("*")))
        return [(str(path), state.st_size, state.st_mtime_ns) for path, state in states]

    before = listing()
    mount("--bind", photographs, on=photographs)
    mount("-o", "remount,ro,bind", on=photographs)
    with pytest.raises(OSError):
        (photographs / "written").touch()
    assert run(tmp_path, *on_photographs) == 0, said(tmp_path)
    assert row_files(tmp_path / "results") == row_files(undisturbed[0] / "results")
    assert listing() == before


@pytest.mark.parametrize("keeps_time", [False, True], ids=["new time", "same time"])
def test_a_replaced_photograph_makes_all_rows_anew(tmp_path, keeps_time):
    """One photograph gets other content of the same size, with a new and with the same time of
    change: rows, tables and caches are of the new data alone, equal to those of a fresh folder."""
    data = draw_photographs(tmp_path / "photographs")
    arguments = (*ONE_LOSS, *of(data))
    assert run(tmp_path, *arguments) == 0, said(tmp_path)
    before = row_files(tmp_path / "results")
    replace_content(data / "class 3" / "2.jpg", keeps_time=keeps_time)
    assert run(tmp_path, *arguments) == 0, said(tmp_path)
    fresh = tmp_path / "fresh"
    assert run(fresh, *arguments) == 0, said(fresh)
    table = f"{CHAPTER}/runs.csv"
    after = row_files(tmp_path / "results")[table]
    assert after == row_files(fresh / "results")[table]
    assert {row["run_id"] for row in after}.isdisjoint(row["run_id"] for row in before[table])


def replace_content(path, *, keeps_time):
    """Give an image other pixels, at the same size in bytes."""
    state = path.stat()
    Image.new("RGB", (400, 300), "red").save(path)
    padding = state.st_size - path.stat().st_size
    assert padding >= 0
    with path.open("ab") as file:
        file.write(b"\0" * padding)  # behind the end of a JPEG, where nobody reads
    if keeps_time:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    else:
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
    assert path.stat().st_size == state.st_size
