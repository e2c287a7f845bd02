"""Self-supervised ranking loss (Fu et al., AAAI 2021), doi:10.1609/aaai.v35i2.16226.

The authors published no code. The formulas are those of a student reproduction whose authors had
the paper, CENG501 at METU, Spring 2022, by Ergun and Yilmaz:
https://github.com/CENG501-Projects/CENG501-Spring2022.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfSupervisedRankingLoss(nn.Module):
    """Want views of an image the less similar to it the stronger they are, but never unlike it.

    With S_n the cosine of view n = 1..N, of growing strength, and the image itself, a the margin, b
    the floor and s the scale,

        order = (1/s) log(1 + sum_{n<N} exp(s (S_{n+1} - S_n + a)))
        floor = (1/s) log(1 + sum_n exp(-s (S_n - b)))

    and the loss is the mean of order_weight order + floor_weight floor over the images. It needs no
    labels, so it is not called as the other losses are.

    Args:
        margin: alpha in the paper, how much less similar each next view should be.
        floor: beta in the paper, the least cosine of any view with its image.
        scale: s in the paper; the higher, the more the worst of the terms counts.
        order_weight: weight of the order; 0 leaves it out.
        floor_weight: lambda in the paper, weight of the floor; 0 leaves it out.

    Raises:
        ValueError: a margin outside [0, 2], a floor outside [-1, 1], a scale that is not above 0
            or a weight below 0.
    """

    def __init__(
        self,
        *,
        margin: float = 0.05,
        floor: float = 0.5,
        scale: float = 12.0,
        order_weight: float = 1.0,
        floor_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= margin <= 2:
            raise ValueError(f"{margin=} is no difference of two cosines; use 0 to 2, e.g. 0.05")
        if not -1 <= floor <= 1:
            raise ValueError(f"{floor=} is no cosine; use -1 to 1, e.g. 0.5")
        if not 0 < scale < math.inf:
            raise ValueError(f"{scale=} must be above 0 and finite, e.g. 12")
        for name, weight in {"order_weight": order_weight, "floor_weight": floor_weight}.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name}={weight} is no weight; use 0 or more, e.g. 1")
        self.margin = margin
        self.floor = floor
        self.scale = scale
        self.order_weight = order_weight
        self.floor_weight = floor_weight

    def forward(self, views: Tensor) -> Tensor:
        """Return the scalar loss of unit ``views`` (M, 1 + N, D) of M images.

        View 0 is the image itself, views 1..N follow by growing strength. A single view has no
        order, and that term is 0.

        Raises:
            ValueError: another shape, no image, or no view beside the image itself.
        """
        if views.ndim != 3 or not len(views) or views.shape[1] < 2:
            raise ValueError(
                f"views have shape {tuple(views.shape)}; give (M, 1 + N, D) embeddings of at least "
                "one image, itself first, and at least one view of it"
            )
        # Products and sums, unlike products of matrices, stay in float32 under autocast.
        views = views.to(torch.promote_types(views.dtype, torch.float32))
        similarity = (views[:, 1:] * views[:, :1]).sum(dim=2)  # (M, N)
        order = self._soft_maximum(similarity.diff(dim=1) + self.margin)  # (M,)
        floor = self._soft_maximum(self.floor - similarity)  # (M,)
        return (self.order_weight * order + self.floor_weight * floor).mean()

    def _soft_maximum(self, violations: Tensor) -> Tensor:
        """Return (M,) the smooth maximum of 0 and the ``violations`` (M, K) of an image."""
        with_zero = F.pad(self.scale * violations, (1, 0))  # (M, 1 + K)
        return with_zero.logsumexp(dim=1) / self.scale
