"""NCALoss against loops over both its forms, pytorch-metric-learning, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses

from dmlkit.losses.nca import NCALoss
from dmlkit.miners import all_pairs

# Classes of two, three and (class 3) a single member.
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 2, 3])
FORMS = [{}, {"softmax_scale": 16.0, "num_neighbours": 3}]


def raw_rows(rows=8, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return rows.requires_grad_()


def reference_loss(embeddings, labels, softmax_scale, num_neighbours):
    """One anchor at a time, its neighbours sorted by distance."""
    losses = []
    for i in range(len(labels)):
        squared = {
            k: (embeddings[i] - embeddings[k]).square().sum().item() for k in range(len(labels))
        }
        order = sorted((k for k in squared if k != i), key=squared.get)
        all_positives = [k for k in order if labels[k] == labels[i]]
        near = order[:num_neighbours]
        positives = [k for k in near if labels[k] == labels[i]] or all_positives[:1]
        negatives = [k for k in near if labels[k] != labels[i]]
        if positives:
            pull = sum(math.exp(-softmax_scale * squared[k]) for k in positives)
            push = sum(math.exp(-softmax_scale * squared[k]) for k in negatives)
            losses.append(-math.log(pull / (pull + push)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("softmax_scale", [1.0, 16.0])
@pytest.mark.parametrize("num_neighbours", [None, 1, 2, 4, 7, 32])
def test_matches_the_equation_anchor_by_anchor(softmax_scale, num_neighbours):
    embeddings = F.normalize(raw_rows())
    loss_fn = NCALoss(softmax_scale=softmax_scale, num_neighbours=num_neighbours)

    expected = reference_loss(embeddings, LABELS, softmax_scale, num_neighbours)

    assert loss_fn(embeddings, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize("softmax_scale", [1.0, 16.0])
def test_value_and_gradient_agree_with_pytorch_metric_learning(softmax_scale):
    ours, theirs = raw_rows(), raw_rows()

    loss = NCALoss(softmax_scale=softmax_scale)(F.normalize(ours), LABELS)
    expected = reference_losses.NCALoss(softmax_scale)(F.normalize(theirs), LABELS)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_defaults_are_those_of_pytorch_metric_learning():
    embeddings = F.normalize(raw_rows())
    expected = reference_losses.NCALoss()(embeddings, LABELS)
    torch.testing.assert_close(NCALoss()(embeddings, LABELS), expected)


# At 0, 90 and 180 degrees and, a negative of all, at 60: squared chords from 0: 2, 4, 1; from
# 90: 2, 2, 2 - sqrt(3); from 180: 4, 2, 3.
POINTS = torch.tensor(
    [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.5, math.sqrt(3) / 2]], dtype=torch.float64
)
POINT_LABELS = torch.tensor([0, 0, 0, 1])


def test_four_points_on_the_circle_by_hand():
    loss = NCALoss(softmax_scale=0.5)(POINTS, POINT_LABELS)

    at_0 = -math.log((math.exp(-1) + math.exp(-2)) / (math.exp(-1) + math.exp(-2) + math.exp(-0.5)))
    short = math.exp(-0.5 * (2 - math.sqrt(3)))
    at_90 = -math.log(2 * math.exp(-1) / (2 * math.exp(-1) + short))
    at_180 = -math.log(
        (math.exp(-2) + math.exp(-1)) / (math.exp(-2) + math.exp(-1) + math.exp(-1.5))
    )
    # The item at 60 has no positive and is not in the mean.
    assert loss.item() == pytest.approx((at_0 + at_90 + at_180) / 3)


def test_one_neighbour_of_four_points_by_hand():
    # At 110 rather than 90 degrees, no two are at one distance. From 0 the nearest is 60, so the
    # nearest positive, 110, joins it; from 110 the nearest is 60, and 180 joins; from 180 the
    # nearest is 110, a positive, and stays alone.
    degrees = torch.tensor([0.0, 110.0, 180.0, 60.0], dtype=torch.float64)
    points = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1)
    loss = NCALoss(softmax_scale=0.5, num_neighbours=1)(points, POINT_LABELS)

    def chance(positive, negative):
        def weight(angle):
            return math.exp(-0.5 * (2 - 2 * math.cos(math.radians(angle))))

        return weight(positive) / (weight(positive) + weight(negative))

    expected = -math.log(chance(110, 60)) - math.log(chance(70, 50)) - math.log(1)
    assert loss.item() == pytest.approx(expected / 3)


def test_ties_with_the_last_neighbour_are_kept():
    # From item 0, two items at the same place: one positive, one negative.
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    positives = torch.zeros(4, 4, dtype=torch.bool)
    negatives = positives.clone()
    positives[0, 1] = negatives[0, 2] = negatives[0, 3] = True

    loss = NCALoss(num_neighbours=1)(points, LABELS[:4], pairs=(positives, negatives))

    assert loss.item() == pytest.approx(math.log(2))


def test_a_neighbourhood_as_large_as_the_batch_changes_nothing():
    embeddings = F.normalize(raw_rows())
    for num_neighbours in (7, 8, 1000):
        loss = NCALoss(num_neighbours=num_neighbours)(embeddings, LABELS)
        assert torch.equal(loss, NCALoss()(embeddings, LABELS))


def test_a_far_positive_keeps_its_cost_where_the_soft_max_underflows():
    # e^-400 is 0 in float32, and its logarithm would be -inf.
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert NCALoss(softmax_scale=100.0)(points, labels).item() == pytest.approx(400)


@pytest.mark.parametrize("form", FORMS, ids=["whole batch", "neighbourhood"])
def test_gradient_is_that_of_the_value(form):
    embeddings = F.normalize(raw_rows().detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: NCALoss(**form)(rows, LABELS), embeddings)


def test_pairs_restrict_which_items_can_be_picked():
    embeddings = F.normalize(raw_rows())
    positives = torch.zeros(8, 8, dtype=torch.bool)
    negatives = positives.clone()
    # Row 5 has a positive and no negative, which costs 0; row 7 has no positive: not in the mean.
    positives[2, 4] = negatives[2, 1] = positives[5, 1] = negatives[7, 0] = True

    loss = NCALoss()(embeddings, LABELS, pairs=(positives, negatives))

    squared_p = (embeddings[2] - embeddings[4]).square().sum()
    squared_n = (embeddings[2] - embeddings[1]).square().sum()
    torch.testing.assert_close(loss, torch.log1p(torch.exp(squared_p - squared_n)) / 2)


@pytest.mark.parametrize("form", FORMS, ids=["whole batch", "neighbourhood"])
def test_giving_all_pairs_changes_nothing(form):
    embeddings = F.normalize(raw_rows())
    loss = NCALoss(**form)(embeddings, LABELS, pairs=all_pairs(LABELS))
    assert torch.equal(loss, NCALoss(**form)(embeddings, LABELS))


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["one class", "all singletons", "one image"]
)
@pytest.mark.parametrize("form", FORMS, ids=["whole batch", "neighbourhood"])
def test_a_batch_without_positives_or_negatives_gives_a_zero_with_zero_gradient(form, labels):
    raw = raw_rows(len(labels))

    loss = NCALoss(**form)(F.normalize(raw), torch.tensor(labels))
    loss.backward()

    assert loss.shape == () and loss.item() == 0
    assert (raw.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("identical", [False, True], ids=["spread", "identical embeddings"])
@pytest.mark.parametrize("form", FORMS, ids=["whole batch", "neighbourhood"])
def test_loss_and_gradient_are_finite_under_autocast(form, identical, dtype):
    rows = raw_rows(1 if identical else 8).detach().float()
    raw = rows.expand(8, -1).clone().requires_grad_()

    # Anomaly mode also catches a NaN that a later mask would hide.
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
            loss = NCALoss(**form)(F.normalize(raw).to(dtype), LABELS)
        loss.backward()

    assert loss.isfinite() and loss.dtype == torch.float32
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("row", range(8))
@pytest.mark.parametrize("form", FORMS, ids=["whole batch", "neighbourhood"])
def test_a_row_of_nan_makes_the_loss_nan(form, row):
    embeddings = F.normalize(raw_rows().detach())
    embeddings[row] = torch.nan
    assert NCALoss(**form)(embeddings, LABELS).isnan()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_above_zero_is_refused(value):
    with pytest.raises(ValueError, match=f"softmax_scale={value} must be above 0"):
        NCALoss(softmax_scale=value)


@pytest.mark.parametrize("value", [0, -1])
def test_a_neighbourhood_of_nobody_is_refused(value):
    with pytest.raises(ValueError, match=f"num_neighbours={value} must be at least 1"):
        NCALoss(num_neighbours=value)
