"""ArcFace loss (Deng et al., CVPR 2019), https://arxiv.org/abs/1801.07698."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.losses.proxies import check_proxy_inputs
from dmlkit.miners import Pairs


class ArcFaceLoss(nn.Module):
    """Classify by cosine, with the angle to the own class widened by a margin.

    Mean over the batch of
    -log(e^{s cos(theta_y + m)} / (e^{s cos(theta_y + m)} + sum_{j != y} e^{s cos theta_j}))
    (eq. 3 of the paper), with theta_j the angle between the embedding and the learned weight of
    class j. Where theta_y > pi - m that would reward a wider angle, and cos(theta_y) - m sin(m)
    takes the place of cos(theta_y + m), as in the released code; the paper does not say so.

    The defaults are those of the paper, for faces; pytorch-metric-learning has the same, its
    margin in degrees (28.6). The class weights, here ``proxies``, start normal with variance 1/D,
    so of length about 1.

    Args:
        num_classes: number of training classes, C.
        embedding_dim: embedding size, D.
        margin: m above and in the paper, in radians.
        scale: s above and in the paper.

    Raises:
        ValueError: if ``margin`` is not an angle in [0, pi), or if ``scale`` is not above 0.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, *, margin: float = 0.5, scale: float = 64.0
    ) -> None:
        super().__init__()
        if not 0 <= margin < math.pi:
            raise ValueError(f"margin={margin} is not in [0, pi) radians; 28.6 degrees are 0.5")
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
        widened = self._widen(cosine.gather(1, own))  # (B, 1)
        return F.cross_entropy(self.scale * cosine.scatter(1, own, widened), labels)

    def _widen(self, cosine: Tensor) -> Tensor:
        """Return cos(theta + m), or its substitute, from cos(theta)."""
        cos_margin, sin_margin = math.cos(self.margin), math.sin(self.margin)
        # The sine has slope infinity where the cosine is 1 or -1; below the clamp its slope is 0.
        sine = (1 - cosine.square()).clamp(min=torch.finfo(cosine.dtype).eps).sqrt()
        widened = cosine * cos_margin - sine * sin_margin
        return torch.where(cosine >= -cos_margin, widened, cosine - self.margin * sin_margin)
