"""Both contrastive losses against loops over their equations, pytorch-metric-learning, by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances as reference_distances
from pytorch_metric_learning import losses as reference_losses
from pytorch_metric_learning import reducers as reference_reducers

from dmlkit.losses.contrastive import ContrastiveLoss, SimilarityContrastiveLoss
from dmlkit.miners import all_pairs

# Classes of two, three and (class 3) a single member.
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 2, 3])
MARGINS = [(0.0, 1.0), (0.3, 1.3)]


def raw_rows(rows=8, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return rows.requires_grad_()


def mean_of_nonzero(terms):
    terms = [term for term in terms if term > 0]
    return sum(terms) / len(terms) if terms else 0.0


def reference_loss(embeddings, labels, positive_margin, negative_margin):
    """Both hinges, one ordered pair at a time."""
    pull, push = [], []
    for i in range(len(labels)):
        for j in range(len(labels)):
            distance = (embeddings[i] - embeddings[j]).norm().item()
            if i != j and labels[i] == labels[j]:
                pull.append(max(distance - positive_margin, 0))
            elif i != j:
                push.append(max(negative_margin - distance, 0))
    return mean_of_nonzero(pull) + mean_of_nonzero(push)


@pytest.mark.parametrize(("positive_margin", "negative_margin"), MARGINS)
def test_matches_the_equation_pair_by_pair(positive_margin, negative_margin):
    embeddings = F.normalize(raw_rows())
    loss_fn = ContrastiveLoss(positive_margin=positive_margin, negative_margin=negative_margin)

    expected = reference_loss(embeddings, LABELS, positive_margin, negative_margin)

    assert loss_fn(embeddings, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize(("positive_margin", "negative_margin"), MARGINS)
def test_value_and_gradient_agree_with_pytorch_metric_learning(positive_margin, negative_margin):
    ours, theirs = raw_rows(), raw_rows()
    loss_fn = ContrastiveLoss(positive_margin=positive_margin, negative_margin=negative_margin)
    reference = reference_losses.ContrastiveLoss(positive_margin, negative_margin)

    loss, expected = loss_fn(F.normalize(ours), LABELS), reference(F.normalize(theirs), LABELS)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_defaults_are_those_of_pytorch_metric_learning():
    embeddings = F.normalize(raw_rows())
    expected = reference_losses.ContrastiveLoss()(embeddings, LABELS)
    torch.testing.assert_close(ContrastiveLoss()(embeddings, LABELS), expected)


def test_three_points_on_the_circle_by_hand():
    # At 0, 60 and 180 degrees; chords 0-1: 1, 0-2: 2, 1-2: sqrt(3).
    embeddings = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(3) / 2], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1])

    loss = ContrastiveLoss(positive_margin=0.25, negative_margin=2.0)(embeddings, labels)

    # Pull: 1 - 0.25. Push: pair 0-2 costs 2 - 2 = 0 and is left out of the mean.
    assert loss.item() == pytest.approx(0.75 + (2 - math.sqrt(3)))


def test_pairs_restrict_what_the_loss_sees():
    embeddings = F.normalize(raw_rows())
    positives = torch.zeros(8, 8, dtype=torch.bool)
    negatives = positives.clone()
    positives[0, 3] = negatives[2, 1] = True

    loss = ContrastiveLoss(negative_margin=2.0)(embeddings, LABELS, pairs=(positives, negatives))

    pull = (embeddings[0] - embeddings[3]).norm()
    push = 2 - (embeddings[2] - embeddings[1]).norm()
    torch.testing.assert_close(loss, pull + push)


def test_giving_all_pairs_changes_nothing():
    embeddings = F.normalize(raw_rows())
    loss = ContrastiveLoss()(embeddings, LABELS, pairs=all_pairs(LABELS))
    assert torch.equal(loss, ContrastiveLoss()(embeddings, LABELS))


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1], [0]],
    ids=["one class", "all singletons", "two classes", "one image"],
)
@pytest.mark.parametrize("identical", [False, True], ids=["spread", "identical embeddings"])
def test_gradient_is_finite_for_a_degenerate_batch(labels, identical):
    rows = raw_rows(1 if identical else len(labels)).detach().float()
    raw = rows.expand(len(labels), -1).clone().requires_grad_()

    loss = ContrastiveLoss()(F.normalize(raw), torch.tensor(labels))
    loss.backward()

    assert loss.isfinite()
    assert raw.grad.isfinite().all()


def test_identical_embeddings_cost_the_negative_margin_alone():
    embeddings = torch.tensor([[0.6, 0.8]]).repeat(4, 1)
    loss = ContrastiveLoss(negative_margin=0.7)(embeddings, torch.tensor([0, 0, 1, 1]))
    assert loss.item() == pytest.approx(0.7)


def test_a_batch_without_a_valid_pair_gives_a_zero_with_zero_gradient():
    raw = raw_rows()
    none = torch.zeros(8, 8, dtype=torch.bool)

    loss = ContrastiveLoss()(F.normalize(raw), LABELS, pairs=(none, none))
    loss.backward()

    assert loss.shape == () and loss.item() == 0
    assert (raw.grad == 0).all()


def similarity_reference_loss(embeddings, labels, margin):
    """Both sums, one ordered pair at a time."""
    total = 0.0
    for i in range(len(labels)):
        for j in range(len(labels)):
            cosine = (embeddings[i] @ embeddings[j]).item()
            if i != j and labels[i] == labels[j]:
                total += 1 - cosine
            elif i != j and cosine > margin:
                total += cosine
    return total / len(labels)


@pytest.mark.parametrize("margin", [0.5, 0.0, -0.4])
def test_similarity_form_matches_the_equation_pair_by_pair(margin):
    embeddings = F.normalize(raw_rows())
    loss = SimilarityContrastiveLoss(margin=margin)(embeddings, LABELS)
    assert loss.item() == pytest.approx(similarity_reference_loss(embeddings, LABELS, margin))


@pytest.mark.parametrize("margin", [0.5, 0.0, -0.4])
def test_similarity_form_is_the_hinge_of_pytorch_metric_learning_plus_the_margin(margin):
    ours, theirs = raw_rows(), raw_rows()
    embeddings = F.normalize(ours)
    reference = reference_losses.ContrastiveLoss(
        pos_margin=1,
        neg_margin=margin,
        distance=reference_distances.CosineSimilarity(),
        reducer=reference_reducers.SumReducer(),
    )

    loss = SimilarityContrastiveLoss(margin=margin)(embeddings, LABELS)
    expected = reference(F.normalize(theirs), LABELS) / len(LABELS)
    loss.backward()
    expected.backward()

    num_near = (all_pairs(LABELS)[1] & (embeddings @ embeddings.T > margin)).sum()
    assert num_near > 0
    torch.testing.assert_close(loss, expected + margin * num_near / len(LABELS))
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_similarity_form_of_three_points_on_the_circle_by_hand():
    # At 0, 60 and 120 degrees; cosines 0-1: 1/2, 0-2: -1/2, 1-2: 1/2.
    points = [[1.0, 0.0], [0.5, math.sqrt(3) / 2], [-0.5, math.sqrt(3) / 2]]

    loss = SimilarityContrastiveLoss(margin=0.25)(torch.tensor(points), torch.tensor([0, 0, 1]))

    # Item 0: pull 1 - 1/2, and item 2 is far. Item 1: pull 1 - 1/2, push 1/2. Item 2: push 1/2.
    assert loss.item() == pytest.approx((0.5 + (0.5 + 0.5) + 0.5) / 3)


def test_similarity_form_has_the_margin_of_deep_metric_and_a_pair_on_it_costs_nothing():
    # Cosine 1/2, exactly.
    embeddings = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    assert SimilarityContrastiveLoss()(embeddings, torch.tensor([0, 1])).item() == 0
    below = SimilarityContrastiveLoss(margin=0.499)(embeddings, torch.tensor([0, 1]))
    assert below.item() == 0.5


def test_similarity_form_has_the_gradient_of_its_value():
    embeddings = F.normalize(raw_rows().detach()).requires_grad_()
    loss_fn = SimilarityContrastiveLoss(margin=0.3)
    assert torch.autograd.gradcheck(lambda rows: loss_fn(rows, LABELS), embeddings)


def test_similarity_form_sees_only_the_given_pairs():
    embeddings = F.normalize(raw_rows())
    positives = torch.zeros(8, 8, dtype=torch.bool)
    negatives = positives.clone()
    positives[0, 3] = negatives[2, 1] = True
    loss_fn = SimilarityContrastiveLoss(margin=-1.0)

    loss = loss_fn(embeddings, LABELS, pairs=(positives, negatives))

    pull, push = 1 - embeddings[0] @ embeddings[3], embeddings[2] @ embeddings[1]
    torch.testing.assert_close(loss, (pull + push) / 8)
    stated = loss_fn(embeddings, LABELS, pairs=all_pairs(LABELS))
    assert torch.equal(stated, loss_fn(embeddings, LABELS))


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1], [0]],
    ids=["one class", "all singletons", "two classes", "one image"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss_fn", [ContrastiveLoss(), SimilarityContrastiveLoss()])
def test_equal_rows_under_autocast_have_a_finite_loss_and_gradient(loss_fn, dtype, labels):
    raw = raw_rows(1).detach().float().expand(len(labels), -1).clone().requires_grad_()

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        loss = loss_fn(F.normalize(raw).to(dtype), torch.tensor(labels))
    loss.backward()

    assert loss.isfinite() and loss.dtype == torch.float32
    assert raw.grad.isfinite().all()


def test_similarity_form_of_a_batch_without_a_valid_pair_is_a_zero_with_zero_gradient():
    raw = raw_rows()
    none = torch.zeros(8, 8, dtype=torch.bool)

    loss = SimilarityContrastiveLoss()(F.normalize(raw), LABELS, pairs=(none, none))
    loss.backward()

    assert loss.shape == () and loss.item() == 0
    assert (raw.grad == 0).all()


@pytest.mark.parametrize("row", range(8))
@pytest.mark.parametrize("loss_fn", [ContrastiveLoss(), SimilarityContrastiveLoss()])
def test_a_row_of_nan_makes_the_loss_nan(loss_fn, row):
    embeddings = F.normalize(raw_rows().detach())
    embeddings[row] = torch.nan
    assert loss_fn(embeddings, LABELS).isnan()
