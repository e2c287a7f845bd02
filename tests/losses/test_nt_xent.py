"""NTXentLoss against a loop over its equation, pytorch-metric-learning, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses

from dmlkit.losses import hyperparameters
from dmlkit.losses.nt_xent import NTXentLoss
from dmlkit.miners import all_pairs

# Classes of two, three and (class 3) a single member.
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 2, 3])
TEMPERATURES = [0.07, 0.5]


def raw_rows(rows=8, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return rows.requires_grad_()


def reference_loss(embeddings, labels, temperature):
    """The cross-entropy, one positive pair at a time."""
    weight = [[math.exp((a @ b).item() / temperature) for b in embeddings] for a in embeddings]
    items, terms = range(len(labels)), []
    for a in items:
        of_negatives = sum(weight[a][n] for n in items if labels[n] != labels[a])
        for p in items:
            if p != a and labels[p] == labels[a]:
                terms.append(-math.log(weight[a][p] / (weight[a][p] + of_negatives)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_matches_the_equation_pair_by_pair(temperature):
    embeddings = F.normalize(raw_rows())
    expected = reference_loss(embeddings, LABELS, temperature)
    loss = NTXentLoss(temperature=temperature)(embeddings, LABELS)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_value_and_gradient_agree_with_pytorch_metric_learning(temperature):
    ours, theirs = F.normalize(raw_rows()), F.normalize(raw_rows())
    ours.retain_grad()
    theirs.retain_grad()

    loss = NTXentLoss(temperature=temperature)(ours, LABELS)
    expected = reference_losses.NTXentLoss(temperature)(theirs, LABELS)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    # The library normalises once more, which drops the radial part of its gradient.
    radial = (ours.grad * ours).sum(dim=1, keepdim=True)
    torch.testing.assert_close(ours.grad - radial * ours, theirs.grad)


def test_with_two_views_of_each_image_it_is_the_cross_entropy_of_simclr():
    embeddings = F.normalize(raw_rows(10))
    logits = (embeddings @ embeddings.T / 0.5).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, (torch.arange(10) + 5) % 10)

    loss = NTXentLoss(temperature=0.5)(embeddings, torch.arange(10) % 5)

    torch.testing.assert_close(loss, expected)


def test_the_default_temperature_is_that_of_pytorch_metric_learning():
    assert hyperparameters(NTXentLoss()) == {"temperature": 0.07}
    assert reference_losses.NTXentLoss().temperature == 0.07


def test_two_classes_on_orthogonal_axes_by_hand():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss = NTXentLoss(temperature=0.5)(embeddings, torch.tensor([0, 0, 1]))
    # Both pairs have cosine 1, and a negative at 0: -log(e^2 / (e^2 + e^0)). Item 2 has none.
    assert loss.item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1)))


def test_has_the_analytic_gradient():
    loss_fn = NTXentLoss(temperature=0.5)
    assert torch.autograd.gradcheck(lambda rows: loss_fn(F.normalize(rows), LABELS), raw_rows())


def test_a_tiny_temperature_neither_overflows_nor_saturates():
    # Opposite positives and a coinciding negative: (s_n - s_p) / t = 2 / t.
    embeddings = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    embeddings.requires_grad_()
    loss = NTXentLoss(temperature=0.0002)(embeddings, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(2 / 0.0002, rel=1e-6)
    assert embeddings.grad.isfinite().all()


def test_pairs_restrict_what_the_loss_sees():
    embeddings = F.normalize(raw_rows())
    positives = torch.zeros(8, 8, dtype=torch.bool)
    negatives = positives.clone()
    # Row 5 has a positive but no negative: it counts as 0. Row 7 has the reverse: it has no term.
    positives[2, 4] = negatives[2, 1] = positives[5, 1] = negatives[7, 0] = True

    loss = NTXentLoss(temperature=0.5)(embeddings, LABELS, pairs=(positives, negatives))

    gap = embeddings[2] @ embeddings[1] - embeddings[2] @ embeddings[4]
    torch.testing.assert_close(loss, torch.log1p(torch.exp(gap / 0.5)) / 2)


def test_giving_all_pairs_changes_nothing():
    embeddings = F.normalize(raw_rows())
    loss = NTXentLoss()(embeddings, LABELS, pairs=all_pairs(LABELS))
    assert torch.equal(loss, NTXentLoss()(embeddings, LABELS))


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]], ids=["one class", "all singletons", "one image"]
)
def test_a_batch_without_a_valid_pair_gives_a_zero_with_zero_gradient(labels):
    raw = raw_rows(len(labels))

    # Anomaly mode also catches a NaN that a later mask would hide.
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        loss = NTXentLoss()(F.normalize(raw), torch.tensor(labels))
        loss.backward()

    assert loss.shape == () and loss.item() == 0
    assert (raw.grad == 0).all()


def test_identical_embeddings_cost_the_logarithm_of_the_number_of_choices():
    raw = torch.tensor([[3.0, 4.0]]).repeat(4, 1).requires_grad_()

    loss = NTXentLoss()(F.normalize(raw), torch.tensor([0, 0, 1, 1]))
    loss.backward()

    # The positive is one of three items alike: itself and two negatives.
    assert loss.item() == pytest.approx(math.log(3))
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_autocast_is_finite(dtype):
    raw = raw_rows().detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = NTXentLoss()(F.normalize(raw), LABELS)
    loss.backward()

    assert loss.dtype == torch.float32 and loss.isfinite()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("row", [0, 7], ids=["in a class", "alone in its class"])
def test_a_nan_embedding_makes_the_loss_nan(row):
    embeddings = F.normalize(raw_rows()).detach()
    embeddings[row] = torch.nan
    assert NTXentLoss()(embeddings, LABELS).isnan()


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(ValueError, match="must be above 0"):
        NTXentLoss(temperature=temperature)
