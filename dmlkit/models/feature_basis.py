"""The feature basis of SLADE (Duan et al., CVPR 2021), https://arxiv.org/abs/2011.10269.

The authors published no code. How the basis starts is known from a third-party implementation whose
author had the paper.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureBasis(nn.Module):
    """Describe an embedding f by its products with K learned vectors, W f: a map without bias.

    In the paper there is a vector per labelled class, so that cross-entropy of the responses on
    labelled images (eq. 3) is a linear classifier without bias. The cosine of two images' responses
    (eq. 4) is what pairs of unlabelled images are judged by; retrieval keeps to the embeddings.

    The vectors start normal with variance 1/D, so of length about 1.

    Args:
        num_vectors: number of basis vectors, K.
        embedding_dim: size of the embedding, D.

    Raises:
        ValueError: if either is below 1.
    """

    def __init__(self, num_vectors: int, embedding_dim: int) -> None:
        super().__init__()
        if num_vectors < 1 or embedding_dim < 1:
            raise ValueError(f"{num_vectors=} and {embedding_dim=} must both be at least 1")
        self.vectors = nn.Parameter(torch.empty(num_vectors, embedding_dim))
        nn.init.normal_(self.vectors, std=embedding_dim**-0.5)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the responses (B, K), of any length, to unit ``embeddings`` (B, D), in float32."""
        # The variance of cosines that are nearly equal would be rounding noise in bfloat16.
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.linear(embeddings.to(dtype), self.vectors.to(dtype))

    @torch.no_grad()
    def start_from(self, vectors: Tensor) -> None:
        """Replace the basis by a copy of ``vectors`` (K, D), for instance by ``class_means``.

        Raises:
            ValueError: if their shape is another.
        """
        # Vectors of another shape could broadcast: one row would become all of them.
        if vectors.shape != self.vectors.shape:
            raise ValueError(
                f"the vectors have shape {tuple(vectors.shape)} and the basis "
                f"{tuple(self.vectors.shape)}; give one vector for each of the basis"
            )
        self.vectors.copy_(vectors)


@torch.no_grad()
def class_means(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Return the direction of each class, (C, D) of unit length: a basis to start from.

    The paper starts from random vectors, as far as is known; this is for comparison.

    Args:
        embeddings: (M, D) of labelled images.
        labels: (M,) integer class of each, every one of 0..C-1 at least once.

    Returns:
        (C, D) in float32 at least; a row is 0 where the embeddings of a class cancel.

    Raises:
        ValueError: no embedding, not one label for each, or a number without an image.
    """
    if not len(embeddings) or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and embeddings {tuple(embeddings.shape)}; "
            "give one class for each of at least one embedding"
        )
    present = labels.unique().tolist()
    if present != list(range(len(present))):
        raise ValueError(
            f"{len(present)} classes have numbers from {present[0]} to {present[-1]}; number them "
            "from 0 without gaps"
        )
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    means = torch.stack([embeddings[labels == label].mean(dim=0) for label in present])  # (C, D)
    return F.normalize(means, dim=1)
