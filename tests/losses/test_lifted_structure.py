"""The three lifted losses against loops over their equations, pytorch-metric-learning, by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses
from pytorch_metric_learning import miners as reference_miners

from dmlkit.losses.lifted_structure import (
    GeneralizedLiftedStructureLoss,
    LiftedStructureLoss,
    ModifiedLiftedStructureLoss,
)
from dmlkit.miners import all_pairs, multi_similarity_miner

# Classes of two, three and (class 3) a single member.
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 2, 3])
MARGINS = [(0.0, 1.0), (0.6, 0.2)]
SCALES = [(2.0, 40.0), (3.0, 0.5)]
LOSSES = [LiftedStructureLoss, GeneralizedLiftedStructureLoss, ModifiedLiftedStructureLoss]


def raw_rows(rows=8, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return rows.requires_grad_()


def positives_of(labels, i):
    return [k for k in range(len(labels)) if k != i and labels[k] == labels[i]]


def negatives_of(labels, i):
    return [k for k in range(len(labels)) if labels[k] != labels[i]]


def reference_loss(embeddings, labels, positive_margin, negative_margin):
    """The squared hinge, one positive pair at a time."""
    d = [[(a - b).norm().item() for b in embeddings] for a in embeddings]
    hinges = []
    for i in range(len(labels)):
        for j in positives_of(labels, i):
            push = sum(math.exp(negative_margin - d[i][k]) for k in negatives_of(labels, i))
            push += sum(math.exp(negative_margin - d[j][k]) for k in negatives_of(labels, j))
            hinges.append(max(math.log(push) + d[i][j] - positive_margin, 0))
    return sum(hinge**2 for hinge in hinges) / (2 * len(hinges))


def generalized_reference_loss(embeddings, labels, positive_margin, negative_margin):
    """The hinge, one anchor at a time."""
    d = [[(a - b).norm().item() for b in embeddings] for a in embeddings]
    total = 0.0
    for i in range(len(labels)):
        pull = sum(math.exp(d[i][p] - positive_margin) for p in positives_of(labels, i))
        push = sum(math.exp(negative_margin - d[i][n]) for n in negatives_of(labels, i))
        if pull and push:
            total += max(math.log(pull) + math.log(push), 0)
    return total / len(labels)


def modified_reference_loss(embeddings, labels, positive_scale, negative_scale):
    """The two logarithms, one anchor at a time."""
    s = [[(a @ b).item() for b in embeddings] for a in embeddings]
    total = 0.0
    for i in range(len(labels)):
        pull = sum(math.exp(-positive_scale * s[i][p]) for p in positives_of(labels, i))
        push = sum(math.exp(negative_scale * s[i][n]) for n in negatives_of(labels, i))
        if pull and push:
            total += 2 / positive_scale * math.log(pull) + 2 / negative_scale * math.log(push)
    return total / len(labels)


@pytest.mark.parametrize(("positive_margin", "negative_margin"), MARGINS)
@pytest.mark.parametrize(
    ("loss_class", "reference"),
    [
        (LiftedStructureLoss, reference_loss),
        (GeneralizedLiftedStructureLoss, generalized_reference_loss),
    ],
)
def test_margin_forms_match_their_equations(
    loss_class, reference, positive_margin, negative_margin
):
    embeddings = F.normalize(raw_rows())
    loss_fn = loss_class(positive_margin=positive_margin, negative_margin=negative_margin)

    expected = reference(embeddings, LABELS, positive_margin, negative_margin)

    assert loss_fn(embeddings, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize(("positive_scale", "negative_scale"), SCALES)
def test_modified_form_matches_its_equation(positive_scale, negative_scale):
    embeddings = F.normalize(raw_rows())
    loss_fn = ModifiedLiftedStructureLoss(
        positive_scale=positive_scale, negative_scale=negative_scale
    )

    expected = modified_reference_loss(embeddings, LABELS, positive_scale, negative_scale)

    assert loss_fn(embeddings, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize("mined", [False, True], ids=["all pairs", "mined pairs"])
@pytest.mark.parametrize(("positive_margin", "negative_margin"), MARGINS)
@pytest.mark.parametrize("loss_class", [LiftedStructureLoss, GeneralizedLiftedStructureLoss])
def test_value_and_gradient_agree_with_pytorch_metric_learning(
    loss_class, positive_margin, negative_margin, mined
):
    # No class of one: an anchor without positives is left to the test below.
    labels = torch.arange(24) % 6
    ours, theirs = raw_rows(24), raw_rows(24)
    embeddings, library_embeddings = F.normalize(ours), F.normalize(theirs)
    loss_fn = loss_class(positive_margin=positive_margin, negative_margin=negative_margin)
    reference = getattr(reference_losses, loss_class.__name__)(negative_margin, positive_margin)
    pairs = multi_similarity_miner(embeddings, labels, epsilon=0.5) if mined else None
    miner = reference_miners.MultiSimilarityMiner(0.5)
    indices = miner(library_embeddings, labels) if mined else None

    loss = loss_fn(embeddings, labels, pairs=pairs)
    expected = reference(library_embeddings, labels, indices)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("loss_class", [LiftedStructureLoss, GeneralizedLiftedStructureLoss])
def test_default_margins_are_those_of_pytorch_metric_learning(loss_class):
    labels = torch.arange(8) % 3
    embeddings = F.normalize(raw_rows())
    expected = getattr(reference_losses, loss_class.__name__)()(embeddings, labels)
    torch.testing.assert_close(loss_class()(embeddings, labels), expected)


def test_default_scales_are_those_of_deep_metric():
    embeddings = F.normalize(raw_rows())
    stated = ModifiedLiftedStructureLoss(positive_scale=2.0, negative_scale=40.0)
    assert torch.equal(
        ModifiedLiftedStructureLoss()(embeddings, LABELS), stated(embeddings, LABELS)
    )


# At 0, 60 and 180 degrees; chords 0-1: 1, 0-2: 2, 1-2: sqrt(3); cosines 1/2, -1, -1/2.
POINTS = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(3) / 2], [-1.0, 0.0]])
POINT_LABELS = torch.tensor([0, 0, 1])


def test_three_points_on_the_circle_by_hand():
    loss = LiftedStructureLoss(positive_margin=0.5, negative_margin=3.0)(POINTS, POINT_LABELS)

    # Both ordered pairs cost the same: the negative of item 0 is at 2, that of item 1 at sqrt 3.
    pair = math.log(math.exp(3 - 2) + math.exp(3 - math.sqrt(3))) + 1 - 0.5
    assert loss.item() == pytest.approx(pair**2 / 2)


def test_generalized_form_of_three_points_by_hand():
    loss_fn = GeneralizedLiftedStructureLoss(positive_margin=0.25, negative_margin=1.1)

    # Item 0: (1 - 0.25) + (1.1 - 2) < 0. Item 1: (1 - 0.25) + (1.1 - sqrt 3). Item 2: no positive.
    expected = (0.75 + 1.1 - math.sqrt(3)) / 3
    assert loss_fn(POINTS, POINT_LABELS).item() == pytest.approx(expected)


def test_modified_form_of_three_points_by_hand_is_below_zero():
    loss_fn = ModifiedLiftedStructureLoss(positive_scale=4.0, negative_scale=8.0)

    # A lone pair's logarithm is its exponent. Item 0: 2 (-1/2) + 2 (-1), item 1: 2 (-1/2) +
    # 2 (-1/2), item 2 has no positive.
    assert loss_fn(POINTS, POINT_LABELS).item() == pytest.approx((-3 - 2) / 3)


def test_generalized_form_leaves_out_an_anchor_that_the_library_counts_by_its_negatives_alone():
    labels = torch.tensor([0, 0, 1])
    expected = reference_losses.GeneralizedLiftedStructureLoss(3.0)(POINTS, labels)

    loss = GeneralizedLiftedStructureLoss(negative_margin=3.0)(POINTS, labels)

    alone = math.log(math.exp(3 - 2) + math.exp(3 - math.sqrt(3)))
    torch.testing.assert_close(loss, expected - alone / 3)


@pytest.mark.parametrize("loss_class", LOSSES)
def test_gradient_is_that_of_the_value(loss_class):
    # Float64 rows that stay apart: no distance is 0, and no hinge sits at its corner.
    embeddings = F.normalize(raw_rows().detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: loss_class()(rows, LABELS), embeddings)


def test_pairs_restrict_what_the_loss_sees():
    embeddings = F.normalize(raw_rows())
    positives = torch.zeros(8, 8, dtype=torch.bool)
    negatives = positives.clone()
    # Pair 2-4: only its first end has a negative. Pair 5-1 has none and costs 0.
    positives[2, 4] = negatives[2, 1] = positives[5, 1] = negatives[7, 0] = True
    pairs = (positives, negatives)
    d_p = (embeddings[2] - embeddings[4]).norm()
    d_n = (embeddings[2] - embeddings[1]).norm()

    loss = LiftedStructureLoss(negative_margin=3.0)(embeddings, LABELS, pairs=pairs)
    torch.testing.assert_close(loss, (3 - d_n + d_p) ** 2 / (2 * 2))

    loss = GeneralizedLiftedStructureLoss(negative_margin=3.0)(embeddings, LABELS, pairs=pairs)
    torch.testing.assert_close(loss, (3 - d_n + d_p) / 8)

    loss = ModifiedLiftedStructureLoss()(embeddings, LABELS, pairs=pairs)
    cosines = embeddings[2] @ embeddings[1] - embeddings[2] @ embeddings[4]
    torch.testing.assert_close(loss, 2 * cosines / 8)


@pytest.mark.parametrize("loss_class", LOSSES)
def test_giving_all_pairs_changes_nothing(loss_class):
    embeddings = F.normalize(raw_rows())
    loss = loss_class()(embeddings, LABELS, pairs=all_pairs(LABELS))
    assert torch.equal(loss, loss_class()(embeddings, LABELS))


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["one class", "all singletons", "one image"]
)
@pytest.mark.parametrize("loss_class", LOSSES)
def test_a_batch_without_positives_or_negatives_gives_a_zero_with_zero_gradient(loss_class, labels):
    raw = raw_rows(len(labels))

    loss = loss_class()(F.normalize(raw), torch.tensor(labels))
    loss.backward()

    assert loss.shape == () and loss.item() == 0
    assert (raw.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("identical", [False, True], ids=["spread", "identical embeddings"])
@pytest.mark.parametrize("loss_class", LOSSES)
def test_loss_and_gradient_are_finite_under_autocast(loss_class, identical, dtype):
    rows = raw_rows(1 if identical else 8).detach().float()
    raw = rows.expand(8, -1).clone().requires_grad_()

    # Anomaly mode also catches a NaN that a later mask would hide.
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
            loss = loss_class()(F.normalize(raw).to(dtype), LABELS)
        loss.backward()

    assert loss.isfinite() and loss.dtype == torch.float32
    assert raw.grad.isfinite().all()


def test_identical_embeddings_by_hand():
    embeddings = torch.tensor([[0.6, 0.8]]).repeat(4, 1)
    labels = torch.tensor([0, 0, 1, 1])

    # All distances 0, two negatives at each end: log(4 e) = 1 + log 4, and log(2 e) = 1 + log 2.
    loss = LiftedStructureLoss()(embeddings, labels)
    assert loss.item() == pytest.approx((1 + math.log(4)) ** 2 / 2)
    loss = GeneralizedLiftedStructureLoss()(embeddings, labels)
    assert loss.item() == pytest.approx(1 + math.log(2))


@pytest.mark.parametrize("row", range(8))
@pytest.mark.parametrize("loss_class", LOSSES)
def test_a_row_of_nan_makes_the_loss_nan(loss_class, row):
    embeddings = F.normalize(raw_rows().detach())
    embeddings[row] = torch.nan
    assert loss_class()(embeddings, LABELS).isnan()


@pytest.mark.parametrize("setting", ["positive_scale", "negative_scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_above_zero_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting}={value}.* must both be above 0"):
        ModifiedLiftedStructureLoss(**{setting: value})
