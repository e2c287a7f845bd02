"""SoftTripleLoss against a loop over its equations, pytorch-metric-learning, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses
from pytorch_metric_learning import regularizers as reference_regularizers
from torch.func import functional_call

from dmlkit.losses.soft_triple import SoftTripleLoss

LABELS = torch.tensor([0, 3, 2, 0, 2, 3])  # class 1 of the four is absent
SETTINGS = [
    pytest.param({"centres_per_class": 10}, id="library"),
    pytest.param({"centres_per_class": 3, "scale": 5.0, "softness": 0.7, "margin": 0.4}, id="odd"),
]


def unit_rows(rows=6, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64))


def build(num_classes=4, dim=5, **settings):
    torch.manual_seed(0)
    return SoftTripleLoss(num_classes, dim, **settings).double()


def reference_classification(embeddings, labels, loss_fn):
    """The cross-entropy of the soft similarities, one item, class and centre at a time."""
    total = 0.0
    for embedding, label in zip(embeddings, labels.tolist(), strict=True):
        terms = []
        for c in range(loss_fn.centres.shape[1]):
            centres = loss_fn.centres[:, c]
            cosines = [F.cosine_similarity(embedding, w, dim=0).item() for w in centres]
            weights = [math.exp(cosine / loss_fn.softness) for cosine in cosines]
            similarity = sum(q * s for q, s in zip(weights, cosines, strict=True)) / sum(weights)
            similarity -= loss_fn.margin if c == label else 0
            terms.append(math.exp(loss_fn.scale * similarity))
        total -= math.log(terms[label] / sum(terms))
    return total / len(labels)


def reference_spread(loss_fn):
    """The sum of distances between centres of one class, one pair of centres at a time."""
    per_class, num_classes, _ = loss_fn.centres.shape
    total = 0.0
    for c in range(num_classes):
        centres = F.normalize(loss_fn.centres[:, c])
        for k in range(per_class):
            for other in range(k + 1, per_class):
                total += (centres[k] - centres[other]).norm().item()
    return total / (num_classes * per_class * (per_class - 1))


@pytest.mark.parametrize("centre_weight", [0.0, 0.2, 3.0])
@pytest.mark.parametrize("settings", SETTINGS)
def test_matches_the_equations_centre_by_centre(settings, centre_weight):
    loss_fn, embeddings = build(**settings, centre_weight=centre_weight), unit_rows()
    expected = reference_classification(embeddings, LABELS, loss_fn)
    expected += centre_weight * reference_spread(loss_fn)
    assert loss_fn(embeddings, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize("centre_weight", [0.0, 0.2])
@pytest.mark.parametrize("settings", SETTINGS)
def test_value_and_gradients_agree_with_pytorch_metric_learning(settings, centre_weight):
    ours, theirs = unit_rows().requires_grad_(), unit_rows().requires_grad_()
    loss_fn = build(**settings, centre_weight=centre_weight)
    per_class = loss_fn.centres_per_class
    reference = reference_losses.SoftTripleLoss(
        4,
        5,
        centers_per_class=per_class,
        la=loss_fn.scale,
        gamma=loss_fn.softness,
        margin=loss_fn.margin,
        weight_regularizer=reference_regularizers.SparseCentersRegularizer(4, per_class),
        weight_reg_weight=centre_weight,
    )
    # Its columns are class after class, ours centre after centre.
    reference.fc.data = loss_fn.centres.data.transpose(0, 1).flatten(0, 1).T.clone()

    loss, expected = loss_fn(ours, LABELS), reference(theirs, LABELS)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    gradient = reference.fc.grad.T.unflatten(0, (4, per_class)).transpose(0, 1)
    torch.testing.assert_close(loss_fn.centres.grad, gradient)
    # The library normalises once more, which drops the radial part of its gradient.
    radial = (ours.grad * ours).sum(dim=1, keepdim=True)
    torch.testing.assert_close(ours.grad - radial * ours, theirs.grad)


def test_gradient_is_that_of_the_value():
    loss_fn = build(centres_per_class=3, scale=4.0)

    def loss(embeddings, centres):
        return functional_call(loss_fn, {"centres": centres}, (embeddings, LABELS))

    inputs = unit_rows().requires_grad_(), loss_fn.centres.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


def test_the_defaults_are_those_of_the_paper():
    torch.manual_seed(0)
    loss_fn, embeddings = SoftTripleLoss(4, 5).double(), unit_rows()
    stated = build(centres_per_class=10, scale=20.0, softness=0.1, centre_weight=0.2, margin=0.01)
    assert torch.equal(loss_fn(embeddings, LABELS), stated(embeddings, LABELS))


def test_two_classes_of_two_centres_by_hand():
    loss_fn = build(
        2, 2, centres_per_class=2, scale=3.0, softness=0.5, centre_weight=0.5, margin=0.1
    )
    # Class 0 has centres at 0 and 90 degrees, class 1 both at 180.
    loss_fn.centres.data = torch.tensor(
        [[[2.0, 0.0], [-1.0, 0.0]], [[0.0, 3.0], [-9.0, 0.0]]], dtype=torch.float64
    )

    loss = loss_fn(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0]))

    # Class 0 has cosines 1 and 0, weighted e^2 and 1; class 1 is at -1.
    own = math.exp(2) / (math.exp(2) + 1)
    classification = math.log(1 + math.exp(3 * (-1 - (own - 0.1))))
    # The pair of class 0 is at distance sqrt 2, that of class 1 at 0; C K (K - 1) = 4.
    assert loss.item() == pytest.approx(classification + 0.5 * math.sqrt(2) / 4)


def test_one_centre_without_a_margin_is_a_plain_soft_max():
    loss_fn, embeddings = build(centres_per_class=1, margin=0.0), unit_rows()
    logits = 20 * embeddings @ F.normalize(loss_fn.centres[0]).T
    torch.testing.assert_close(loss_fn(embeddings, LABELS), F.cross_entropy(logits, LABELS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_centres_that_coincide_have_a_finite_gradient(dtype):
    loss_fn = build(centres_per_class=3).to(dtype)
    loss_fn.centres.data[1] = loss_fn.centres.data[0]
    loss = loss_fn(unit_rows().to(dtype), LABELS)
    loss.backward()
    assert loss.isfinite() and loss_fn.centres.grad.isfinite().all()


def test_the_second_term_alone_draws_centres_of_a_class_together():
    loss_fn = build(centres_per_class=3, centre_weight=1e3)
    before = reference_spread(loss_fn)
    optimizer = torch.optim.Adam(loss_fn.parameters(), lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        loss_fn(unit_rows(), LABELS).backward()
        optimizer.step()
    assert reference_spread(loss_fn) < before / 2


def test_a_huge_scale_does_not_overflow():
    loss_fn, embeddings = build(scale=1e5, softness=1e-5), unit_rows().requires_grad_()
    loss = loss_fn(embeddings, LABELS)
    loss.backward()
    assert loss.isfinite() and embeddings.grad.isfinite().all()


def test_centres_start_uniform_within_one_over_the_root_of_their_number():
    torch.manual_seed(0)
    centres = SoftTripleLoss(20, 64, centres_per_class=5).centres
    assert centres.shape == (5, 20, 64)
    assert centres.abs().max().item() == pytest.approx(0.1, rel=1e-2)
    # The standard deviation of U(-b, b) is b / sqrt(3).
    assert centres.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=2e-2)
    assert centres.mean().item() == pytest.approx(0, abs=3e-3)


def test_a_class_without_centres_is_refused():
    with pytest.raises(ValueError, match="centres_per_class=0; a class needs at least 1"):
        SoftTripleLoss(4, 5, centres_per_class=0)


@pytest.mark.parametrize("name", ["scale", "softness"])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_above_0_is_refused(name, bad):
    with pytest.raises(ValueError, match=f"{name}={bad}.*must both be above 0"):
        SoftTripleLoss(4, 5, **{name: bad})
