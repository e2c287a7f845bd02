"""One call seeds everything, and named streams are independent and stable."""

import random

import numpy as np
import pytest
import torch

from dmlkit.seeding import derive_seed, set_seed


@pytest.fixture(autouse=True)
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


SAMPLER_SEED = 1855302834143756791


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 7, 2**63 - 1])
def test_equal_seeds_give_equal_draws_in_python_numpy_and_pytorch(seed):
    set_seed(seed)
    first = draws()
    second = draws()
    assert all(one != other for one, other in zip(first, second, strict=True))
    set_seed(seed)
    assert draws() == first


def test_other_seeds_give_other_draws():
    set_seed(0)
    first = draws()
    set_seed(1)
    assert all(one != other for one, other in zip(first, draws(), strict=True))


def test_the_number_of_threads_is_set_only_if_asked_for():
    set_seed(0, num_threads=1)
    assert torch.get_num_threads() == 1
    set_seed(0, num_threads=2)
    assert torch.get_num_threads() == 2
    set_seed(0)
    assert torch.get_num_threads() == 2


def test_derived_seeds_are_the_same_in_every_version():
    # Every committed result hangs on them: the first 63 bits of sha256("3:sampler").
    assert derive_seed(3, "sampler") == SAMPLER_SEED
    assert derive_seed(3, "sampler", 1) != SAMPLER_SEED


def test_derived_seeds_differ_by_seed_and_name_and_are_seeds_pytorch_takes():
    seeds = [derive_seed(s, name, i) for s in range(20) for name in "abc" for i in range(5)]
    assert len(set(seeds)) == 300
    assert min(seeds) >= 0 and max(seeds) < 2**63
    assert max(seeds) > 2**62  # they use the whole range
    torch.Generator().manual_seed(max(seeds))


def test_deriving_a_seed_draws_nothing():
    set_seed(0)
    first = draws()
    set_seed(0)
    derive_seed(5, "x")
    assert draws() == first
