"""ArcFaceLoss against a loop over its equation, pytorch-metric-learning, and at its corners."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses
from torch.func import functional_call

from dmlkit.losses.arc_face import ArcFaceLoss

LABELS = torch.tensor([0, 3, 2, 0, 2, 3])  # class 1 of the four is absent
SETTINGS = [(0.5, 64.0), (0.2, 3.0), (2.0, 3.0)]  # the last reaches the substitute


def unit_rows(rows=6, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64))


def build(margin=0.5, scale=64.0, num_classes=4, dim=5):
    torch.manual_seed(0)
    return ArcFaceLoss(num_classes, dim, margin=margin, scale=scale).double()


def own_angles(loss_fn, embeddings, labels):
    return F.cosine_similarity(embeddings, loss_fn.proxies[labels]).acos()


def reference_loss(embeddings, labels, proxies, margin, scale):
    """Equation 3 with its substitute, one item and one class at a time."""
    total = 0.0
    for embedding, label in zip(embeddings, labels.tolist(), strict=True):
        terms = []
        for c, proxy in enumerate(proxies):
            cosine = F.cosine_similarity(embedding, proxy, dim=0).item()
            angle = math.acos(cosine)
            if c == label and angle + margin <= math.pi:
                cosine = math.cos(angle + margin)
            elif c == label:
                cosine -= margin * math.sin(margin)
            terms.append(math.exp(scale * cosine))
        total -= math.log(terms[label] / sum(terms))
    return total / len(labels)


@pytest.mark.parametrize(("margin", "scale"), SETTINGS)
def test_matches_the_equation_item_by_item(margin, scale):
    loss_fn, embeddings = build(margin, scale), unit_rows()
    expected = reference_loss(embeddings, LABELS, loss_fn.proxies, margin, scale)
    assert loss_fn(embeddings, LABELS).item() == pytest.approx(expected)


def test_the_settings_reach_both_branches():
    angles = own_angles(build(), unit_rows(), LABELS)
    assert 0 < (angles > math.pi - 2.0).sum() < len(LABELS)
    assert (angles < math.pi - 0.5).all()


@pytest.mark.parametrize(("margin", "scale"), SETTINGS)
def test_value_and_gradients_agree_with_pytorch_metric_learning(margin, scale):
    ours, theirs = unit_rows().requires_grad_(), unit_rows().requires_grad_()
    loss_fn = build(margin, scale)
    reference = reference_losses.ArcFaceLoss(4, 5, margin=math.degrees(margin), scale=scale)
    reference.W.data = loss_fn.proxies.data.T.clone()

    loss, expected = loss_fn(ours, LABELS), reference(theirs, LABELS)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss_fn.proxies.grad, reference.W.grad.T)
    # The library normalises once more, which drops the radial part of its gradient.
    radial = (ours.grad * ours).sum(dim=1, keepdim=True)
    torch.testing.assert_close(ours.grad - radial * ours, theirs.grad)


@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_gradient_is_that_of_the_value(margin):
    loss_fn = build(margin, scale=4.0)

    def loss(embeddings, proxies):
        return functional_call(loss_fn, {"proxies": proxies}, (embeddings, LABELS))

    inputs = unit_rows().requires_grad_(), loss_fn.proxies.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


def test_the_defaults_are_those_of_the_paper():
    torch.manual_seed(0)
    loss_fn, embeddings = ArcFaceLoss(4, 5).double(), unit_rows()
    stated = build(margin=0.5, scale=64.0)(embeddings, LABELS)
    assert torch.equal(loss_fn(embeddings, LABELS), stated)


def test_an_angle_of_60_degrees_widened_by_30_by_hand():
    loss_fn = build(margin=math.pi / 6, scale=2.0, num_classes=2, dim=2)
    loss_fn.proxies.data = torch.tensor([[0.5, math.sqrt(3) / 2], [0.0, -5.0]]).double()

    loss = loss_fn(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0]))

    # cos(60 + 30 degrees) = 0, as is the cosine to the other class.
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["on the proxy", "opposite of it"])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_value_and_gradient_are_finite_on_the_proxy_and_opposite_of_it(margin, sign, dtype):
    loss_fn = build(margin, 1.0, num_classes=2, dim=2).to(dtype)
    loss_fn.proxies.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=dtype)
    embedding = torch.tensor([[sign, 0.0]], dtype=dtype, requires_grad=True)

    loss = loss_fn(embedding, torch.tensor([0]))
    loss.backward()

    # cos(0 + m), or -1 - m sin(m), against 0.
    own = math.cos(margin) if sign > 0 else -1 - margin * math.sin(margin)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-own)), rel=1e-3)
    assert embedding.grad.isfinite().all() and loss_fn.proxies.grad.isfinite().all()
    assert embedding.grad[0, 0] < 0  # it is still pulled to its proxy


def test_a_cosine_rounded_above_1_stays_finite():
    loss_fn = build(0.5, 1.0, num_classes=2, dim=2).float()
    loss_fn.proxies.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    embedding = torch.tensor([[1.0000002, 0.0]], requires_grad=True)
    loss = loss_fn(embedding, torch.tensor([0]))
    loss.backward()
    assert loss.isfinite() and embedding.grad.isfinite().all()


def test_a_wider_angle_never_costs_less():
    loss_fn = build(0.5, 1.0, num_classes=2, dim=3)
    loss_fn.proxies.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).double()
    angles = torch.linspace(0, math.pi, 500, dtype=torch.float64)
    rows = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], dim=1)
    costs = torch.stack([loss_fn(row[None], torch.tensor([0])) for row in rows])
    assert (costs.diff() > 0).all()


def test_proxies_start_at_about_unit_length():
    torch.manual_seed(0)
    proxies = ArcFaceLoss(200, 64).proxies
    assert proxies.shape == (200, 64)
    assert proxies.std().item() == pytest.approx(1 / 8, rel=2e-2)
    assert proxies.mean().item() == pytest.approx(0, abs=3e-3)


@pytest.mark.parametrize("bad", [28.6, -0.1, math.pi, math.nan])
def test_a_margin_in_degrees_is_refused(bad):
    with pytest.raises(ValueError, match=rf"margin={bad} is not in \[0, pi\) radians"):
        ArcFaceLoss(4, 5, margin=bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_above_0_is_refused(bad):
    with pytest.raises(ValueError, match=f"scale={bad} must be above 0"):
        ArcFaceLoss(4, 5, scale=bad)
