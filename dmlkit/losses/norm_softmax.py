"""NormSoftmax loss (Zhai and Wu, BMVC 2019), https://arxiv.org/abs/1811.12649."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.miners import Pairs


class NormSoftmaxLoss(nn.Module):
    """Classify by cosine: soft-max cross-entropy of x . p / temperature, mean over the batch.

    Each class owns one learned weight p, its proxy, normalised in ``forward``; no bias. The
    proxies start uniform in +-1/sqrt(D), as in the authors' code.

    Args:
        num_classes: number of training classes, C.
        embedding_dim: embedding size, D.
        temperature: sigma in the paper.
    """

    def __init__(self, num_classes: int, embedding_dim: int, *, temperature: float = 0.05) -> None:
        super().__init__()
        self.temperature = temperature
        bound = embedding_dim**-0.5
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_dim).uniform_(-bound, bound))

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with ``labels`` (B,) in [0, C).

        Raises:
            ValueError: if ``pairs`` are given, or if a label on the CPU is outside [0, C).
        """
        if pairs is not None:
            raise ValueError("NormSoftmaxLoss compares with proxies, not pairs; leave pairs out")
        self._check_range(labels)
        cosine = cosine_similarity(embeddings, F.normalize(self.proxies))  # (B, C)
        return F.cross_entropy(cosine / self.temperature, labels)

    def _check_range(self, labels: Tensor) -> None:
        # Reading the extremes on a GPU would stall every step; there the cross-entropy kernel
        # stops on such a label itself (except -100, which it would skip without a word).
        if labels.is_cpu and (labels.min() < 0 or labels.max() >= len(self.proxies)):
            raise ValueError(
                f"labels span {labels.min()}..{labels.max()} but the loss has num_classes="
                f"{len(self.proxies)}; relabel the training classes from 0 or raise num_classes"
            )
