"""Sums over some entries of each row, whatever is left of it."""

import math

import pytest
import torch

from dmlkit.losses.masked_sums import log_sum_exp

LOGITS = torch.tensor([[0.0, 1.0, 500.0], [2.0, -3.0, 0.5], [1.0, 1.0, 1.0]])


def test_only_kept_entries_count():
    keep = torch.tensor([[True, True, False], [False, True, False], [True, True, True]])
    expected = [math.log(1 + math.e), -3, 1 + math.log(3)]
    assert log_sum_exp(LOGITS, keep).tolist() == pytest.approx(expected)


def test_a_row_without_entries_is_hugely_negative_and_has_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    keep = torch.tensor([[False] * 3, [True] * 3, [False] * 3])
    total = log_sum_exp(logits, keep)
    assert total[0] == total[2] == torch.finfo(torch.float32).min
    total[1].backward()
    assert (logits.grad[[0, 2]] == 0).all()
    assert logits.grad[1].tolist() == pytest.approx(LOGITS[1].softmax(dim=0).tolist())


def test_nan_stays():
    logits = LOGITS.clone()
    logits[0, 1] = torch.nan
    assert log_sum_exp(logits, torch.ones(3, 3, dtype=torch.bool))[0].isnan()
