"""Arrays are made once, whole, and shared."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dmlkit.datasets import cache
from dmlkit.datasets.cache import cache_folder, cached_arrays, is_cached

SHAPES = {"images": ((4, 3), np.uint8), "sizes": ((4,), np.int64)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of all caches, of this test alone."""
    monkeypatch.setenv("DMLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(arrays):
    arrays["images"][:] = 7
    arrays["sizes"][:] = [1, 2, 3, 2**40]


def never(arrays):
    raise AssertionError("made again")


def test_arrays_are_made_once_and_read_afterwards(folder):
    assert not is_cached("some/x")
    first = cached_arrays("some/x", SHAPES, fill)
    second = cached_arrays("some/x", SHAPES, never)
    for arrays in (first, second):
        assert arrays["images"].dtype == torch.uint8 and arrays["sizes"].dtype == torch.int64
        assert arrays["images"].tolist() == [[7, 7, 7]] * 4
        assert arrays["sizes"].tolist() == [1, 2, 3, 2**40]
    assert is_cached("some/x")
    assert sorted(os.listdir(folder / "some")) == ["x", "x.lock"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float16, np.float32])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (5, 1, 3)])
def test_arrays_of_every_kind_come_back_as_they_were(dtype, shape):
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    arrays = cached_arrays(
        "x", {"x": (shape, dtype)}, lambda arrays: np.copyto(arrays["x"], values)
    )
    assert arrays["x"].shape == shape
    assert arrays["x"].dtype == torch.from_numpy(values).dtype
    assert np.array_equal(arrays["x"].numpy(), values)


def test_arrays_of_different_names_are_different():
    one = cached_arrays("1", SHAPES, fill)["images"]
    other = cached_arrays("2", SHAPES, lambda arrays: None)["images"]
    assert one.sum() == 84 and other.sum() == 0


def test_caches_are_in_the_project_or_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, expected in [("/big/disk", "/big/disk"), ("~/x", f"{tmp_path}/x")]:
        monkeypatch.setenv("DMLKIT_CACHE", value)
        assert str(cache_folder()) == expected
    monkeypatch.setenv("DMLKIT_CACHE", "")
    assert cache_folder() == cache.PROJECT_ROOT / ".cache"
    monkeypatch.delenv("DMLKIT_CACHE")
    assert cache_folder() == cache.PROJECT_ROOT / ".cache"


def test_writing_into_what_was_read_changes_neither_the_file_nor_what_others_read():
    first = cached_arrays("x", SHAPES, fill)["images"]
    second = cached_arrays("x", SHAPES, fill)["images"]
    first[:] = 9
    third = cached_arrays("x", SHAPES, fill)["images"]
    assert first.sum() == 9 * 12
    assert second.sum() == third.sum() == 7 * 12


def test_arrays_larger_than_memory_can_be_read_and_written_to(tmp_path):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    path = tmp_path / "large.npy"
    shape = (2 * memory // 2**20, 2**20)
    on_disk = np.lib.format.open_memmap(path, "w+", np.uint8, shape)  # no room is taken
    on_disk[-1, -1] = 5
    on_disk.flush()

    mapped = cache._mapped(path, shape, np.uint8)

    assert mapped.shape == shape
    assert mapped[-1, -1] == 5 and mapped[0, 0] == 0
    mapped[0, 0] = mapped[-1, -1] = 3
    assert mapped[0, 0] == 3
    assert on_disk[0, 0] == 0 and on_disk[-1, -1] == 5


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_maker_leaves_nothing_and_the_next_makes_it_whole(folder, error):
    def fail(arrays):
        arrays["images"][0] = 1
        assert not is_cached("x")
        raise error("half-way")

    with pytest.raises(error, match="half-way"):
        cached_arrays("x", SHAPES, fail)
    assert not is_cached("x")
    assert os.listdir(folder) == ["x.lock"]
    assert cached_arrays("x", SHAPES, fill)["images"].sum() == 84


def test_what_a_killed_writer_left_is_neither_read_nor_kept(folder):
    left = folder / ".x.partial"
    left.mkdir(parents=True)
    np.save(left / "images.npy", np.ones((4, 3), np.uint8))
    (left / "other.npy").write_bytes(b"half")
    assert not is_cached("x")
    assert cached_arrays("x", SHAPES, fill)["images"].sum() == 84
    assert sorted(os.listdir(folder)) == ["x", "x.lock"]
    assert sorted(os.listdir(folder / "x")) == ["images.npy", "sizes.npy"]


def test_those_who_need_the_same_arrays_at_once_wait_for_the_first():
    # Real processes, one of them killed, are in test_decoding.py.
    calls, together = [], threading.Barrier(4)

    def slowly(arrays):
        calls.append(threading.get_ident())
        threading.Event().wait(0.2)
        fill(arrays)

    def need(_):
        together.wait()
        return cached_arrays("x", SHAPES, slowly)["images"].sum().item()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(need, range(4))) == [84] * 4
    assert len(calls) == 1


def test_the_room_of_whole_files_is_taken_before_anything_is_written(monkeypatch):
    taken, allocate = {}, os.posix_fallocate

    def watched(descriptor, offset, length):
        taken[os.fstat(descriptor).st_size] = offset + length
        allocate(descriptor, offset, length)

    def look(arrays):
        assert len(taken) == 2
        for size, end in taken.items():
            assert end >= size

    monkeypatch.setattr(os, "posix_fallocate", watched)
    cached_arrays("x", SHAPES, look)


def test_a_disk_that_is_too_small_is_refused_in_one_sentence_and_left_as_it_was(
    monkeypatch, folder
):
    def full(descriptor, offset, length):
        if length > 100_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    shapes = SHAPES | {"large": ((1_500, 10**6), np.uint8)}
    message = rf"^{folder} has no room for 1\.5 GB \(No space left .*\); make room, or set DMLKIT_"
    with pytest.raises(PermissionError, match=message) as caught:
        cached_arrays("x", shapes, never)
    assert "\n" not in str(caught.value)
    assert os.listdir(folder) == ["x.lock"]
    monkeypatch.undo()
    monkeypatch.setenv("DMLKIT_CACHE", str(folder))
    assert cached_arrays("x", SHAPES, fill)["images"].sum() == 84


def test_a_disk_that_has_no_room_for_the_head_of_a_file_is_refused_in_one_sentence(
    monkeypatch, folder
):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np.lib.format, "open_memmap", full)
    with pytest.raises(
        PermissionError, match=f"^{folder} has no room for .*; make room, or set DMLKIT_"
    ):
        cached_arrays("x", SHAPES, never)
    assert os.listdir(folder) == ["x.lock"]


def test_a_file_in_the_place_of_the_folder_is_refused_in_one_sentence(folder):
    folder.write_text("a file")
    with pytest.raises(PermissionError, match=f"^cannot write to {folder} .*; choose another.*$"):
        cached_arrays("x", SHAPES, never)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused_in_one_sentence_but_serves_what_it_holds(folder):
    cached_arrays("x", SHAPES, fill)
    folder.chmod(0o500)
    assert cached_arrays("x", SHAPES, never)["images"].sum() == 84
    with pytest.raises(PermissionError, match=f"^cannot write to {folder} .*permissions$"):
        cached_arrays("y", SHAPES, never)
    assert sorted(os.listdir(folder)) == ["x", "x.lock"]
