"""The head of SwAV (Caron et al., NeurIPS 2020), https://arxiv.org/abs/2006.09882."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SwAVHead(nn.Module):
    """Projection of features to unit length, and its cosines with learned prototypes.

    The defaults are the official code's for a ResNet-50, its README's remedy against collapse
    being no batch norm. Retrieval drops this head.

    Args:
        in_features: size of the trunk's features, F.
        hidden_features: size of the hidden layer, H.
        embedding_dim: size of the projection, D.
        num_prototypes: K. 3,000 are for ImageNet; more than a batch and its queue hold cannot all
            be assigned.
        batch_norm: normalise the hidden layer over the batch. It is this head's own and learns
            also where the trunk's batch norms are frozen or folded.

    Raises:
        ValueError: fewer than two prototypes.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int = 2048,
        embedding_dim: int = 128,
        num_prototypes: int = 3000,
        *,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        if num_prototypes < 2:
            raise ValueError(f"{num_prototypes=} tell nothing apart; use at least 2")
        self.projection = nn.Sequential(
            nn.Linear(in_features, hidden_features),
            nn.BatchNorm1d(hidden_features) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Linear(hidden_features, embedding_dim),
        )
        self.prototypes = nn.Linear(embedding_dim, num_prototypes, bias=False)
        self.normalise_prototypes()

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit embeddings (B, D) of ``features`` (B, F) and their scores (B, K), float32."""
        # In float32 even under bfloat16, as in EmbeddingHead.
        embeddings = F.normalize(self.projection(features).float(), dim=1)
        return embeddings, self.score(embeddings)

    def score(self, embeddings: Tensor) -> Tensor:
        """Return (..., K) cosines of unit ``embeddings`` (..., D) with all prototypes, in float32.

        They are cosines while the prototypes have unit length: see ``normalise_prototypes``.
        """
        # Divided by an epsilon of 0.05, three digits would be none.
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.prototypes(embeddings)

    @torch.no_grad()
    def normalise_prototypes(self) -> None:
        """Bring the prototypes (K, D) to unit length; the official code does before each step."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
