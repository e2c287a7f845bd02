"""The auxiliary head of self-supervised ranking (Fu et al., AAAI 2021), which retrieval drops."""

import torch.nn.functional as F
from torch import Tensor, nn


class MLPHead(nn.Module):
    """Linear map to a hidden layer, ReLU, linear map to D dimensions, then unit length.

    Args:
        in_features: size of the trunk's features, F.
        hidden_features: size of the hidden layer, H.
        embedding_dim: size of the embedding, D.
    """

    def __init__(self, in_features: int, hidden_features: int, embedding_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden_features),
            nn.ReLU(),
            nn.Linear(hidden_features, embedding_dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return unit-length embeddings (..., D) of ``features`` (..., F), in float32."""
        # In float32 even under bfloat16, as in EmbeddingHead.
        return F.normalize(self.layers(features).float(), dim=-1)
