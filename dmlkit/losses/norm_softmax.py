"""NormSoftmax loss (Zhai and Wu, BMVC 2019), https://arxiv.org/abs/1811.12649."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.losses.proxies import check_proxy_inputs
from dmlkit.miners import Pairs


class NormSoftmaxLoss(nn.Module):
    """Classify by cosine: soft-max cross-entropy of x . p / temperature, mean over the batch.

    Each class owns one learned weight p, its proxy, normalised in ``forward``; no bias. The
    proxies start uniform in +-1/sqrt(D), as in the authors' code.

    Args:
        num_classes: number of training classes, C.
        embedding_dim: embedding size, D.
        temperature: sigma in the paper.

    Raises:
        ValueError: if ``temperature`` is not above 0.
    """

    def __init__(self, num_classes: int, embedding_dim: int, *, temperature: float = 0.05) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"{temperature=} must be above 0")
        self.temperature = temperature
        bound = embedding_dim**-0.5
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_dim).uniform_(-bound, bound))

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with ``labels`` (B,) in [0, C).

        Raises:
            ValueError: if ``pairs`` are given, if there is not one label per embedding, or if a
                label on the CPU is outside [0, C).
        """
        check_proxy_inputs(self, embeddings, labels, pairs, num_classes=len(self.proxies))
        cosine = cosine_similarity(embeddings, F.normalize(self.proxies))  # (B, C)
        return F.cross_entropy(cosine / self.temperature, labels)
