"""Embeddings of unit length."""

import torch

from dmlkit.models import EmbeddingHead, EmbeddingModel, make_trunk


def test_embeddings_have_unit_length():
    model = EmbeddingModel(make_trunk("small_convnet"), EmbeddingHead(32, 8))
    assert torch.allclose(model(torch.rand(4, 3, 32, 32)).norm(dim=1), torch.ones(4), atol=1e-6)


def test_the_layer_norm_head_ignores_the_level_and_scale_of_features():
    head = EmbeddingHead(6, 4, layer_norm=True, bias=False)
    features = torch.randn(3, 6)
    assert head.linear.bias is None
    assert torch.allclose(head(features), head(5 * features + 7), atol=1e-5)
