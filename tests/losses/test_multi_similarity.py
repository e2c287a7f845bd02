"""MultiSimilarityLoss against a loop over its equation, pytorch-metric-learning, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses
from pytorch_metric_learning import miners as reference_miners

from dmlkit.losses import MultiSimilarityLoss
from dmlkit.miners import all_pairs, multi_similarity_miner

# Classes of two, three and (class 3) a single member.
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 2, 3])
SETTINGS = [
    pytest.param((2.0, 50.0, 0.5), id="library"),
    pytest.param((2.0, 40.0, 0.5), id="released code"),
    pytest.param((2.0, 50.0, 1.0), id="paper text"),
    pytest.param((3.0, 5.0, -0.2), id="odd"),
]


def raw_rows(rows=8, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return rows.requires_grad_()


def build(settings):
    positive_scale, negative_scale, base = settings
    return MultiSimilarityLoss(
        positive_scale=positive_scale, negative_scale=negative_scale, base=base
    )


def reference_loss(embeddings, labels, positive_scale, negative_scale, base):
    """The equation, one anchor and one pair at a time."""
    total = 0.0
    for i in range(len(labels)):
        positive_sum, negative_sum = 0.0, 0.0
        for k in range(len(labels)):
            cosine = F.cosine_similarity(embeddings[i], embeddings[k], dim=0).item()
            if labels[k] != labels[i]:
                negative_sum += math.exp(negative_scale * (cosine - base))
            elif k != i:
                positive_sum += math.exp(-positive_scale * (cosine - base))
        total += math.log1p(positive_sum) / positive_scale
        total += math.log1p(negative_sum) / negative_scale
    return total / len(labels)


@pytest.mark.parametrize("settings", SETTINGS)
def test_matches_the_equation_anchor_by_anchor(settings):
    embeddings = F.normalize(raw_rows())
    expected = reference_loss(embeddings, LABELS, *settings)
    assert build(settings)(embeddings, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize("mined", [False, True], ids=["all pairs", "mined pairs"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_value_and_gradient_agree_with_pytorch_metric_learning(settings, mined):
    ours, theirs = F.normalize(raw_rows()), F.normalize(raw_rows())
    ours.retain_grad()
    theirs.retain_grad()
    pairs = multi_similarity_miner(ours, LABELS) if mined else None
    indices = reference_miners.MultiSimilarityMiner(0.1)(theirs, LABELS) if mined else None

    loss = build(settings)(ours, LABELS, pairs=pairs)
    expected = reference_losses.MultiSimilarityLoss(*settings)(theirs, LABELS, indices)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    # The library normalises once more, which drops the radial part of its gradient.
    radial = (ours.grad * ours).sum(dim=1, keepdim=True)
    torch.testing.assert_close(ours.grad - radial * ours, theirs.grad)


def test_defaults_are_those_of_pytorch_metric_learning():
    embeddings = F.normalize(raw_rows())
    expected = reference_losses.MultiSimilarityLoss()(embeddings, LABELS)
    torch.testing.assert_close(MultiSimilarityLoss()(embeddings, LABELS), expected)


def test_two_classes_on_orthogonal_axes_by_hand():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss = build((2.0, 4.0, 0.5))(embeddings, torch.tensor([0, 0, 1]))

    # Items 0 and 1: one positive at cosine 1, e^{-2 (1 - 1/2)} = e^-1; one negative at cosine 0,
    # e^{4 (0 - 1/2)} = e^-2. Item 2: no positive, two negatives at cosine 0. Mean over all three.
    pair = math.log(1 + math.exp(-1)) / 2 + math.log(1 + math.exp(-2)) / 4
    alone = math.log(1 + 2 * math.exp(-2)) / 4
    assert loss.item() == pytest.approx((2 * pair + alone) / 3)


def test_giving_all_pairs_changes_nothing():
    embeddings = F.normalize(raw_rows())
    loss = MultiSimilarityLoss()(embeddings, LABELS, pairs=all_pairs(LABELS))
    assert torch.equal(loss, MultiSimilarityLoss()(embeddings, LABELS))


def test_an_anchor_whose_pairs_were_all_mined_away_counts_as_zero_in_the_mean():
    embeddings = F.normalize(raw_rows())
    positives = torch.zeros(8, 8, dtype=torch.bool)
    none = positives.clone()
    positives[0, 3] = True

    loss = build((2.0, 50.0, 0.5))(embeddings, LABELS, pairs=(positives, none))

    cosine = embeddings[0] @ embeddings[3]
    torch.testing.assert_close(loss, torch.log1p(torch.exp(-2 * (cosine - 0.5))) / 2 / 8)


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1], [0]],
    ids=["one class", "all singletons", "two classes", "one image"],
)
@pytest.mark.parametrize("identical", [False, True], ids=["spread", "identical embeddings"])
def test_gradient_is_finite_for_a_degenerate_batch(labels, identical):
    rows = raw_rows(1 if identical else len(labels)).detach().float()
    raw = rows.expand(len(labels), -1).clone().requires_grad_()

    # Anomaly mode also catches a NaN that a later mask would hide.
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        loss = MultiSimilarityLoss()(F.normalize(raw), torch.tensor(labels))
        loss.backward()

    assert loss.isfinite()
    assert raw.grad.isfinite().all()


def test_a_huge_scale_does_not_overflow():
    raw = raw_rows()
    loss = build((2000.0, 50000.0, 0.5))(F.normalize(raw).float(), LABELS)
    loss.backward()
    assert loss.isfinite() and raw.grad.isfinite().all()


def test_a_batch_without_a_valid_pair_gives_a_zero_with_zero_gradient():
    raw = raw_rows()
    none = torch.zeros(8, 8, dtype=torch.bool)

    loss = MultiSimilarityLoss()(F.normalize(raw), LABELS, pairs=(none, none))
    loss.backward()

    assert loss.shape == () and loss.item() == 0
    assert (raw.grad == 0).all()
