"""HardMiningLoss against a loop over its rule and its equation, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from dmlkit.losses.hard_mining import HardMiningLoss
from dmlkit.miners import all_pairs, multi_similarity_miner

# Classes of two, three and (class 3) a single member.
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 2, 3])


def raw_rows(rows=8, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return rows.requires_grad_()


def mean(terms):
    return sum(terms) / len(terms)


def reference_loss(embeddings, labels, margin):
    """The mining and the two means, one anchor at a time."""
    total = 0.0
    for i in range(len(labels)):
        others = [k for k in range(len(labels)) if k != i]
        cosine = {k: (embeddings[i] @ embeddings[k]).item() for k in others}
        positives = [cosine[k] for k in others if labels[k] == labels[i]]
        negatives = [cosine[k] for k in others if labels[k] != labels[i]]
        if not positives:
            continue
        hard_negatives = [s for s in negatives if s > min(positives) - margin]
        hard_positives = [s for s in positives if s < max(negatives) + margin]
        if hard_negatives:
            total += mean([1 - s for s in hard_positives]) + mean(hard_negatives)
    return total / len(labels)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.6, -0.3])
def test_matches_the_equation_anchor_by_anchor(margin):
    embeddings = F.normalize(raw_rows())
    expected = reference_loss(embeddings, LABELS, margin)
    assert expected > 0
    loss = HardMiningLoss(margin=margin)(embeddings, LABELS)
    assert loss.item() == pytest.approx(expected)


def test_the_default_margin_is_that_of_deep_metric():
    embeddings = F.normalize(raw_rows(24))
    labels = torch.arange(24) % 6
    stated = HardMiningLoss(margin=0.1)(embeddings, labels)
    assert not torch.equal(HardMiningLoss(margin=0.11)(embeddings, labels), stated)
    assert torch.equal(HardMiningLoss()(embeddings, labels), stated)


def test_given_pairs_take_the_place_of_the_mining():
    embeddings, loss_fn = F.normalize(raw_rows()), HardMiningLoss(margin=0.1)
    mined = multi_similarity_miner(embeddings, LABELS, epsilon=0.4)

    loss = loss_fn(embeddings, LABELS, pairs=mined)

    assert torch.equal(loss, HardMiningLoss(margin=0.4)(embeddings, LABELS))
    assert not torch.equal(loss_fn(embeddings, LABELS, pairs=all_pairs(LABELS)), loss)


def test_an_anchor_with_pairs_of_one_kind_counts_as_zero_in_the_mean():
    embeddings = F.normalize(raw_rows())
    positives = torch.zeros(8, 8, dtype=torch.bool)
    negatives = positives.clone()
    positives[2, 4] = negatives[2, 1] = negatives[2, 0] = positives[5, 1] = negatives[7, 0] = True

    loss = HardMiningLoss()(embeddings, LABELS, pairs=(positives, negatives))

    cosine = embeddings @ embeddings[2]
    expected = 1 - cosine[4] + (cosine[1] + cosine[0]) / 2
    torch.testing.assert_close(loss, expected / 8)


def test_four_points_on_the_circle_by_hand():
    # Class 0 at 0, 60 and 90 degrees, class 1 at 120. Cosines from 0: 1/2 and 0, negative -1/2:
    # nothing is hard at 0.1. From 60: 1/2 and cos 30, negative 1/2: the positive 1/2 is hard, and
    # so is the negative. From 90: 0 and cos 30, negative cos 30: all are hard (cos 30 < cos 30 +
    # 0.1). The item of class 1 has no positive.
    degrees = torch.tensor([0.0, 60.0, 90.0, 120.0], dtype=torch.float64)
    points = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)

    loss = HardMiningLoss()(points, torch.tensor([0, 0, 0, 1]))

    high = math.sqrt(3) / 2
    at_60 = (1 - 0.5) + 0.5
    at_90 = ((1 - 0) + (1 - high)) / 2 + high
    assert loss.item() == pytest.approx((at_60 + at_90) / 4)


def test_gradient_is_that_of_the_value():
    embeddings = F.normalize(raw_rows().detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: HardMiningLoss()(rows, LABELS), embeddings)


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["one class", "all singletons", "one image"]
)
def test_a_batch_without_positives_or_negatives_gives_a_zero_with_zero_gradient(labels):
    raw, labels = raw_rows(len(labels)), torch.tensor(labels)

    for pairs in (None, all_pairs(labels)):
        raw.grad = None
        loss = HardMiningLoss()(F.normalize(raw), labels, pairs=pairs)
        loss.backward()

        assert loss.shape == () and loss.item() == 0
        assert (raw.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("identical", [False, True], ids=["spread", "identical embeddings"])
def test_loss_and_gradient_are_finite_under_autocast(identical, dtype):
    rows = raw_rows(1 if identical else 8).detach().float()
    raw = rows.expand(8, -1).clone().requires_grad_()

    # Anomaly mode also catches a NaN that a later mask would hide.
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
            loss = HardMiningLoss()(F.normalize(raw).to(dtype), LABELS)
        loss.backward()

    assert loss.isfinite() and loss.dtype == torch.float32
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("row", range(8))
def test_a_row_of_nan_makes_the_loss_nan(row):
    embeddings = F.normalize(raw_rows().detach())
    embeddings[row] = torch.nan
    assert HardMiningLoss()(embeddings, LABELS).isnan()
