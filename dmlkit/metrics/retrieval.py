"""Retrieval metrics, exact and per query. Every value is a fraction in [0, 1], higher is better.

One convention holds throughout:

- a query never retrieves itself: it is masked by its index, not by its rank or its similarity;
- ties count against the model: among equal similarities, items of other classes rank first, so
  an embedding that maps everything to one point scores near zero and not one (for codes, where
  many items tie, see :mod:`dmlkit.metrics.binary_codes`);
- R is the query's own number of relevant items, without itself;
- a query with no relevant item (a lone class) has no defined value: it is left out and counted.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dmlkit.metrics.inputs import (
    check_finite,
    check_gallery,
    check_positive,
    check_rows,
    checked_ks,
    checked_labels,
    no_relevant_item,
)
from dmlkit.metrics.ranking import Ranker, ranks_of_matches

ROWS = 1024  # queries ranked at once: more are no faster
BYTES_PER_LISTED = 160  # working memory for each item that a query lists, beside its similarities
RECALL_LEVELS = 101  # of the precision-recall curve: recall 0, 0.01 ... 1


@dataclass(frozen=True)
class Retrieval:
    """Per-query results of one evaluation, on the CPU.

    Args:
        queries: (Q,) int64, positions of the queries that have a relevant item.
        labels: (Q,) int64, their classes.
        per_query: metric name to (Q,) float32 values in [0, 1].
        num_lone: queries left out because the gallery holds no item of their class.
        neighbours: (Q, K) int64, gallery positions of the nearest items, nearest first; among
            equals those of other classes first.
        precision_at_recall: (101,) float32, mean over queries of the interpolated precision at
            recall 0, 0.01 ... 1, the precision-recall curve; None unless all was ranked.
    """

    queries: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    per_query: dict[str, Tensor] = field(repr=False)
    num_lone: int
    neighbours: Tensor = field(repr=False)
    precision_at_recall: Tensor | None = field(default=None, repr=False)

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the queries, fractions in [0, 1]."""
        return {name: values.double().mean().item() for name, values in self.per_query.items()}


@torch.no_grad()
def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    *,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    ks: tuple[int, ...] = (1, 2, 4, 8),
    distance: str = "cosine",
    rank_all: bool = False,
    num_neighbours: int = 10,
    memory_mib: float = 128,
) -> Retrieval:
    """Compute Recall@K, R-precision and MAP@R of every query.

    - ``recall_at_k``: 1 if any of the k nearest items is relevant (information retrieval calls its
      mean the hit rate). ``recall_at_1`` is also the precision at 1.
    - ``r_precision``: share of relevant items among the R nearest.
    - ``map_at_r``: (1/R) times the sum, over ranks i = 1..R that hold a relevant item, of the
      precision at i (Musgrave et al., 2020, section 3.2).
    - ``average_precision``, with ``rank_all``: the same sum over all ranks, divided by R; its mean
      is called mAP.

    Args:
        embeddings: (N, D) queries, of any real type, taken as float32; without a gallery each
            queries all the others.
        labels: (N,) integer class of each query, any values.
        gallery: (M, D) items to retrieve, disjoint from the queries; None for the queries.
        gallery_labels: (M,) integer class of each gallery item.
        ks: numbers of neighbours for Recall@K.
        distance: ``cosine``, or ``euclidean``, which ranks rows of unit length alike.
        rank_all: rank the whole gallery, for average precision and the precision-recall curve;
            about four times slower, and fifteen times under ``euclidean``.
        num_neighbours: nearest items kept per query, at most the gallery.
        memory_mib: about the memory for the similarities held at once and what is derived from
            them, but never less than one query takes; besides, the results, and copies of
            embeddings whose rows are not of unit length.

    Raises:
        ValueError: what is no tensor, NaN, zero vectors under cosine, empty sets, shapes that do
            not correspond, labels that are no integers, a k below 1 or beyond the gallery, no
            query with a relevant item.
    """
    check_gallery(gallery, gallery_labels)
    embeddings, labels = _prepared("embeddings", embeddings, labels)
    searched = None if gallery is None else _prepared("gallery", gallery, gallery_labels)
    if distance not in ("cosine", "euclidean"):
        raise ValueError(f"there is no distance {distance!r}; choose cosine or euclidean")
    items = searched[0] if searched else embeddings
    if items.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"embeddings {tuple(embeddings.shape)} and gallery {tuple(items.shape)} do not "
            "correspond; they should be (N, D) and (M, D)"
        )
    ks = checked_ks(ks, len(items) - (searched is None))
    check_positive(memory_mib=memory_mib)
    relevant = count_relevant(labels, searched[1] if searched else labels) - int(gallery is None)
    queries = relevant.nonzero().squeeze(1)
    if not len(queries):
        raise no_relevant_item(searched is None)
    ranker = Ranker(embeddings, labels, searched, distance)
    num_neighbours = max(0, min(num_neighbours, ranker.num_items))
    rank = _rank_all if rank_all else _rank_nearest
    ranked = rank(ranker, queries, relevant[queries], ks, num_neighbours, int(memory_mib * 2**20))
    return Retrieval(
        queries=queries.cpu(),
        labels=labels[queries].cpu(),
        per_query={name: values.cpu() for name, values in ranked.per_query.items()},
        num_lone=len(labels) - len(queries),
        neighbours=ranked.neighbours.cpu(),
        precision_at_recall=ranked.precision_at_recall.mean(dim=0).cpu() if rank_all else None,
    )


def count_relevant(labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """Return (N,) the number of gallery items that share each query's label."""
    values, counts = gallery_labels.unique(return_counts=True)
    place = torch.searchsorted(values, labels).clamp_max(len(values) - 1)
    return torch.where(values[place] == labels, counts[place], 0)


@dataclass(frozen=True)
class _Ranked:
    """Metrics (Q,), neighbours (Q, K) and, if all was ranked, interpolated precision (Q, 101)."""

    per_query: dict[str, Tensor]
    neighbours: Tensor
    precision_at_recall: Tensor | None = None


def _rank_nearest(
    ranker: Ranker,
    queries: Tensor,
    relevant: Tensor,
    ks: tuple[int, ...],
    num_neighbours: int,
    memory: int,
) -> _Ranked:
    """Rank only as many items as the metrics need, in float32; exactly where that is not enough."""
    listed = int(relevant.max().clamp_min(num_neighbours))
    size = memory // (4 * ranker.num_gallery + BYTES_PER_LISTED * listed)
    size = min(max(1, size), ROWS, len(queries))
    # Whatever outlives a chunk has its place before the first one: small results left among large
    # freed pieces keep the memory from being used again, up to several times the bound.
    device = queries.device
    buffer = torch.empty(size, ranker.num_gallery, dtype=torch.float32, device=device)
    names = [*(f"recall_at_{k}" for k in ks), "r_precision", "map_at_r"]
    per_query = {name: torch.empty(len(queries), device=device) for name in names}
    neighbours = torch.empty(len(queries), num_neighbours, dtype=torch.int64, device=device)
    is_settled = torch.empty(len(queries), dtype=torch.bool, device=device)
    for start in range(0, len(queries), size):
        span = slice(start, start + size)
        rows, wanted = queries[span], relevant[span]
        scores = ranker.scores(rows, out=buffer[: len(rows)])
        found = ranker.best(scores, rows, wanted.clamp_min(num_neighbours))
        rank = torch.arange(1, found.is_match.shape[1] + 1, device=device)
        is_hit = found.is_match & (rank <= found.certain[:, None])
        first = torch.where(is_hit.any(dim=1), is_hit.int().argmax(dim=1) + 1, 0)
        is_sure = found.certain >= 0
        # A first match behind those listed is looked for by itself.
        late = (is_sure & (first == 0) & (found.certain < max(ks))).nonzero().squeeze(1)
        for some in late.split(max(1, size // 32)) if len(late) else ():
            first[some], is_sure[some] = ranker.first_match(scores[some], rows[some], ks)
        first = torch.where(first == 0, ranker.num_items + 1, first)
        metrics = _metrics(is_hit, is_hit.cumsum(dim=1), rank, first, wanted, ks)
        for name, values in per_query.items():
            values[span] = metrics[name]
        neighbours[span] = found.items[:, :num_neighbours]
        is_settled[span] = is_sure
    unsettled = (~is_settled).nonzero().squeeze(1)
    if len(unsettled):
        del buffer, scores, found  # or these would be held beside those of the exact ranking
        exact = _rank_all(
            ranker, queries[unsettled], relevant[unsettled], ks, num_neighbours, memory
        )
        neighbours[unsettled] = exact.neighbours
        for name, values in per_query.items():
            values[unsettled] = exact.per_query[name]
    return _Ranked(per_query, neighbours)


def _rank_all(
    ranker: Ranker,
    queries: Tensor,
    relevant: Tensor,
    ks: tuple[int, ...],
    num_neighbours: int,
    memory: int,
) -> _Ranked:
    """Rank the whole gallery, in float64."""
    size = max(1, memory // (64 * (ranker.num_gallery + int(relevant.max()))))
    device = queries.device
    # As in ``_rank_nearest``, whatever outlives a chunk has its place before the first one.
    names = [*(f"recall_at_{k}" for k in ks), "r_precision", "map_at_r", "average_precision"]
    per_query = {name: torch.empty(len(queries), device=device) for name in names}
    neighbours = torch.empty(len(queries), num_neighbours, dtype=torch.int64, device=device)
    curves = torch.empty(len(queries), RECALL_LEVELS, device=device)
    for start in range(0, len(queries), size):
        span = slice(start, start + size)
        wanted = relevant[span]
        key, is_match = ranker.keys(queries[span])
        neighbours[span] = key.topk(num_neighbours, dim=1).indices
        ranks = ranks_of_matches(key, is_match)  # (B, R)
        number = torch.arange(1, ranks.shape[1] + 1, device=device)
        is_hit, rank = ranks > 0, ranks.clamp_min(1)
        metrics = _metrics(is_hit, number, rank, ranks[:, 0], wanted, ks)
        for name, values in per_query.items():
            values[span] = metrics[name]
        # The interpolated precision at a recall is the best precision there or at a higher one.
        best = (is_hit * number / rank).flip(1).cummax(dim=1).values.flip(1)
        level = torch.arange(RECALL_LEVELS, device=device)
        place = (level * wanted[:, None] + RECALL_LEVELS - 2) // (RECALL_LEVELS - 1)
        curves[span] = best.gather(1, place.clamp_min(1) - 1)
    return _Ranked(per_query, neighbours, curves)


def _metrics(
    is_hit: Tensor, number: Tensor, rank: Tensor, first: Tensor, relevant: Tensor, ks: tuple
) -> dict[str, Tensor]:
    """Return the metrics of B queries, each (B,) float32.

    Args:
        is_hit: (B, L) whether there is a relevant item here.
        number: (B, L) or (L,) how many relevant items there are up to and with this one.
        rank: (B, L) or (L,) its rank, from 1.
        first: (B,) rank of the first relevant item.
        relevant: (B,) number of relevant items, R.
        ks: numbers of neighbours for Recall@K.
    """
    within = is_hit & (rank <= relevant[:, None])
    precision = number / rank
    return {f"recall_at_{k}": (first <= k).float() for k in ks} | {
        "r_precision": within.sum(dim=1) / relevant,
        "map_at_r": (precision * within).sum(dim=1) / relevant,
        "average_precision": (precision * is_hit).sum(dim=1) / relevant,
    }


def _prepared(name: str, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return float32 rows (N, D) and int64 labels (N,) on one device; ValueError if not so."""
    check_rows(name, rows)
    if rows.is_complex():
        raise ValueError(f"{name} are {rows.dtype}; give real numbers")
    labels = checked_labels("labels" if name == "embeddings" else f"{name}_labels", labels, rows)
    rows = rows.float()
    check_finite(name, rows)
    return rows, labels
