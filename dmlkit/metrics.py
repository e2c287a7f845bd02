"""Retrieval metrics, exact and per query. Every value is a fraction in [0, 1], higher is better.

One convention holds throughout:

- a query never retrieves itself: it is masked by its index, not by its rank or its similarity;
- ties count against the model: among equal similarities, items of other classes rank first, so
  an embedding that maps everything to one point scores near zero and not one;
- R is the query's own number of relevant items, without itself;
- a query with no relevant item (a lone class) has no defined value: it is left out and counted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 4_000_000  # similarities held at once, about 130 MiB with their sort keys


@dataclass(frozen=True)
class Retrieval:
    """Per-query results of one evaluation.

    Args:
        queries: (Q,) int64, positions of the queries that have a relevant item.
        labels: (Q,) int64, their classes.
        per_query: metric name to (Q,) float32 values in [0, 1].
        num_lone: queries left out because the gallery holds no item of their class.
        neighbours: (Q, K) int64, gallery positions of the nearest items, nearest first.
    """

    queries: Tensor
    labels: Tensor
    per_query: dict[str, Tensor]
    num_lone: int
    neighbours: Tensor

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the queries."""
        return {name: values.double().mean().item() for name, values in self.per_query.items()}


@torch.no_grad()
def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    *,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    ks: tuple[int, ...] = (1, 2, 4, 8),
) -> Retrieval:
    """Compute Recall@K, R-precision and MAP@R of every query by cosine similarity.

    - ``recall_at_k``: 1 if any of the k nearest items is relevant (information retrieval calls its
      mean the hit rate). ``recall_at_1`` is also the precision at 1.
    - ``r_precision``: share of relevant items among the R nearest.
    - ``map_at_r``: (1/R) times the sum, over ranks i = 1..R that hold a relevant item, of the
      precision at i (Musgrave et al., 2020, section 3.2).

    Args:
        embeddings: (N, D) queries, unit rows; without a gallery each queries all the others.
        labels: (N,) integer class of each query, any values.
        gallery: (M, D) items to retrieve, disjoint from the queries; None for the queries.
        gallery_labels: (M,) integer class of each gallery item.
        ks: numbers of neighbours for Recall@K.

    Raises:
        ValueError: NaN in the embeddings, a k beyond the gallery, no query with a relevant item.
    """
    same_set = gallery is None
    if same_set:
        gallery, gallery_labels = embeddings, labels
    num_items = len(gallery) - same_set
    if not (embeddings.isfinite().all() and gallery.isfinite().all()):
        raise ValueError("the embeddings hold NaN or infinity; the training has diverged")
    if len(embeddings) != len(labels) or len(gallery) != len(gallery_labels):
        raise ValueError(
            f"{len(embeddings)} embeddings with {len(labels)} labels, and {len(gallery)} gallery "
            f"items with {len(gallery_labels)} labels, do not correspond"
        )
    if min(ks) < 1:
        raise ValueError(f"Recall@{min(ks)} is not defined; K starts at 1")
    if max(ks) > num_items:
        raise ValueError(
            f"Recall@{max(ks)} needs at least {max(ks)} items to retrieve, there are {num_items}"
        )
    relevant = count_relevant(labels, gallery_labels) - int(same_set)
    queries = relevant.nonzero().squeeze(1)
    if not len(queries):
        raise ValueError("no query has a relevant item: each class has a single image")

    depth = max(max(ks), int(relevant.max()))
    # Products in float64, then rounded: duplicates tie exactly, whatever order a BLAS sums in.
    gallery = gallery.double()
    is_match, neighbours = [], []
    for rows in queries.split(max(1, CHUNK_ELEMENTS // len(gallery))):
        top = nearest(embeddings, labels, gallery, gallery_labels, rows, same_set, depth)
        is_match.append(gallery_labels[top] == labels[rows][:, None])
        neighbours.append(top[:, : max(ks)])
    is_match = torch.cat(is_match)  # (Q, depth)
    per_query = _ranked_metrics(is_match, relevant[queries], ks)
    return Retrieval(
        queries=queries,
        labels=labels[queries],
        per_query=per_query,
        num_lone=len(labels) - len(queries),
        neighbours=torch.cat(neighbours),
    )


def count_relevant(labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """Return (N,) the number of gallery items that share each query's label."""
    values, counts = gallery_labels.unique(return_counts=True)
    place = torch.searchsorted(values, labels).clamp_max(len(values) - 1)
    return torch.where(values[place] == labels, counts[place], 0)


def nearest(
    embeddings: Tensor,
    labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    rows: Tensor,
    same_set: bool,
    depth: int,
) -> Tensor:
    """Return (B, depth) gallery positions for the queries ``rows`` (B,), ties against the model."""
    similarity = (embeddings[rows].to(gallery.dtype) @ gallery.T).float()  # (B, M)
    # An integer that orders as the float does, then one more bit that puts other classes first
    # among equals. Adding 0.0 turns -0.0 into 0.0, whose bits differ though they are equal.
    bits = (similarity + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    key = 2 * ordered + (gallery_labels != labels[rows][:, None])
    if same_set:
        key[torch.arange(len(rows)), rows] = torch.iinfo(torch.int64).min
    return key.topk(min(depth, len(gallery) - same_set), dim=1).indices


def _ranked_metrics(is_match: Tensor, relevant: Tensor, ks: tuple[int, ...]) -> dict[str, Tensor]:
    """Return the per-query metrics from (Q, depth) matches in rank order and R (Q,)."""
    rank = torch.arange(1, is_match.shape[1] + 1, device=is_match.device)
    within_r = is_match & (rank <= relevant[:, None])
    precision = is_match.cumsum(1) / rank  # (Q, depth), precision at each rank
    first = {f"recall_at_{k}": is_match[:, :k].any(dim=1).float() for k in ks}
    return first | {
        "r_precision": within_r.sum(1) / relevant,
        "map_at_r": (precision * within_r).sum(1) / relevant,
    }
