"""BinomialDevianceLoss against loops over all its forms, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from dmlkit.losses.binomial_deviance import BinomialDevianceLoss
from dmlkit.miners import all_pairs, multi_similarity_miner

# Classes of two, three and (class 3) a single member.
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 2, 3])
SETTINGS = [
    pytest.param((2.0, 40.0, 0.5, 1.0), id="Deep_Metric"),
    pytest.param((2.0, 50.0, 0.5, 0.04), id="Deep_Metric 2018"),
    pytest.param((3.0, 5.0, -0.2, 0.7), id="odd"),
]


def raw_rows(rows=8, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return rows.requires_grad_()


def build(settings):
    positive_scale, negative_scale, margin, negative_weight = settings
    return BinomialDevianceLoss(
        positive_scale=positive_scale,
        negative_scale=negative_scale,
        margin=margin,
        negative_weight=negative_weight,
    )


def mean(terms):
    return sum(terms) / len(terms)


def cosines_of(embeddings, labels, i):
    """The cosines of an anchor with its positives and with its negatives, in two lists."""
    others = [k for k in range(len(labels)) if k != i]
    positive = [(embeddings[i] @ embeddings[k]).item() for k in others if labels[k] == labels[i]]
    negative = [(embeddings[i] @ embeddings[k]).item() for k in others if labels[k] != labels[i]]
    return positive, negative


@pytest.mark.parametrize("settings", SETTINGS)
def test_matches_the_equation_anchor_by_anchor(settings):
    embeddings = F.normalize(raw_rows())
    positive_scale, negative_scale, margin, weight = settings
    expected = 0.0
    for i in range(len(LABELS)):
        positive, negative = cosines_of(embeddings, LABELS, i)
        if positive:
            expected += mean(
                [math.log1p(math.exp(-positive_scale * (s - margin))) for s in positive]
            )
            push = mean([math.log1p(math.exp(negative_scale * (s - margin))) for s in negative])
            expected += weight * push

    assert build(settings)(embeddings, LABELS).item() == pytest.approx(expected / len(LABELS))


def test_matches_the_paper_with_its_means_over_the_batch_where_classes_have_one_size():
    labels, embeddings, cost = torch.arange(12) % 4, F.normalize(raw_rows(12)), 25
    pull, push = [], []
    for i in range(12):
        positive, negative = cosines_of(embeddings, labels, i)
        pull += [math.log1p(math.exp(-2 * (s - 0.5))) for s in positive]
        push += [math.log1p(math.exp(2 * cost * (s - 0.5))) for s in negative]

    loss = BinomialDevianceLoss(negative_scale=2 * cost)(embeddings, labels)

    assert loss.item() == pytest.approx(mean(pull) + mean(push))


def test_mined_pairs_give_the_hard_mining_form_of_deep_metric():
    labels, embeddings = torch.arange(24) % 6, F.normalize(raw_rows(24))
    positive_scale, negative_scale = 2.0, 40.0
    expected, num_skipped = 0.0, 0
    for i in range(24):
        positive, negative = cosines_of(embeddings, labels, i)
        hard_negative = [s for s in negative if s + 0.1 > min(positive)]
        hard_positive = [s for s in positive if s - 0.1 < max(negative)]
        if not (hard_positive and hard_negative):
            num_skipped += 1
            continue
        pull = mean([math.log1p(math.exp(-positive_scale * (s - 0.5))) for s in hard_positive])
        push = mean([math.log1p(math.exp(negative_scale * (s - 0.5))) for s in hard_negative])
        expected += 2 / positive_scale * pull + 2 / negative_scale * push

    loss_fn = BinomialDevianceLoss(negative_weight=2 / negative_scale)
    loss = loss_fn(embeddings, labels, pairs=multi_similarity_miner(embeddings, labels))

    assert num_skipped < 24
    assert loss.item() == pytest.approx(expected / 24)


def test_an_anchor_whose_pairs_were_all_mined_away_counts_as_zero_in_the_mean():
    # Class 0 is far from the rest; the one image of class 2 is next to class 1.
    angles = torch.tensor([0.0, 0.1, 3.0, 3.1, 3.2], dtype=torch.float64)
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 0, 1, 1, 2])
    pairs = multi_similarity_miner(embeddings, labels)
    assert pairs[0].any(dim=1).tolist() == [False, False, True, True, False]

    loss = BinomialDevianceLoss()(embeddings, labels, pairs=pairs)

    last_three = tuple(mask[2:, 2:] for mask in pairs)
    alone = BinomialDevianceLoss()(embeddings[2:], labels[2:], pairs=last_three)
    torch.testing.assert_close(loss, alone * 3 / 5)


def test_defaults_are_those_of_deep_metric():
    embeddings = F.normalize(raw_rows())
    stated = build((2.0, 40.0, 0.5, 1.0))(embeddings, LABELS)
    assert torch.equal(BinomialDevianceLoss()(embeddings, LABELS), stated)


def test_two_classes_on_orthogonal_axes_by_hand():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss = build((2.0, 4.0, 0.5, 0.3))(embeddings, torch.tensor([0, 0, 1]))

    # Items 0 and 1: a positive at cosine 1, e^{-2 (1 - 1/2)} = e^-1, and a negative at cosine 0,
    # e^{4 (0 - 1/2)} = e^-2. Item 2 has no positive.
    pair = math.log(1 + math.exp(-1)) + 0.3 * math.log(1 + math.exp(-2))
    assert loss.item() == pytest.approx(2 * pair / 3)


def test_gradient_is_that_of_the_value():
    embeddings = F.normalize(raw_rows().detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: BinomialDevianceLoss()(r, LABELS), embeddings)


def test_giving_all_pairs_changes_nothing():
    embeddings = F.normalize(raw_rows())
    loss = BinomialDevianceLoss()(embeddings, LABELS, pairs=all_pairs(LABELS))
    assert torch.equal(loss, BinomialDevianceLoss()(embeddings, LABELS))


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["one class", "all singletons", "one image"]
)
def test_a_batch_without_positives_or_negatives_gives_a_zero_with_zero_gradient(labels):
    raw = raw_rows(len(labels))

    loss = BinomialDevianceLoss()(F.normalize(raw), torch.tensor(labels))
    loss.backward()

    assert loss.shape == () and loss.item() == 0
    assert (raw.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("identical", [False, True], ids=["spread", "identical embeddings"])
@pytest.mark.parametrize("negative_scale", [40.0, 50000.0])
def test_loss_and_gradient_are_finite_under_autocast(identical, dtype, negative_scale):
    rows = raw_rows(1 if identical else 8).detach().float()
    raw = rows.expand(8, -1).clone().requires_grad_()
    loss_fn = BinomialDevianceLoss(negative_scale=negative_scale)

    # Anomaly mode also catches a NaN that a later mask would hide.
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
            loss = loss_fn(F.normalize(raw).to(dtype), LABELS)
        loss.backward()

    assert loss.isfinite() and loss.dtype == torch.float32
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("row", range(8))
def test_a_row_of_nan_makes_the_loss_nan(row):
    embeddings = F.normalize(raw_rows().detach())
    embeddings[row] = torch.nan
    assert BinomialDevianceLoss()(embeddings, LABELS).isnan()


@pytest.mark.parametrize("setting", ["positive_scale", "negative_scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_above_zero_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting}={value}.* must both be above 0"):
        BinomialDevianceLoss(**{setting: value})
