"""Paths below the project root, and files that are whole or not there."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from dmlkit.paths import PROJECT_ROOT, check_writable, resolve, write_atomically


def test_the_project_root_holds_the_package_and_its_settings():
    assert (PROJECT_ROOT / "pyproject.toml").is_file()
    assert (PROJECT_ROOT / "dmlkit" / "paths.py").is_file()


def test_relative_paths_are_below_the_project_root_wherever_the_process_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve("results/local") == PROJECT_ROOT / "results" / "local"
    assert resolve(Path("data")) == PROJECT_ROOT / "data"


def test_absolute_and_home_paths_stay_as_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("/data/birds") == Path("/data/birds")
    assert resolve("~/birds") == tmp_path / "birds"


def test_a_written_file_appears_under_its_name_alone(tmp_path):
    path = tmp_path / "new" / "folder" / "rows.csv"
    with write_atomically(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".csv"
        temporary.write_text("a,b")
        assert not path.exists()
    assert path.read_text() == "a,b"
    assert os.listdir(path.parent) == ["rows.csv"]


def test_a_written_file_can_be_read_by_others(tmp_path):
    with write_atomically(tmp_path / "rows.csv") as temporary:
        temporary.write_text("a,b")
    assert (tmp_path / "rows.csv").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path, error):
    path = tmp_path / "rows.csv"
    path.write_text("old")
    with pytest.raises(error), write_atomically(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_a_failure_before_the_first_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), write_atomically(tmp_path / "rows.csv") as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, None])
def test_a_disk_that_fills_up_meanwhile_is_said_in_one_sentence(tmp_path, monkeypatch, code):
    path = tmp_path / "rows.csv"
    path.write_text("old")
    # NumPy says how much it could not write, PyTorch that its writer failed: neither says why.
    error = OSError(code, os.strerror(code)) if code else RuntimeError("writer failed")
    usage = shutil._ntuple_diskusage(100, 100, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    message = f"^cannot write to {tmp_path} .no space left on its disk.; make room, and .* resumes$"
    with pytest.raises(PermissionError, match=message), write_atomically(path):
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["rows.csv"]


def test_a_folder_that_is_taken_away_meanwhile_is_said_in_one_sentence(tmp_path):
    path = tmp_path / "tables" / "rows.csv"
    message = f"^{path.parent} was taken away while rows.csv was written; .* makes it again$"
    with pytest.raises(FileNotFoundError, match=message), write_atomically(path):
        path.parent.rename(tmp_path / "elsewhere")
    assert not path.parent.exists()


def test_success_replaces_the_old_content(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("old")
    with write_atomically(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_a_folder_that_can_be_written_to_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "results" / "mini")
    assert os.listdir(tmp_path / "results" / "mini") == []


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(PermissionError, match="no space left"):
        check_writable(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("below", ["", "mini", "mini/02_losses"])
def test_a_file_in_the_place_of_a_folder_is_refused_in_one_sentence(tmp_path, below):
    (tmp_path / "results").write_text("a file")
    folder = tmp_path / "results" / below
    with pytest.raises(PermissionError, match=f"cannot write to {folder} .*another folder"):
        check_writable(folder)
    assert (tmp_path / "results").read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused_in_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=f"cannot write to {tmp_path} .*permissions"):
        check_writable(tmp_path)
