"""The head of SwAV: its projection, its prototypes and their scores."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from dmlkit.models import SwAVHead


def build(batch_norm=True):
    torch.manual_seed(0)
    return SwAVHead(6, 5, 3, 4, batch_norm=batch_norm)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_it_projects_through_one_hidden_layer_and_compares_with_prototypes(batch_norm):
    head, features = build(batch_norm), torch.randn(8, 6)
    state = head.state_dict()
    hidden = features @ state["projection.0.weight"].T + state["projection.0.bias"]
    if batch_norm:
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    assert (hidden < 0).any()
    out = hidden.clamp_min(0) @ state["projection.3.weight"].T + state["projection.3.bias"]
    embeddings, scores = head(features)
    torch.testing.assert_close(embeddings, normalize(out), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, embeddings @ state["prototypes.weight"].T)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(8))
    assert scores.shape == (8, 4) and scores.abs().max() <= 1 + 1e-6


def test_its_layers_are_those_of_the_official_head():
    head = SwAVHead(2048)
    shapes = {name: tuple(values.shape) for name, values in head.named_parameters()}
    assert shapes == {
        "projection.0.weight": (2048, 2048),
        "projection.0.bias": (2048,),
        "projection.1.weight": (2048,),
        "projection.1.bias": (2048,),
        "projection.3.weight": (128, 2048),
        "projection.3.bias": (128,),
        "prototypes.weight": (3000, 128),
    }


def test_without_batch_norm_an_image_does_not_depend_on_its_batch():
    features = torch.randn(8, 6)
    for batch_norm in (True, False):
        head = build(batch_norm)
        together, alone = head(features)[0][:2], head(features[:2])[0]
        assert torch.allclose(together, alone, atol=1e-6) != batch_norm


def test_prototypes_have_unit_length_from_the_start_and_when_told_to():
    head = build()
    weight = head.prototypes.weight
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(4))
    before = weight.detach().clone()
    with torch.no_grad():
        weight *= torch.tensor([[0.1], [2.0], [3.0], [40.0]])
    head.normalise_prototypes()
    torch.testing.assert_close(weight.detach(), before)
    assert head.prototypes.weight is weight and weight.requires_grad


def test_embeddings_of_any_shape_are_scored():
    head, embeddings = build(), normalize(torch.randn(2, 5, 3), dim=2)
    scores = head.score(embeddings)
    assert scores.shape == (2, 5, 4)
    torch.testing.assert_close(scores[1], head.score(embeddings[1]))


def test_scores_and_lengths_are_exact_under_autocast_too():
    head, features = build(), torch.randn(8, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings, scores = head(features)
    assert embeddings.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(8))
    assert torch.equal(scores, head.score(embeddings))


def test_every_parameter_gets_a_gradient():
    head = build()
    head(torch.randn(8, 6))[1].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_its_batch_norm_is_its_own():
    assert isinstance(build().projection[1], nn.BatchNorm1d)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in build(batch_norm=False).modules())


@pytest.mark.parametrize("count", [1, 0])
def test_too_few_prototypes_are_refused(count):
    with pytest.raises(ValueError, match=f"num_prototypes={count} tell nothing apart"):
        SwAVHead(6, 5, 3, count)
