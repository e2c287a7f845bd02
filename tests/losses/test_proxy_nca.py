"""ProxyNCALoss against a loop over its equation, pytorch-metric-learning, and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses
from torch.func import functional_call

from dmlkit.losses.proxy_nca import ProxyNCALoss

LABELS = torch.tensor([0, 3, 2, 0, 2, 3])  # class 1 of the four is absent
SETTINGS = [
    pytest.param((1.0, False), id="paper"),
    pytest.param((9.0, False), id="paper, scaled"),
    pytest.param((1.0, True), id="library"),
    pytest.param((9.0, True), id="ProxyNCA++"),
]


def unit_rows(rows=6, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64))


def build(settings=(1.0, False), num_classes=4, dim=5):
    torch.manual_seed(0)
    softmax_scale, positive_in_denominator = settings
    return ProxyNCALoss(
        num_classes,
        dim,
        softmax_scale=softmax_scale,
        positive_in_denominator=positive_in_denominator,
    ).double()


def reference_loss(embeddings, labels, proxies, softmax_scale, positive_in_denominator):
    """The fraction of exponentials of squared distances, one item and one class at a time."""
    total = 0.0
    for embedding, label in zip(embeddings, labels.tolist(), strict=True):
        above, below = 0.0, 0.0
        for z, proxy in enumerate(proxies):
            squared = (embedding - proxy / proxy.norm()).square().sum().item()
            term = math.exp(-softmax_scale * squared)
            above += term if z == label else 0
            below += term if z != label or positive_in_denominator else 0
        total -= math.log(above / below)
    return total / len(labels)


@pytest.mark.parametrize("settings", SETTINGS)
def test_matches_the_equation_item_by_item(settings):
    loss_fn, embeddings = build(settings), unit_rows()
    expected = reference_loss(embeddings, LABELS, loss_fn.proxies, *settings)
    assert loss_fn(embeddings, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize("softmax_scale", [1.0, 9.0])
def test_value_and_gradients_agree_with_pytorch_metric_learning(softmax_scale):
    ours, theirs = unit_rows().requires_grad_(), unit_rows().requires_grad_()
    loss_fn = build((softmax_scale, True))
    reference = reference_losses.ProxyNCALoss(4, 5, softmax_scale=softmax_scale)
    reference.proxies.data = loss_fn.proxies.data.clone()

    loss, expected = loss_fn(ours, LABELS), reference(theirs, LABELS)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss_fn.proxies.grad, reference.proxies.grad)
    # The library normalises once more, which drops the radial part of its gradient.
    radial = (ours.grad * ours).sum(dim=1, keepdim=True)
    torch.testing.assert_close(ours.grad - radial * ours, theirs.grad)


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradient_is_that_of_the_value(settings):
    loss_fn = build(settings)

    def loss(embeddings, proxies):
        return functional_call(loss_fn, {"proxies": proxies}, (embeddings, LABELS))

    inputs = unit_rows().requires_grad_(), loss_fn.proxies.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


def test_the_defaults_are_those_of_the_paper():
    torch.manual_seed(0)
    loss_fn, embeddings = ProxyNCALoss(4, 5).double(), unit_rows()
    assert torch.equal(loss_fn(embeddings, LABELS), build((1.0, False))(embeddings, LABELS))


def test_an_embedding_on_its_own_of_three_orthogonal_proxies_by_hand():
    embedding, label = torch.eye(3, dtype=torch.float64)[:1], torch.tensor([0])
    losses = []
    for positive_in_denominator in (False, True):
        loss_fn = build((0.5, positive_in_denominator), 3, 3)
        loss_fn.proxies.data = 7 * torch.eye(3, dtype=torch.float64)
        losses.append(loss_fn(embedding, label).item())

    # Squared distance 0 to its own proxy, whatever the proxy's length, and 2 to the two others:
    # e^0 = 1 against e^-1 twice, without and with the 1 in the sum.
    assert losses[0] == pytest.approx(math.log(2 / math.e))
    assert losses[1] == pytest.approx(math.log(1 + 2 / math.e))


def test_without_the_positive_the_gradient_does_not_fade_on_the_right_proxy():
    gradients = []
    for positive_in_denominator in (False, True):
        loss_fn = build((9.0, positive_in_denominator), 2, 2)
        loss_fn.proxies.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
        embedding = F.normalize(torch.tensor([[1.0, 0.1]], dtype=torch.float64)).requires_grad_()
        loss_fn(embedding, torch.tensor([0])).backward()
        gradients.append(embedding.grad.norm().item())

    assert gradients[0] == pytest.approx(36)  # 2 c from the proxy, and 2 c from the other
    assert gradients[1] < 1e-6


def test_a_huge_scale_does_not_overflow():
    for positive_in_denominator in (False, True):
        loss_fn, embeddings = build((1e4, positive_in_denominator)), unit_rows().requires_grad_()
        loss = loss_fn(embeddings, LABELS)
        loss.backward()
        assert loss.isfinite() and embeddings.grad.isfinite().all()


def test_proxies_start_at_about_unit_length():
    torch.manual_seed(0)
    proxies = ProxyNCALoss(200, 64).proxies
    assert proxies.shape == (200, 64)
    assert proxies.std().item() == pytest.approx(1 / 8, rel=2e-2)
    assert proxies.mean().item() == pytest.approx(0, abs=3e-3)


def test_one_class_needs_its_own_proxy_in_the_sum():
    with pytest.raises(ValueError, match="set positive_in_denominator=True"):
        ProxyNCALoss(1, 5)
    assert build((1.0, True), 1)(unit_rows(), torch.zeros(6, dtype=torch.long)).item() == 0


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_above_0_is_refused(bad):
    with pytest.raises(ValueError, match=f"softmax_scale={bad} must be above 0"):
        ProxyNCALoss(4, 5, softmax_scale=bad)
