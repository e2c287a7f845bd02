"""FastAPLoss against a loop over its equation, pytorch-metric-learning, and by hand."""

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses

from dmlkit.losses import hyperparameters
from dmlkit.losses.fast_ap import FastAPLoss
from dmlkit.miners import all_pairs

# Classes of two, three and (class 3) a single member.
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 2, 3])
NUM_BINS = [1, 3, 10, 300]


def raw_rows(rows=8, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return rows.requires_grad_()


def reference_loss(embeddings, labels, num_bins):
    """The quantised average precision, one anchor, one bin and one item at a time."""
    items, precisions = range(len(labels)), []
    for a in items:
        positives = [i for i in items if i != a and labels[i] == labels[a]]
        negatives = [i for i in items if labels[i] != labels[a]]
        if not positives or not negatives:
            continue
        precision, positives_to, all_to = 0.0, 0.0, 0.0
        for j in range(num_bins + 1):

            def count(members, a=a, centre=4 * j / num_bins):
                squared = [((embeddings[a] - embeddings[i]) ** 2).sum().item() for i in members]
                return sum(max(1 - abs(d - centre) * num_bins / 4, 0) for d in squared)

            positives_to += count(positives)
            all_to += count(positives) + count(negatives)
            if all_to:
                precision += count(positives) * positives_to / all_to
        precisions.append(precision / len(positives))
    return 1 - sum(precisions) / len(precisions)


@pytest.mark.parametrize("num_bins", NUM_BINS)
def test_matches_the_equation_anchor_by_anchor(num_bins):
    embeddings = F.normalize(raw_rows())
    expected = reference_loss(embeddings, LABELS, num_bins)
    loss = FastAPLoss(num_bins=num_bins)(embeddings, LABELS)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("num_bins", NUM_BINS)
def test_value_and_gradient_agree_with_pytorch_metric_learning(num_bins):
    labels = torch.arange(24) % 6
    ours, theirs = F.normalize(raw_rows(24)), F.normalize(raw_rows(24))
    ours.retain_grad()
    theirs.retain_grad()

    loss = FastAPLoss(num_bins=num_bins)(ours, labels)
    expected = reference_losses.FastAPLoss(num_bins)(theirs, labels)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    # The library normalises once more, which drops the radial part of its gradient.
    radial = (ours.grad * ours).sum(dim=1, keepdim=True)
    torch.testing.assert_close(ours.grad - radial * ours, theirs.grad)


def test_the_default_is_ten_bins_as_in_pytorch_metric_learning():
    assert hyperparameters(FastAPLoss()) == {"num_bins": 10}
    embeddings = F.normalize(raw_rows())
    expected = reference_losses.FastAPLoss()(embeddings, LABELS)
    torch.testing.assert_close(FastAPLoss()(embeddings, LABELS), expected)


def test_three_points_on_the_circle_by_hand():
    # At 0, 60 and 120 degrees: squared distances 0-1: 1, 1-2: 1, 0-2: 3. Bins at 0, 2 and 4.
    root = 3**0.5 / 2
    embeddings = torch.tensor([[1.0, 0.0], [0.5, root], [-0.5, root]])

    loss = FastAPLoss(num_bins=2)(embeddings, torch.tensor([0, 0, 1]))

    # Anchor 0: positive (1/2, 1/2, 0), negative (0, 1/2, 1/2), so H+ = 1/2, 1, 1 and H = 1/2,
    # 3/2, 2: 1/2 * 1 + 1/2 * 2/3. Anchor 1: both in (1/2, 1/2, 0): 1/2 * 1/2 + 1/2 * 1/2.
    assert loss.item() == pytest.approx(1 - (5 / 6 + 1 / 2) / 2)


def test_a_perfect_ranking_costs_nothing_and_the_worst_nearly_all():
    apart = torch.tensor([[1.0, 0.0]] * 2 + [[-1.0, 0.0]] * 20)
    labels = torch.tensor([0] * 2 + [1] * 20)
    assert FastAPLoss()(apart, labels).item() == pytest.approx(0, abs=1e-6)
    # Each positive opposite, and 20 (or 1) negatives at distance 0 before it.
    worst = torch.tensor([[1.0, 0.0], [-1.0, 0.0], *([[1.0, 0.0]] * 20)])
    positives = torch.zeros(22, 22, dtype=torch.bool)
    positives[0, 1] = True
    negatives = torch.zeros(22, 22, dtype=torch.bool)
    negatives[0, 2:] = True
    loss = FastAPLoss()(worst, labels, pairs=(positives, negatives))
    assert loss.item() == pytest.approx(1 - 1 / 21)


def test_has_the_analytic_gradient():
    loss_fn = FastAPLoss(num_bins=4)
    assert torch.autograd.gradcheck(lambda rows: loss_fn(F.normalize(rows), LABELS), raw_rows())


def test_pairs_restrict_what_each_anchor_ranks():
    embeddings = F.normalize(raw_rows())
    positives, negatives = all_pairs(LABELS)
    # Without items 1 and 5, the rest is ranked as if they were not there.
    kept = torch.tensor([0, 2, 3, 4, 6, 7])
    mask = torch.zeros(8, dtype=torch.bool)
    mask[kept] = True
    among = mask[:, None] & mask[None, :]

    loss = FastAPLoss()(embeddings, LABELS, pairs=(positives & among, negatives & among))

    torch.testing.assert_close(loss, FastAPLoss()(embeddings[kept], LABELS[kept]))


def test_giving_all_pairs_changes_nothing():
    embeddings = F.normalize(raw_rows())
    loss = FastAPLoss()(embeddings, LABELS, pairs=all_pairs(LABELS))
    assert torch.equal(loss, FastAPLoss()(embeddings, LABELS))


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["one class", "all singletons", "one image"]
)
def test_a_batch_without_a_ranking_gives_a_zero_with_zero_gradient(labels):
    raw = raw_rows(len(labels))

    loss = FastAPLoss()(F.normalize(raw), torch.tensor(labels))
    loss.backward()

    assert loss.shape == () and loss.item() == 0
    assert (raw.grad == 0).all()


def test_rows_that_rounding_puts_beyond_the_ends_stay_in_the_histogram():
    # Cosines of +-1.0000002. Two anchors have both kinds of pairs. The first ranks a positive and
    # a negative at 4 alike; the second has its negative at 0 and its positive at 4.
    longer = 1 + 2**-23
    embeddings = torch.tensor([[longer, 0.0], [-longer, 0.0], [-longer, 0.0]], requires_grad=True)

    loss = FastAPLoss()(embeddings, torch.tensor([0, 0, 1]))
    loss.backward()

    assert loss.item() == pytest.approx(1 / 2)
    assert embeddings.grad.isfinite().all()


def test_identical_embeddings_are_ranked_alike_with_a_finite_gradient():
    raw = torch.tensor([[3.0, 4.0]]).repeat(4, 1).requires_grad_()

    loss = FastAPLoss()(F.normalize(raw), torch.tensor([0, 0, 1, 1]))
    loss.backward()

    # One positive among three items in one bin.
    assert loss.item() == pytest.approx(2 / 3)
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_autocast_is_finite(dtype):
    raw = raw_rows().detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = FastAPLoss()(F.normalize(raw), LABELS)
    loss.backward()

    assert loss.dtype == torch.float32 and loss.isfinite()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("row", [0, 7], ids=["in a class", "alone in its class"])
def test_a_nan_embedding_makes_the_loss_nan(row):
    embeddings = F.normalize(raw_rows()).detach()
    embeddings[row] = torch.nan
    assert FastAPLoss()(embeddings, LABELS).isnan()


@pytest.mark.parametrize("num_bins", [0, -3])
def test_a_histogram_without_bins_is_refused(num_bins):
    with pytest.raises(ValueError, match="must be at least 1"):
        FastAPLoss(num_bins=num_bins)
