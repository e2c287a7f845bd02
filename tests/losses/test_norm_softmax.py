"""NormSoftmaxLoss against its equation, pytorch-metric-learning, and its limits."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as reference_losses

from dmlkit.losses import NormSoftmaxLoss, TripletLoss, hyperparameters
from dmlkit.miners import all_pairs

LABELS = torch.tensor([0, 3, 2, 0, 2, 3])  # class 1 of the four is absent


def unit_rows(rows=6, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64))


def build(num_classes=4, dim=5, **settings):
    torch.manual_seed(0)
    return NormSoftmaxLoss(num_classes, dim, **settings).double()


def reference_loss(embeddings, labels, proxies, temperature):
    """The soft-max, one item and one class at a time."""
    total = 0.0
    for embedding, label in zip(embeddings, labels, strict=True):
        weights = []
        for proxy in proxies:
            cosine = F.cosine_similarity(embedding, proxy, dim=0).item()
            weights.append(math.exp(cosine / temperature))
        total -= math.log(weights[label] / sum(weights))
    return total / len(labels)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_matches_the_equation_item_by_item(temperature):
    loss_fn, embeddings = build(temperature=temperature), unit_rows()
    expected = reference_loss(embeddings, LABELS, loss_fn.proxies, temperature)
    assert loss_fn(embeddings, LABELS).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_value_and_proxy_gradient_agree_with_pytorch_metric_learning(temperature):
    loss_fn, embeddings = build(temperature=temperature), unit_rows()
    reference = reference_losses.NormalizedSoftmaxLoss(4, 5, temperature=temperature).double()
    reference.W.data = loss_fn.proxies.data.T.clone()

    loss, expected = loss_fn(embeddings, LABELS), reference(embeddings, LABELS)
    loss.backward()
    expected.backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss_fn.proxies.grad, reference.W.grad.T)


def test_the_default_temperature_is_that_of_the_paper():
    embeddings = unit_rows()
    stated = build(temperature=0.05)(embeddings, LABELS)
    assert torch.equal(build()(embeddings, LABELS), stated)


def test_an_embedding_on_its_own_of_three_orthogonal_proxies_by_hand():
    loss_fn = build(3, 3, temperature=1.0)
    loss_fn.proxies.data = 7 * torch.eye(3, dtype=torch.float64)

    loss = loss_fn(torch.eye(3, dtype=torch.float64), torch.arange(3))

    # Cosine 1 with its own proxy, whatever the proxy's length, and 0 with two others.
    assert loss.item() == pytest.approx(math.log(math.e + 2) - 1)


def test_a_high_temperature_makes_every_class_equally_likely():
    assert build(temperature=1e6)(unit_rows(), LABELS).item() == pytest.approx(math.log(4))


def test_a_low_temperature_costs_nothing_on_the_right_proxy_and_2_over_t_on_the_opposite():
    loss_fn = build(2, 1, temperature=0.01)
    loss_fn.proxies.data = torch.tensor([[3.0], [-0.1]], dtype=torch.float64)
    embedding = torch.ones(1, 1, dtype=torch.float64)

    assert loss_fn(embedding, torch.tensor([0])).item() == pytest.approx(0, abs=1e-12)
    assert loss_fn(embedding, torch.tensor([1])).item() == pytest.approx(2 / 0.01)


def test_proxies_start_uniform_within_one_over_the_root_of_the_dimension():
    torch.manual_seed(0)
    proxies = NormSoftmaxLoss(200, 64).proxies
    assert proxies.shape == (200, 64)
    assert proxies.abs().max().item() == pytest.approx(1 / 8, rel=1e-2)
    # The standard deviation of U(-b, b) is b / sqrt(3).
    assert proxies.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=1e-2)
    assert proxies.mean().item() == pytest.approx(0, abs=3e-3)


def test_every_proxy_and_every_embedding_receives_a_gradient():
    loss_fn, embeddings = build(temperature=0.5), unit_rows().requires_grad_()
    loss_fn(embeddings, LABELS).backward()

    assert [name for name, _ in loss_fn.named_parameters()] == ["proxies"]
    # The absent class 1 too: it is pushed away.
    assert (loss_fn.proxies.grad.norm(dim=1) > 0).all()
    assert (embeddings.grad.norm(dim=1) > 0).all()


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [2]],
    ids=["one class", "all singletons", "one image"],
)
@pytest.mark.parametrize("identical", [False, True], ids=["spread", "identical embeddings"])
def test_gradient_is_finite_for_a_degenerate_batch(labels, identical):
    loss_fn = build()
    rows = unit_rows(1 if identical else len(labels))
    embeddings = rows.expand(len(labels), -1).clone().requires_grad_()

    loss_fn(embeddings, torch.tensor(labels)).backward()

    assert embeddings.grad.isfinite().all()
    assert loss_fn.proxies.grad.isfinite().all()


def test_gradient_is_finite_where_there_is_only_one_class():
    loss_fn, embeddings = build(num_classes=1), unit_rows().requires_grad_()
    loss = loss_fn(embeddings, torch.zeros_like(LABELS))
    loss.backward()
    assert loss.item() == 0
    assert (embeddings.grad == 0).all()


def test_pairs_are_refused():
    with pytest.raises(ValueError, match="leave pairs out"):
        build()(unit_rows(), LABELS, pairs=all_pairs(LABELS))


@pytest.mark.parametrize("bad", [4, -1, -100], ids=["too high", "negative", "ignore_index"])
def test_a_label_outside_the_classes_is_named(bad):
    labels = LABELS.clone()
    labels[2] = bad
    with pytest.raises(ValueError, match=rf"{bad}.*num_classes=4"):
        build()(unit_rows(), labels)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_0_is_refused(bad):
    with pytest.raises(ValueError, match=f"temperature={bad} must be above 0"):
        NormSoftmaxLoss(4, 5, temperature=bad)


def test_autocast_does_not_coarsen_the_loss():
    loss_fn, embeddings = build().float(), unit_rows().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss_fn(embeddings, LABELS)
    torch.testing.assert_close(inside, loss_fn(embeddings, LABELS), rtol=0, atol=0)


def test_hyperparameters_are_the_settings_of_a_loss_and_no_weights():
    assert hyperparameters(NormSoftmaxLoss(3, 4, temperature=0.1)) == {"temperature": 0.1}
    expected = {"margin": 0.3, "triplets": "all"}
    assert hyperparameters(TripletLoss(margin=0.3, triplets="all")) == expected
