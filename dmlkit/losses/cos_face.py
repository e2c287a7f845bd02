"""CosFace loss (Wang et al., CVPR 2018), https://arxiv.org/abs/1801.09414."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.losses.proxies import check_proxy_inputs
from dmlkit.miners import Pairs


class CosFaceLoss(nn.Module):
    """Classify by cosine, with the cosine to the own class lowered by a margin.

    Mean over the batch of -log(e^{s (cos y - m)} / (e^{s (cos y - m)} + sum_{j != y} e^{s cos j}))
    (eq. 4 of the paper, the large margin cosine loss), with cos j the cosine of the embedding to
    the learned weight of class j. Without the margin it is
    :class:`dmlkit.losses.norm_softmax.NormSoftmaxLoss` at temperature 1 / s.

    The defaults are those of the paper, for faces, and of pytorch-metric-learning. The class
    weights, here ``proxies``, start normal with variance 1/D, so of length about 1.

    Args:
        num_classes: number of training classes, C.
        embedding_dim: embedding size, D.
        margin: m above and in the paper, in units of cosine.
        scale: s above and in the paper.

    Raises:
        ValueError: if ``scale`` is not above 0.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, *, margin: float = 0.35, scale: float = 64.0
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"{scale=} must be above 0")
        self.margin = margin
        self.scale = scale
        self.proxies = nn.Parameter(torch.randn(num_classes, embedding_dim) * embedding_dim**-0.5)

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with ``labels`` (B,) in [0, C).

        Raises:
            ValueError: if ``pairs`` are given, if there is not one label per embedding, or if a
                label on the CPU is outside [0, C).
        """
        check_proxy_inputs(self, embeddings, labels, pairs, num_classes=len(self.proxies))
        cosine = cosine_similarity(embeddings, F.normalize(self.proxies))  # (B, C)
        own = labels[:, None]  # (B, 1)
        margin = torch.full_like(own, -self.margin, dtype=cosine.dtype)  # (B, 1)
        # Added in place, one entry per row: a mask of margins would be as large as the cosines.
        return F.cross_entropy(self.scale * cosine.scatter_add_(1, own, margin), labels)
