"""WeightLoss against a loop over its equation, the Multi-Similarity loss, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses

from dmlkit.losses import hyperparameters
from dmlkit.losses.weight import WeightLoss
from dmlkit.miners import multi_similarity_miner

# Classes of two, three and (class 3) a single member.
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 2, 3])
SETTINGS = [(2.0, 10.0, 0.5), (2.0, 40.0, 0.5), (3.0, 5.0, -0.2)]


def raw_rows(rows=8, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return rows.requires_grad_()


def build(settings):
    positive_scale, negative_scale, base = settings
    return WeightLoss(positive_scale=positive_scale, negative_scale=negative_scale, base=base)


def reference_loss(embeddings, labels, positive_scale, negative_scale, base, mined):
    """The equation, one anchor at a time."""
    total = 0.0
    for i in range(len(labels)):
        others = [k for k in range(len(labels)) if k != i]
        cosine = {k: (embeddings[i] @ embeddings[k]).item() for k in others}
        positives = [cosine[k] for k in others if labels[k] == labels[i]]
        negatives = [cosine[k] for k in others if labels[k] != labels[i]]
        if mined:
            lowest, highest = min(positives, default=math.inf), max(negatives)
            positives = [s for s in positives if s - 0.1 < highest]
            negatives = [s for s in negatives if s + 0.1 > lowest]
        pull = sum(math.exp(-positive_scale * (s - base)) for s in positives)
        push = sum(math.exp(negative_scale * (s - base)) for s in negatives)
        total += 2 / positive_scale * math.log1p(pull) + 2 / negative_scale * math.log1p(push)
    return total / len(labels)


@pytest.mark.parametrize("mined", [False, True], ids=["all pairs", "mined pairs"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_matches_the_equation_anchor_by_anchor(settings, mined):
    embeddings = F.normalize(raw_rows())
    pairs = multi_similarity_miner(embeddings, LABELS) if mined else None

    expected = reference_loss(embeddings, LABELS, *settings, mined)

    assert build(settings)(embeddings, LABELS, pairs=pairs).item() == pytest.approx(expected)


@pytest.mark.parametrize("settings", SETTINGS)
def test_value_and_gradient_are_twice_the_multi_similarity_of_pytorch_metric_learning(settings):
    ours, theirs = raw_rows(), raw_rows()

    loss = build(settings)(F.normalize(ours), LABELS)
    expected = 2 * reference_losses.MultiSimilarityLoss(*settings)(F.normalize(theirs), LABELS)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_defaults_are_those_of_deep_metric():
    embeddings = F.normalize(raw_rows())
    stated = build((2.0, 10.0, 0.5))(embeddings, LABELS)
    assert torch.equal(WeightLoss()(embeddings, LABELS), stated)
    assert hyperparameters(WeightLoss()) == {
        "positive_scale": 2.0,
        "negative_scale": 10.0,
        "base": 0.5,
    }


def test_two_classes_on_orthogonal_axes_by_hand():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    loss = build((4.0, 8.0, 0.5))(embeddings, torch.tensor([0, 0, 1, 1]))

    # Each item: one positive at cosine 1, e^{-4 (1 - 1/2)} = e^-2, and two negatives at cosine 0,
    # e^{8 (0 - 1/2)} = e^-4 each.
    expected = math.log(1 + math.exp(-2)) / 2 + math.log(1 + 2 * math.exp(-4)) / 4
    assert loss.item() == pytest.approx(expected)


def test_gradient_is_that_of_the_value():
    embeddings = F.normalize(raw_rows().detach()).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: WeightLoss()(rows, LABELS), embeddings)


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1], [0]],
    ids=["one class", "all singletons", "two classes", "one image"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("identical", [False, True], ids=["spread", "identical embeddings"])
def test_loss_and_gradient_are_finite_under_autocast(identical, dtype, labels):
    rows = raw_rows(1 if identical else len(labels)).detach().float()
    raw = rows.expand(len(labels), -1).clone().requires_grad_()

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
        loss = WeightLoss()(F.normalize(raw).to(dtype), torch.tensor(labels))
    loss.backward()

    assert loss.isfinite() and loss.dtype == torch.float32
    assert raw.grad.isfinite().all()


def test_a_batch_without_a_valid_pair_gives_a_zero_with_zero_gradient():
    raw = raw_rows()
    none = torch.zeros(8, 8, dtype=torch.bool)

    loss = WeightLoss()(F.normalize(raw), LABELS, pairs=(none, none))
    loss.backward()

    assert loss.shape == () and loss.item() == 0
    assert (raw.grad == 0).all()


@pytest.mark.parametrize("row", range(8))
def test_a_row_of_nan_makes_the_loss_nan(row):
    embeddings = F.normalize(raw_rows().detach())
    embeddings[row] = torch.nan
    assert WeightLoss()(embeddings, LABELS).isnan()


@pytest.mark.parametrize("setting", ["positive_scale", "negative_scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_above_zero_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting}={value}.* must both be above 0"):
        WeightLoss(**{setting: value})
