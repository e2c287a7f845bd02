"""Two losses that SLADE compares its own with (Duan et al., CVPR 2021): OUR INTERPRETATION.

The paper, https://arxiv.org/abs/2011.10269, reports "Local-CE" and "Global-CE" in place of its
similarity distribution loss. We found no definition of either, only the names and the results. Both
are read here as the cross-entropy of a decision about a pair, same cluster or not, made from its
cosine: within the batch, or with what was seen of all clusters so far. All numbers are ours too.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import cosine_similarity
from dmlkit.losses.similarity_distribution import check_responses, response_similarity
from dmlkit.miners import all_pairs


class LocalCrossEntropyLoss(nn.Module):
    """Tell from the cosine whether two images of the batch are of one cluster; our interpretation.

    With s the cosine of the responses, z = (s - offset) / temperature and sigmoid(z) the
    probability that the clusters are the same, half the mean of -log sigmoid(z) over pairs of one
    cluster plus half the mean of -log sigmoid(-z) over pairs of two: that the latter are many does
    not decide. A kind of which the batch has no pair counts as 0.

    At the defaults cosines of 0 and 1 have probabilities 0.007 and 0.993.

    Args:
        temperature: change of the cosine that multiplies the odds by e.
        offset: cosine at which both are as likely.

    Raises:
        ValueError: a temperature that is not above 0, or an offset outside [-1, 1].
    """

    def __init__(self, *, temperature: float = 0.1, offset: float = 0.5) -> None:
        super().__init__()
        _check_settings(temperature, offset)
        self.temperature = temperature
        self.offset = offset

    def forward(self, responses: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of ``responses`` (B, K), of any length, with clusters (B,).

        Raises:
            ValueError: if there is not one integer of ``labels`` for each row of responses.
        """
        check_responses(responses, labels)
        logits = (response_similarity(responses) - self.offset) / self.temperature  # (B, B)
        # A pair stands in the masks both ways round, which changes no mean.
        return _balanced_cross_entropy(logits, *all_pairs(labels))


class GlobalCrossEntropyLoss(nn.Module):
    """Tell from the cosine with a cluster's centroid if an image is of it; our interpretation.

    As LocalCrossEntropyLoss, but each image of the batch makes a pair with each cluster that any
    batch before this one had. The centroids are buffers of unit length and have no gradient. After
    the comparison, so that no image meets itself, training mode moves the centroids of the batch's
    clusters: c <- momentum c + (1 - momentum) times the mean of its normalised responses, made
    unit; in the first batch that has the cluster, that mean. The loss of the first batch is 0. Add
    the loss to the modules of a fit.

    A centroid moves only when its cluster is in the batch: after S such batches, momentum^(S - 1)
    of it is still the first one, before its length is restored.

    Args:
        num_clusters: number of clusters, C.
        num_responses: number of basis vectors, K.
        momentum: as in the similarity distribution loss.
        temperature: change of the cosine that multiplies the odds by e.
        offset: cosine at which both are as likely.

    Raises:
        ValueError: a momentum outside [0, 1), a temperature that is not above 0, or an offset
            outside [-1, 1].
    """

    def __init__(
        self,
        num_clusters: int,
        num_responses: int,
        *,
        momentum: float = 0.99,
        temperature: float = 0.1,
        offset: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"{momentum=} must be from 0 to below 1, e.g. 0.99")
        _check_settings(temperature, offset)
        self.momentum = momentum
        self.temperature = temperature
        self.offset = offset
        self.register_buffer("centroids", torch.zeros(num_clusters, num_responses))
        self.register_buffer("is_seen", torch.zeros(num_clusters, dtype=torch.bool))

    def forward(self, responses: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss of ``responses`` (B, K), of any length, with clusters (B,).

        Raises:
            ValueError: if there is not one integer of ``labels`` for each row of responses, if
                rows have another length than K, or if a label on the CPU is outside [0, C).
        """
        check_responses(responses, labels)
        num_clusters, num_responses = self.centroids.shape
        if responses.shape[1] != num_responses:
            raise ValueError(
                f"rows have {responses.shape[1]} responses and the loss {num_responses=}; give one "
                "per basis vector"
            )
        # Only there: reading the extremes on a GPU would stall every step.
        if labels.is_cpu and len(labels) and (labels.min() < 0 or labels.max() >= num_clusters):
            raise ValueError(
                f"labels span {labels.min()}..{labels.max()} but the loss has {num_clusters=}; "
                "number the clusters from 0 or raise num_clusters"
            )
        responses = responses.to(torch.promote_types(responses.dtype, torch.float32))
        unit = F.normalize(responses, dim=1)  # (B, K)
        is_own = labels[:, None] == torch.arange(num_clusters, device=labels.device)  # (B, C)
        similarity = cosine_similarity(unit, self.centroids.to(unit.dtype))  # (B, C)
        logits = (similarity - self.offset) / self.temperature  # (B, C)
        loss = _balanced_cross_entropy(logits, is_own & self.is_seen, ~is_own & self.is_seen)
        if self.training:
            self._move_centroids(unit.detach(), is_own)
        return loss

    def _move_centroids(self, unit: Tensor, is_own: Tensor) -> None:
        """Draw centroids towards ``unit`` responses (B, K) of their clusters, ``is_own`` (B, C)."""
        is_there = is_own.any(dim=0)  # (C,)
        count = is_own.sum(dim=0).clamp(min=1)[:, None]  # (C, 1)
        # A product, unlike index_add_, gives the same sums in every run on a GPU.
        with torch.autocast(unit.device.type, enabled=False):
            mean = is_own.T.to(unit.dtype) @ unit / count  # (C, K)
        # From a centroid of 0, which is one not seen yet, this is the direction of the mean.
        moved = F.normalize(self.momentum * self.centroids + (1 - self.momentum) * mean, dim=1)
        # New tensors: what the gradient of this batch will ask for must stay as it is.
        self.centroids = torch.where(is_there[:, None], moved, self.centroids).to(
            self.centroids.dtype
        )
        self.is_seen = self.is_seen | is_there


def _check_settings(temperature: float, offset: float) -> None:
    """Raise ValueError unless a cosine makes a logit of these."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"{temperature=} must be above 0 and finite, e.g. 0.1")
    if not -1 <= offset <= 1:
        raise ValueError(f"{offset=} is no cosine; use -1 to 1, e.g. 0.5")


def _balanced_cross_entropy(logits: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Return half the mean cost of each kind of pair, given ``logits`` and masks of one shape."""
    pull = F.softplus(-logits).masked_fill(~positives, 0).sum() / positives.sum().clamp(min=1)
    push = F.softplus(logits).masked_fill(~negatives, 0).sum() / negatives.sum().clamp(min=1)
    return (pull + push) / 2
