"""Similarity distribution loss of SLADE (Duan et al., CVPR 2021), https://arxiv.org/abs/2011.10269.

The authors published no code. Equations, with their numbers, are those of a third-party
implementation whose author had the paper.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.miners import all_pairs

GRADIENTS = ("damped", "full")


def response_similarity(responses: Tensor) -> Tensor:
    """Return the cosine (B, B) of each image's ``responses`` (B, K) with each other's (eq. 4)."""
    responses = responses.to(torch.promote_types(responses.dtype, torch.float32))
    return cosine_similarity(F.normalize(responses, dim=1))


class SimilarityDistributionLoss(nn.Module):
    """Keep apart the similarities of pairs within clusters and across, and each kind narrow.

    With m+ and v+ the mean and the variance of the cosines of responses of two images of one
    cluster, and m- and v- those of images of two (eq. 5),

        [m- - m+ + margin]_+ + variance_weight (v+ + v-)

    All four are running statistics (eq. 6): x <- momentum x + (1 - momentum) x of the batch, and in
    the first batch that has such pairs x of the batch. They are buffers, which training mode moves
    and evaluation mode does not, though the loss is the same: add the loss to the modules of a fit.

    A kind of which a batch has no pair stays as it was, without gradient. One that no batch ever
    had adds no variance, and there is nothing to keep apart: the first term is 0.

    How the gradient passes eq. 6 the paper is not known to say. ``damped`` differentiates the
    equation as it stands: after the first batch the gradient is 1 - momentum of the batch's own,
    beside that of other losses a hundredth. ``full`` has the same value and the batch's gradient.

    Args:
        margin: how much more similar pairs of one cluster should be; m in the paper. Its value
            there is not known; 0.5 is the third party's choice.
        variance_weight: lambda_v in the paper, not known either; 1 is the third party's choice.
        momentum: beta in the paper, 0.99 according to the third party.
        gradient: ``damped`` or ``full``; the third party has both and prefers ``damped``.

    Raises:
        ValueError: a margin outside [0, 2], a weight below 0, a momentum outside [0, 1), or an
            unknown gradient.
    """

    def __init__(
        self,
        *,
        margin: float = 0.5,
        variance_weight: float = 1.0,
        momentum: float = 0.99,
        gradient: str = "damped",
    ) -> None:
        super().__init__()
        if not 0 <= margin <= 2:
            raise ValueError(f"{margin=} is no difference of two cosines; use 0 to 2, e.g. 0.5")
        if not 0 <= variance_weight < math.inf:
            raise ValueError(f"{variance_weight=} is no weight; use 0 or more, e.g. 1")
        if not 0 <= momentum < 1:
            raise ValueError(f"{momentum=} must be from 0 to below 1, e.g. 0.99")
        if gradient not in GRADIENTS:
            raise ValueError(f"{gradient=} is unknown; choose damped or full")
        self.margin = margin
        self.variance_weight = variance_weight
        self.momentum = momentum
        self.gradient = gradient
        for kind in ("positive", "negative"):
            self.register_buffer(f"mean_{kind}", torch.tensor(math.nan))
            self.register_buffer(f"variance_{kind}", torch.tensor(math.nan))
            # Asking for NaN instead would start anew after a batch of NaN, and hide it.
            self.register_buffer(f"has_{kind}", torch.tensor(False))

    @property
    def thresholds(self) -> tuple[float, float]:
        """The running means m+ and m-, T1 and T2 of eq. 7; NaN for a kind that no batch had."""
        first, second = torch.stack([self.mean_positive, self.mean_negative]).tolist()
        return first, second

    def forward(self, responses: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of ``responses`` (B, K), of any length, with clusters (B,).

        Raises:
            ValueError: if there is not one integer of ``labels`` for each row of responses.
        """
        check_responses(responses, labels)
        similarity = response_similarity(responses)  # (B, B)
        # A pair stands in the masks both ways round, which changes neither mean nor variance.
        positives, negatives = all_pairs(labels)
        mean_positive, variance_positive, has_positive = self._update(
            "positive", similarity, positives
        )
        mean_negative, variance_negative, has_negative = self._update(
            "negative", similarity, negatives
        )
        overlap = F.relu(mean_negative - mean_positive + self.margin)
        overlap = torch.where(has_positive & has_negative, overlap, 0.0)
        return overlap + self.variance_weight * (variance_positive + variance_negative)

    def _update(self, kind: str, similarity: Tensor, pairs: Tensor) -> tuple[Tensor, ...]:
        """Return mean, variance and whether they are known (else they are 0) after this batch."""
        names = f"mean_{kind}", f"variance_{kind}", f"has_{kind}"
        *before, had = (getattr(self, name) for name in names)
        before = torch.stack(before)  # (2,)
        # Conditions stay on the device, as asking a GPU for them would stall every step.
        is_there = pairs.any()
        batch = _mean_and_variance(similarity, pairs)  # (2,)
        after = torch.where(had, self.momentum * before + (1 - self.momentum) * batch, batch)
        if self.gradient == "full":
            after = after.detach() + (batch - batch.detach())
        after = torch.where(is_there, after, before)
        has = had | is_there
        if self.training:
            kept = *after.detach().to(before.dtype), has
            for name, value in zip(names, kept, strict=True):
                setattr(self, name, value)
        mean, variance = torch.where(has, after, 0.0)
        return mean, variance, has


def _mean_and_variance(similarity: Tensor, pairs: Tensor) -> Tensor:
    """Return (2,) of the ``similarity`` of ``pairs``, both (B, B); 0 and 0 without a pair."""
    count = pairs.sum().clamp(min=1)
    mean = similarity.masked_fill(~pairs, 0).sum() / count
    variance = (similarity - mean).masked_fill(~pairs, 0).square().sum() / count
    return torch.stack([mean, variance])


def check_responses(responses: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless there are ``responses`` (B, K) and a label (B,) for each row."""
    if responses.ndim != 2 or labels.shape != responses.shape[:1]:
        raise ValueError(
            f"responses have shape {tuple(responses.shape)} and labels {tuple(labels.shape)}; "
            "give (B, K) and one cluster id per row (B,)"
        )
