"""From features to embeddings of unit length."""

import torch.nn.functional as F
from torch import Tensor, nn


class EmbeddingHead(nn.Module):
    """Linear map to D dimensions, then unit length.

    Args:
        in_features: size of the trunk's features, F.
        embedding_dim: size of the embedding, D.
        layer_norm: normalise the features first, without learned scale or shift (Zhai and Wu,
            2019, for NormSoftmax).
        bias: add a learned bias; Zhai and Wu have none.
        project: have the linear map; without it the features themselves are the embedding, as Zhai
            and Wu have it where D is F.

    Raises:
        ValueError: no projection although D is not F.
    """

    def __init__(
        self,
        in_features: int,
        embedding_dim: int,
        *,
        layer_norm: bool = False,
        bias: bool = True,
        project: bool = True,
    ) -> None:
        super().__init__()
        if not project and embedding_dim != in_features:
            raise ValueError(
                f"{in_features} features are no embedding of {embedding_dim} without a projection"
            )
        self.norm = nn.LayerNorm(in_features, elementwise_affine=False) if layer_norm else None
        self.linear = nn.Linear(in_features, embedding_dim, bias=bias) if project else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Return unit-length embeddings (B, D) of ``features`` (B, F)."""
        if self.norm is not None:
            features = self.norm(features)
        # Unit length in float32 even under bfloat16, or similarities would carry three digits.
        return F.normalize(self.linear(features).float(), dim=1)


class EmbeddingModel(nn.Module):
    """A trunk and an embedding head; calling it applies both.

    Args:
        trunk: images (B, 3, S, S), or cached features (B, F), to features (B, F).
        head: features (B, F) to embeddings (B, D).
    """

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return unit-length embeddings (B, D)."""
        return self.head(self.trunk(images))
