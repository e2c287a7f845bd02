"""Embeddings of unit length."""

import pytest
import torch
from torch.nn.functional import layer_norm, normalize

from dmlkit.models import EmbeddingHead, EmbeddingModel, make_trunk


def test_embeddings_have_unit_length():
    model = EmbeddingModel(make_trunk("small_convnet"), EmbeddingHead(32, 8))
    assert torch.allclose(model(torch.rand(4, 3, 32, 32)).norm(dim=1), torch.ones(4), atol=1e-6)


def test_the_layer_norm_head_ignores_the_level_and_scale_of_features():
    head = EmbeddingHead(6, 4, layer_norm=True, bias=False)
    features = torch.randn(3, 6)
    assert head.linear.bias is None
    assert torch.allclose(head(features), head(5 * features + 7), atol=1e-5)


def test_without_a_projection_the_features_are_the_embedding_and_their_number_has_to_fit():
    head = EmbeddingHead(6, 6, layer_norm=True, project=False)
    features = torch.randn(3, 6)
    assert not list(head.parameters())
    assert torch.allclose(head(features), normalize(layer_norm(features, (6,))))
    with pytest.raises(ValueError, match="6 features are no embedding of 4"):
        EmbeddingHead(6, 4, project=False)
