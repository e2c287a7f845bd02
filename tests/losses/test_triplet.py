"""TripletLoss against loops over its equation, pytorch-metric-learning, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses
from pytorch_metric_learning import miners as reference_miners

from dmlkit.losses import TripletLoss
from dmlkit.miners import all_pairs

# Classes of two, three and (class 3) a single member.
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 2, 3])
KINDS = ["all", "semihard", "batch_hard"]


def raw_rows(rows=8, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return rows.requires_grad_()


def mean_of_nonzero(terms):
    terms = [term for term in terms if term > 0]
    return sum(terms) / len(terms) if terms else 0.0


def reference_loss(embeddings, labels, margin, triplets):
    """The hinge, one triplet (or one anchor) at a time."""
    distance = [[(a - b).norm().item() for b in embeddings] for a in embeddings]
    items, hinges = range(len(labels)), []
    for a in items:
        to_positives = [distance[a][p] for p in items if p != a and labels[p] == labels[a]]
        to_negatives = [distance[a][n] for n in items if labels[n] != labels[a]]
        if triplets == "batch_hard" and to_positives and to_negatives:
            hinges.append(max(max(to_positives) - min(to_negatives) + margin, 0))
        elif triplets != "batch_hard":
            for d_ap in to_positives:
                for d_an in to_negatives:
                    if triplets == "all" or d_ap < d_an <= d_ap + margin:
                        hinges.append(max(d_ap - d_an + margin, 0))
    return mean_of_nonzero(hinges)


@pytest.mark.parametrize("margin", [0.2, 0.6])
@pytest.mark.parametrize("triplets", KINDS)
def test_matches_the_equation_triplet_by_triplet(triplets, margin):
    embeddings = F.normalize(raw_rows())
    expected = reference_loss(embeddings, LABELS, margin, triplets)

    loss = TripletLoss(margin=margin, triplets=triplets)(embeddings, LABELS)

    assert expected > 0
    assert loss.item() == pytest.approx(expected)


def reference_miner(triplets, margin):
    """The library's miner of that name, or none where it mines nothing."""
    if triplets == "semihard":
        return reference_miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard")
    return reference_miners.BatchHardMiner() if triplets == "batch_hard" else None


@pytest.mark.parametrize("margin", [0.2, 0.6])
@pytest.mark.parametrize("triplets", KINDS)
def test_value_and_gradient_agree_with_pytorch_metric_learning(triplets, margin):
    labels = torch.arange(24) % 6
    ours, theirs = raw_rows(24), raw_rows(24)
    miner = reference_miner(triplets, margin)

    loss = TripletLoss(margin=margin, triplets=triplets)(F.normalize(ours), labels)
    mined = miner(F.normalize(theirs), labels) if miner else None
    expected = reference_losses.TripletMarginLoss(margin)(F.normalize(theirs), labels, mined)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_defaults_are_semihard_triplets_at_margin_0_2():
    embeddings = F.normalize(raw_rows())
    stated = TripletLoss(margin=0.2, triplets="semihard")(embeddings, LABELS)
    assert torch.equal(TripletLoss()(embeddings, LABELS), stated)


ROOT_2, SHORT = math.sqrt(2), math.sqrt(2 - math.sqrt(3))


@pytest.mark.parametrize(
    ("triplets", "hinges"),
    [
        ("all", [ROOT_2 - 1 + 0.7, ROOT_2 - 2 + 0.7, ROOT_2 - SHORT + 0.7, 0.7]),
        ("semihard", [ROOT_2 - 2 + 0.7]),
        ("batch_hard", [ROOT_2 - 1 + 0.7, ROOT_2 - SHORT + 0.7]),
    ],
)
def test_four_points_on_the_circle_by_hand(triplets, hinges):
    # Class 0 at 0 and 90 degrees (chord sqrt 2), class 1 at 60, class 2 at 180.
    # From 0: the negatives are at 1 (hard) and 2 (semi-hard at margin 0.7).
    # From 90: at sqrt(2 - sqrt 3) (hard) and at sqrt 2, as far as the positive: not semi-hard.
    points = [[1.0, 0.0], [0.0, 1.0], [0.5, math.sqrt(3) / 2], [-1.0, 0.0]]

    loss = TripletLoss(margin=0.7, triplets=triplets)(
        torch.tensor(points), torch.tensor([0, 0, 1, 2])
    )

    assert loss.item() == pytest.approx(sum(hinges) / len(hinges))


@pytest.mark.parametrize("triplets", ["all", "batch_hard"])
def test_pairs_restrict_which_triplets_form(triplets):
    embeddings = F.normalize(raw_rows())
    positives = torch.zeros(8, 8, dtype=torch.bool)
    negatives = positives.clone()
    # Row 5 has a positive but no negative, row 7 the reverse: only row 2 forms a triplet.
    positives[2, 4] = negatives[2, 1] = positives[5, 1] = negatives[7, 0] = True

    loss = TripletLoss(margin=2.0, triplets=triplets)(
        embeddings, LABELS, pairs=(positives, negatives)
    )

    to_positive = (embeddings[2] - embeddings[4]).norm()
    to_negative = (embeddings[2] - embeddings[1]).norm()
    torch.testing.assert_close(loss, to_positive - to_negative + 2)


@pytest.mark.parametrize("triplets", KINDS)
def test_giving_all_pairs_changes_nothing(triplets):
    embeddings, loss_fn = F.normalize(raw_rows()), TripletLoss(triplets=triplets)
    assert torch.equal(
        loss_fn(embeddings, LABELS, pairs=all_pairs(LABELS)), loss_fn(embeddings, LABELS)
    )


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["one class", "all singletons", "one image"]
)
@pytest.mark.parametrize("triplets", KINDS)
def test_a_batch_without_a_triplet_gives_a_zero_with_zero_gradient(triplets, labels):
    raw = raw_rows(len(labels))

    loss = TripletLoss(triplets=triplets)(F.normalize(raw), torch.tensor(labels))
    loss.backward()

    assert loss.shape == () and loss.item() == 0
    assert (raw.grad == 0).all()


@pytest.mark.parametrize(
    ("triplets", "expected"), [("all", 0.2), ("semihard", 0.0), ("batch_hard", 0.2)]
)
def test_identical_embeddings_cost_the_margin_with_a_finite_gradient(triplets, expected):
    raw = torch.tensor([[3.0, 4.0]]).repeat(4, 1).requires_grad_()

    loss = TripletLoss(margin=0.2, triplets=triplets)(F.normalize(raw), torch.tensor([0, 0, 1, 1]))
    loss.backward()

    # A negative as near as the positive is not semi-hard.
    assert loss.item() == pytest.approx(expected)
    assert raw.grad.isfinite().all()


def test_an_unknown_kind_of_triplets_is_refused():
    with pytest.raises(ValueError, match="triplets='hard' is not one of all, semihard"):
        TripletLoss(triplets="hard")


def test_a_negative_exactly_as_near_as_the_positive_is_not_semi_hard():
    points = [[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]]
    loss = TripletLoss(margin=0.3)(torch.tensor(points), torch.tensor([0, 0, 1]))
    # From the first, both are at sqrt 0.4; from the second, at sqrt 0.4 and beyond the margin.
    assert loss.item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("triplets", KINDS)
def test_half_precision_under_autocast_is_finite(triplets, dtype):
    raw = raw_rows().detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = TripletLoss(triplets=triplets)(F.normalize(raw), LABELS)
    loss.backward()

    assert loss.dtype == torch.float32 and loss.isfinite()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("row", [0, 7], ids=["in a class", "alone in its class"])
@pytest.mark.parametrize("triplets", KINDS)
def test_a_nan_embedding_makes_the_loss_nan(triplets, row):
    embeddings = F.normalize(raw_rows()).detach()
    embeddings[row] = torch.nan
    assert TripletLoss(triplets=triplets)(embeddings, LABELS).isnan()
