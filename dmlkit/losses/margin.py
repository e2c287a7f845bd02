"""Margin loss (Wu et al., Sampling Matters, ICCV 2017), https://arxiv.org/abs/1706.07567."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmlkit.distances import euclidean_distance
from dmlkit.losses.proxies import check_classes
from dmlkit.miners import Pairs, distance_weighted_triplets


class MarginLoss(nn.Module):
    """Want positives within a learned boundary and negatives beyond it, both by a margin.

    Each positive pair (a, p) draws a negative n of its anchor, at all distances about equally
    often: :func:`dmlkit.miners.distance_weighted_triplets`. Over these triplets, with d the
    Euclidean distance, b the boundary and m the margin,

        (sum [d_ap - b + m]_+ + [b - d_an + m]_+) / (number of non-zero terms) + nu mean b

    (section 4 of the paper, "Margin based loss"; the division is in the authors' code).

    The paper learns a boundary that is a sum of one for all, one per class and one per image; its
    code one per class of the anchor. Here it is one for all or, with ``num_classes``, per class.
    Numbers are those of the authors' code. That code, and pytorch-metric-learning where the
    boundary is per class, add nu times the sum of b over triplets before the division instead.

    Args:
        num_classes: number of training classes, C, for a boundary each; one for all if not given.
        margin: alpha in the paper.
        initial_boundary: where the boundary starts, beta in the paper.
        learn_boundary: whether the boundary is learned or stays there.
        boundary_weight: nu in the paper; above 0 it makes the boundary smaller.
        nearest: distance below which negatives are drawn no more often.
        farthest: distance from which on negatives are not drawn, unless an anchor has no other.
        generator: source of the draws, on the device of the embeddings; if not given, PyTorch's
            own, which :func:`dmlkit.seeding.set_seed` seeds.

    Raises:
        ValueError: unless 0 < ``nearest`` < ``farthest``.
    """

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        margin: float = 0.2,
        initial_boundary: float = 1.2,
        learn_boundary: bool = True,
        boundary_weight: float = 0.0,
        nearest: float = 0.5,
        farthest: float = 1.4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 < nearest < farthest:
            raise ValueError(
                f"nearest={nearest} and farthest={farthest} leave no distance to draw from; "
                "choose 0 < nearest < farthest"
            )
        self.margin = margin
        self.initial_boundary = initial_boundary
        self.learn_boundary = learn_boundary
        self.boundary_weight = boundary_weight
        self.nearest = nearest
        self.farthest = farthest
        self.generator = generator
        start = torch.full((num_classes or 1,), float(initial_boundary))
        self.boundary = nn.Parameter(start, requires_grad=learn_boundary)

    def forward(self, embeddings: Tensor, labels: Tensor, *, pairs: Pairs | None = None) -> Tensor:
        """Return the scalar loss of unit ``embeddings`` (B, D) with integer ``labels`` (B,).

        ``pairs`` says which (a, p) and which (a, n) may form triplets. Without a valid triplet
        the loss is a zero that still has a graph.

        Raises:
            ValueError: with a boundary per class, if a label on the CPU is outside [0, C).
        """
        is_per_class = len(self.boundary) > 1
        if is_per_class:
            check_classes(embeddings, labels, len(self.boundary))
        anchor, positive, negative = distance_weighted_triplets(
            embeddings,
            labels,
            pairs=pairs,
            nearest=self.nearest,
            farthest=self.farthest,
            generator=self.generator,
        )  # (T,) each
        distance = euclidean_distance(embeddings)  # (B, B)
        which = labels if is_per_class else torch.zeros_like(labels)  # (B,)
        of_anchor = self.boundary[which[anchor]]  # (T,)
        pull = F.relu(distance[anchor, positive] - of_anchor + self.margin)  # (T,)
        push = F.relu(of_anchor - distance[anchor, negative] + self.margin)  # (T,)
        num_active = torch.count_nonzero(pull) + torch.count_nonzero(push)
        mean_boundary = of_anchor.sum() / max(len(anchor), 1)
        return (pull + push).sum() / num_active.clamp(min=1) + self.boundary_weight * mean_boundary
