"""Swapped prediction of SwAV (Caron et al., NeurIPS 2020), https://arxiv.org/abs/2006.09882."""

import math

import torch
from torch import Tensor, nn


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Return (B, K) soft assignments of images to prototypes, of which all get about as many.

    They solve equation 3 of the paper: exp(scores / epsilon), with columns and rows scaled in turn
    to sums of B / K and 1. As in the official code rows come last, so theirs are exact. That takes
    exp(scores / epsilon) itself; here logarithms are scaled, so that no epsilon overflows.

    Args:
        scores: (B, K), cosine of each image with each prototype.
        epsilon: weight of the assignments' entropy; the lower, the harder they are. Official: 0.05,
            or 0.03 against collapse.
        iterations: times that columns and rows are scaled. Official: 3.

    Returns:
        In float32, or float64 where ``scores`` are, without gradient.

    Raises:
        ValueError: another shape, an epsilon that is not above 0, or no iterations.
    """
    _check_sinkhorn(epsilon, iterations)
    if scores.ndim != 2 or not scores.numel():
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}; give (B, K) of images and prototypes"
        )
    logarithms = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    for _ in range(iterations):
        logarithms = logarithms.log_softmax(dim=0).log_softmax(dim=1)
    return logarithms.exp()


class SwAVLoss(nn.Module):
    """Predict the prototypes that one crop of an image is assigned to from its other crops.

    For each of the first crops a the code q_a comes from ``sinkhorn``, without gradient. Every
    other crop v predicts it with p_v, the soft-max of its scores / temperature, and the loss is

        mean over a of mean over v != a of mean over images of -sum_k q_a[k] log p_v[k]

    which is the paper's swapped prediction for many crops, averaged as in the official code. A
    network that maps every image to one point is stuck at ln K; ``diagnose`` tells. It needs no
    labels, so it is not called as the other losses are. The defaults are the official code's.

    Args:
        num_assigned: number of crops with a code, the first ones; those of high resolution.
        temperature: tau in the paper, of the soft-max.
        epsilon: see ``sinkhorn``.
        iterations: see ``sinkhorn``.

    Raises:
        ValueError: a number of crops or iterations below 1, or a temperature or epsilon that is
            not above 0.
    """

    def __init__(
        self,
        *,
        num_assigned: int = 2,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
    ) -> None:
        super().__init__()
        if num_assigned < 1:
            raise ValueError(f"{num_assigned=} leaves nothing to predict; use at least 1, e.g. 2")
        if not 0 < temperature < math.inf:
            raise ValueError(f"{temperature=} must be above 0 and finite, e.g. 0.1")
        _check_sinkhorn(epsilon, iterations)
        self.num_assigned = num_assigned
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations

    def forward(self, scores: Tensor, queued_scores: Tensor | None = None) -> Tensor:
        """Return the scalar loss of ``scores`` (V, B, K) of V crops of B images.

        Args:
            scores: cosine of each crop with each of K prototypes, in [-1, 1].
            queued_scores: (num_assigned, Q, K) of earlier images, which are assigned together with
                these and predicted by none: small batches cannot fill many prototypes evenly.

        Raises:
            ValueError: another shape, or no other crop to predict a code from.
        """
        if scores.ndim != 3 or not scores.numel() or len(scores) < max(2, self.num_assigned):
            raise ValueError(
                f"scores have shape {tuple(scores.shape)}; give (V, B, K) of at least "
                f"{max(2, self.num_assigned)} crops of each image, those with codes first"
            )
        crops, images, prototypes = scores.shape
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        to_assign = scores[: self.num_assigned].detach()
        if queued_scores is not None:
            if queued_scores.shape != (self.num_assigned, queued_scores.shape[1], prototypes):
                raise ValueError(
                    f"queued_scores have shape {tuple(queued_scores.shape)}; give "
                    f"({self.num_assigned}, Q, {prototypes})"
                )
            to_assign = torch.cat([queued_scores.to(scores), to_assign], dim=1)

        log_probability = (scores / self.temperature).log_softmax(dim=2)
        losses = []
        for crop, candidates in enumerate(to_assign):
            code = sinkhorn(candidates, epsilon=self.epsilon, iterations=self.iterations)
            cross_entropy = -(code[-images:] * log_probability).sum(dim=2).mean(dim=1)  # (V,)
            others = torch.cat([cross_entropy[:crop], cross_entropy[crop + 1 :]])
            losses.append(others.mean())
        return torch.stack(losses).mean()


class EmbeddingQueue:
    """The latest embeddings of each crop that gets a code, which are assigned with new ones.

    The official code takes 3,840 for batches of 256, from epoch 15 on; none for large batches.

    Args:
        size: embeddings kept of each crop, Q.
        embedding_dim: size of an embedding, D.
        num_assigned: number of crops with a code, A.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, size: int, embedding_dim: int, *, num_assigned: int = 2) -> None:
        if size < 1:
            raise ValueError(f"a queue of {size} embeddings holds nothing; use at least 1, or none")
        self.size = size
        self.embeddings = torch.empty(num_assigned, 0, embedding_dim)  # oldest first

    @property
    def is_full(self) -> bool:
        """Whether it holds Q embeddings of each crop; the official code uses no queue before."""
        return self.embeddings.shape[1] == self.size

    def push(self, embeddings: Tensor) -> None:
        """Add ``embeddings`` (A, B, D) and drop the oldest beyond Q.

        Raises:
            ValueError: another shape.
        """
        crops, _, dim = self.embeddings.shape
        if embeddings.ndim != 3 or embeddings.shape[::2] != (crops, dim):
            raise ValueError(
                f"embeddings have shape {tuple(embeddings.shape)}; give ({crops}, B, {dim})"
            )
        joined = torch.cat([self.embeddings.to(embeddings), embeddings.detach()], dim=1)
        self.embeddings = joined[:, -self.size :]


def count_usage(scores: Tensor) -> Tensor:
    """Return (K,) int64, how many rows of ``scores`` (..., K) are highest at each prototype.

    Of scores, not of ``sinkhorn``'s assignments, which spread over prototypes by construction.
    """
    nearest = scores.argmax(dim=-1).flatten()
    # bincount would make a GPU wait.
    usage = torch.zeros(scores.shape[-1], dtype=torch.int64, device=scores.device)
    return usage.scatter_add_(0, nearest, torch.ones_like(nearest))


def diagnose(loss: float, usage: Tensor) -> dict[str, float]:
    """Return what tells whether SwAV has collapsed.

    Args:
        loss: value of ``SwAVLoss``.
        usage: (K,) numbers of crops by nearest prototype, from ``count_usage``. Fewer crops than
            prototypes cannot use them all.

    Returns:
        ``relative_loss``, the loss / ln K, which stays at 1 where training fails (the official
        README's known failure); ``prototypes_used``, the share of prototypes nearest to some crop,
        in (0, 1]; ``usage_entropy``, that of usage / ln K, in [0, 1], 1 where it is even.

    Raises:
        ValueError: fewer than two prototypes, or nothing was counted.
    """
    if usage.ndim != 1 or len(usage) < 2 or not usage.any():
        raise ValueError(
            f"usage of shape {tuple(usage.shape)} with {int(usage.sum())} crops has no entropy; "
            "count at least one crop over at least two prototypes"
        )
    maximum = math.log(len(usage))
    shares = usage.double() / usage.sum()
    return {
        "relative_loss": float(loss) / maximum,
        "prototypes_used": (usage > 0).double().mean().item(),
        "usage_entropy": torch.special.entr(shares).sum().item() / maximum,
    }


def _check_sinkhorn(epsilon: float, iterations: int) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(f"{epsilon=} must be above 0 and finite, e.g. 0.05")
    if iterations < 1:
        raise ValueError(f"{iterations=} assign nothing evenly; use at least 1, e.g. 3")
