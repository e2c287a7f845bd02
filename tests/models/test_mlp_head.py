"""The head with a hidden layer."""

import pytest
import torch
from torch.nn.functional import normalize

from dmlkit.models import MLPHead


def test_it_is_two_linear_maps_with_what_is_negative_cut_between_them():
    torch.manual_seed(0)
    head, features = MLPHead(6, 5, 3), torch.randn(4, 6)
    (w1, b1, w2, b2) = head.parameters()
    assert (w1.shape, w2.shape) == ((5, 6), (3, 5))
    hidden = features @ w1.T + b1
    assert (hidden < 0).any()
    expected = normalize(hidden.clamp_min(0) @ w2.T + b2)
    torch.testing.assert_close(head(features), expected)


@pytest.mark.parametrize("shape", [(4, 6), (2, 5, 6)], ids=["images", "views of images"])
def test_embeddings_have_unit_length(shape):
    embeddings = MLPHead(6, 5, 3)(torch.randn(shape))
    assert embeddings.shape == (*shape[:-1], 3)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(shape[:-1]))


def test_lengths_are_exact_under_autocast_too():
    head, features = MLPHead(6, 5, 64), torch.randn(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = head(features)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
