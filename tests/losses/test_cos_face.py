"""CosFaceLoss against a loop over its equation, pytorch-metric-learning, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses
from torch.func import functional_call

from dmlkit.losses.cos_face import CosFaceLoss
from dmlkit.losses.norm_softmax import NormSoftmaxLoss

LABELS = torch.tensor([0, 3, 2, 0, 2, 3])  # class 1 of the four is absent
SETTINGS = [(0.35, 64.0), (0.7, 3.0), (-0.1, 3.0)]


def unit_rows(rows=6, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64))


def build(margin=0.35, scale=64.0, num_classes=4, dim=5):
    torch.manual_seed(0)
    return CosFaceLoss(num_classes, dim, margin=margin, scale=scale).double()


def reference_loss(embeddings, labels, proxies, margin, scale):
    """Equation 4, one item and one class at a time."""
    total = 0.0
    for embedding, label in zip(embeddings, labels.tolist(), strict=True):
        terms = []
        for c, proxy in enumerate(proxies):
            cosine = F.cosine_similarity(embedding, proxy, dim=0).item()
            terms.append(math.exp(scale * (cosine - margin if c == label else cosine)))
        total -= math.log(terms[label] / sum(terms))
    return total / len(labels)


@pytest.mark.parametrize(("margin", "scale"), SETTINGS)
def test_matches_the_equation_item_by_item(margin, scale):
    loss_fn, embeddings = build(margin, scale), unit_rows()
    expected = reference_loss(embeddings, LABELS, loss_fn.proxies, margin, scale)
    assert loss_fn(embeddings, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize(("margin", "scale"), SETTINGS)
def test_value_and_gradients_agree_with_pytorch_metric_learning(margin, scale):
    ours, theirs = unit_rows().requires_grad_(), unit_rows().requires_grad_()
    loss_fn = build(margin, scale)
    reference = reference_losses.CosFaceLoss(4, 5, margin=margin, scale=scale)
    reference.W.data = loss_fn.proxies.data.T.clone()

    loss, expected = loss_fn(ours, LABELS), reference(theirs, LABELS)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss_fn.proxies.grad, reference.W.grad.T)
    # The library normalises once more, which drops the radial part of its gradient.
    radial = (ours.grad * ours).sum(dim=1, keepdim=True)
    torch.testing.assert_close(ours.grad - radial * ours, theirs.grad)


def test_gradient_is_that_of_the_value():
    loss_fn = build(scale=4.0)

    def loss(embeddings, proxies):
        return functional_call(loss_fn, {"proxies": proxies}, (embeddings, LABELS))

    inputs = unit_rows().requires_grad_(), loss_fn.proxies.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


def test_the_defaults_are_those_of_the_paper():
    torch.manual_seed(0)
    loss_fn, embeddings = CosFaceLoss(4, 5).double(), unit_rows()
    stated = build(margin=0.35, scale=64.0)(embeddings, LABELS)
    assert torch.equal(loss_fn(embeddings, LABELS), stated)


def test_without_a_margin_it_is_norm_softmax():
    loss_fn, embeddings = build(margin=0.0, scale=20.0), unit_rows()
    plain = NormSoftmaxLoss(4, 5, temperature=1 / 20).double()
    plain.proxies.data = loss_fn.proxies.data
    torch.testing.assert_close(loss_fn(embeddings, LABELS), plain(embeddings, LABELS))


def test_an_embedding_on_its_own_of_three_orthogonal_proxies_by_hand():
    loss_fn = build(margin=0.5, scale=2.0, num_classes=3, dim=3)
    loss_fn.proxies.data = 7 * torch.eye(3, dtype=torch.float64)

    loss = loss_fn(torch.eye(3, dtype=torch.float64), torch.arange(3))

    # Own cosine 1 - 1/2, so e^{2 / 2}; the two others 0.
    assert loss.item() == pytest.approx(math.log(math.e + 2) - 1)


def test_proxies_start_at_about_unit_length():
    torch.manual_seed(0)
    proxies = CosFaceLoss(200, 64).proxies
    assert proxies.shape == (200, 64)
    assert proxies.std().item() == pytest.approx(1 / 8, rel=2e-2)
    assert proxies.mean().item() == pytest.approx(0, abs=3e-3)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_above_0_is_refused(bad):
    with pytest.raises(ValueError, match=f"scale={bad} must be above 0"):
        CosFaceLoss(4, 5, scale=bad)
