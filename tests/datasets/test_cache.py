"""Arrays are made once, whole, and shared."""

import numpy as np
import pytest

from dmlkit.datasets import cache


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PROJECT_ROOT", tmp_path)


def test_an_array_is_made_once_and_read_afterwards():
    calls = []

    def fill(array):
        calls.append(array.shape)
        array[:] = 7

    first = cache.cached_array("x/one", (2, 3), np.uint8, fill)
    second = cache.cached_array("x/one", (2, 3), np.uint8, fill)
    assert calls == [(2, 3)]
    assert first.tolist() == second.tolist() == [[7, 7, 7], [7, 7, 7]]


def test_writing_into_what_was_read_changes_no_file():
    cache.cached_array("x", (2,), np.uint8, lambda array: None)[:] = 9
    assert cache.cached_array("x", (2,), np.uint8, lambda array: None).tolist() == [0, 0]


def test_a_failed_maker_leaves_nothing_that_is_read_later(tmp_path):
    def fail(array):
        array[0] = 1
        raise RuntimeError("killed half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        cache.cached_array("x", (2,), np.uint8, fail)
    assert not list(tmp_path.rglob("*.npy"))
    assert cache.cached_array("x", (2,), np.uint8, lambda a: a.fill(5)).tolist() == [5, 5]
