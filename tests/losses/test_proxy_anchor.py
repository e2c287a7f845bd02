"""ProxyAnchorLoss against a loop over its equation, pytorch-metric-learning, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses
from torch.func import functional_call

from dmlkit.losses.proxy_anchor import ProxyAnchorLoss

LABELS = torch.tensor([0, 3, 2, 0, 2, 3, 0])  # class 1 of the four is absent
SETTINGS = [(0.1, 32.0), (-0.2, 3.0)]


def unit_rows(rows=7, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64))


def build(margin=0.1, scale=32.0, num_classes=4, dim=5):
    torch.manual_seed(0)
    return ProxyAnchorLoss(num_classes, dim, margin=margin, scale=scale).double()


def reference_loss(embeddings, labels, proxies, margin, scale):
    """Equation 4, one proxy and one item at a time."""
    pull, push, present = 0.0, 0.0, set(labels.tolist())
    for c, proxy in enumerate(proxies):
        of_class, of_others = 0.0, 0.0
        for embedding, label in zip(embeddings, labels, strict=True):
            cosine = F.cosine_similarity(embedding, proxy, dim=0).item()
            if label == c:
                of_class += math.exp(-scale * (cosine - margin))
            else:
                of_others += math.exp(scale * (cosine + margin))
        pull += math.log(1 + of_class) / len(present) if c in present else 0
        push += math.log(1 + of_others) / len(proxies)
    return pull + push


@pytest.mark.parametrize(("margin", "scale"), SETTINGS)
def test_matches_the_equation_proxy_by_proxy(margin, scale):
    loss_fn, embeddings = build(margin, scale), unit_rows()
    expected = reference_loss(embeddings, LABELS, loss_fn.proxies, margin, scale)
    assert loss_fn(embeddings, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize(("margin", "scale"), SETTINGS)
def test_value_and_gradients_agree_with_pytorch_metric_learning(margin, scale):
    ours, theirs = unit_rows().requires_grad_(), unit_rows().requires_grad_()
    loss_fn = build(margin, scale)
    reference = reference_losses.ProxyAnchorLoss(4, 5, margin=margin, alpha=scale)
    reference.proxies.data = loss_fn.proxies.data.clone()

    loss, expected = loss_fn(ours, LABELS), reference(theirs, LABELS)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss_fn.proxies.grad, reference.proxies.grad)
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
    loss_fn, embeddings = ProxyAnchorLoss(4, 5).double(), unit_rows()
    stated = build(margin=0.1, scale=32.0)(embeddings, LABELS)
    assert torch.equal(loss_fn(embeddings, LABELS), stated)


def test_two_images_and_three_orthogonal_proxies_by_hand():
    loss_fn = build(margin=0.5, scale=2.0, num_classes=3, dim=3)
    loss_fn.proxies.data = 7 * torch.eye(3, dtype=torch.float64)
    embeddings = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)

    loss = loss_fn(embeddings, torch.tensor([0, 0]))

    # Pull, class 0 alone: cosines 1 and 0, e^{-2 (1 - 1/2)} = e^-1 and e^{-2 (0 - 1/2)} = e.
    # Push, over three classes: class 0 has no negative; proxy 1 has cosines 0 and 1,
    # e^{2 (0 + 1/2)} = e and e^{2 (1 + 1/2)} = e^3; proxy 2 has cosine 0 twice.
    pull = math.log(1 + math.exp(-1) + math.e)
    push = (math.log(1) + math.log(1 + math.e + math.exp(3)) + math.log(1 + 2 * math.e)) / 3
    assert loss.item() == pytest.approx(pull + push)


def test_a_batch_of_the_only_class_has_no_push_and_a_finite_gradient():
    loss_fn, embeddings = build(num_classes=1, scale=2.0), unit_rows().requires_grad_()
    # Anomaly mode also catches a NaN that a later mask would hide.
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        loss = loss_fn(embeddings, torch.zeros_like(LABELS))
        loss.backward()
    expected = reference_loss(embeddings, torch.zeros_like(LABELS), loss_fn.proxies, 0.1, 2.0)
    assert loss.item() == pytest.approx(expected)
    assert embeddings.grad.isfinite().all() and loss_fn.proxies.grad.isfinite().all()


def test_a_huge_scale_does_not_overflow():
    loss_fn, embeddings = build(scale=5e4).float(), unit_rows().float().requires_grad_()
    loss = loss_fn(embeddings, LABELS)
    loss.backward()
    assert loss.isfinite() and embeddings.grad.isfinite().all()


def test_proxies_start_normal_with_variance_2_over_the_number_of_classes():
    torch.manual_seed(0)
    proxies = ProxyAnchorLoss(200, 64).proxies
    assert proxies.shape == (200, 64)
    assert proxies.std().item() == pytest.approx(0.1, rel=2e-2)
    assert proxies.mean().item() == pytest.approx(0, abs=3e-3)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_above_0_is_refused(bad):
    with pytest.raises(ValueError, match=f"scale={bad} must be above 0"):
        ProxyAnchorLoss(4, 5, scale=bad)
