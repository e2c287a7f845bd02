"""What a row says of the circumstances of its run."""

import subprocess

import pytest
import torch

from dmlkit import provenance


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a git repository with one committed file, in the place of this project's."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(provenance, "PROJECT_ROOT", tmp_path)
    provenance.commit.cache_clear()
    yield tmp_path
    provenance.commit.cache_clear()


def test_a_clean_checkout_is_named_by_its_commit(repository):
    command = ["git", "-C", str(repository), "rev-parse", "--short", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    (repository / "untracked").write_text("does not count")
    assert provenance.commit() == head


def test_changed_tracked_files_are_marked(repository):
    (repository / "file").write_text("two")
    assert provenance.commit().endswith("+")


def test_a_copy_without_git_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PROJECT_ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    provenance.commit.cache_clear()
    assert provenance.commit() == "unknown"
    provenance.commit.cache_clear()


def test_versions_name_the_libraries_that_make_the_numbers():
    assert f"torch {torch.__version__}" in provenance.versions()


def test_peak_memory_is_that_of_this_process_in_mib():
    assert 50 < provenance.peak_mib(cuda=False) < 100_000
