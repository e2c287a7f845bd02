"""Retrieval with binary codes by Hamming distance, exact and per query, whatever the ties.

b bits allow only b + 1 distances, so many items tie and a query has no single ranking. Each metric
has three values:

- expected: the mean over all orders of the tied items, in closed form (McSherry and Najork,
  "Computing information retrieval performance measures efficiently in the presence of tied
  scores", ECIR 2008, https://doi.org/10.1007/978-3-540-78646-7_38). It is the primary one: codes
  that are all equal score chance;
- worst: items of other classes first among ties, as in :mod:`dmlkit.metrics.retrieval`;
- best: items of the query's class first among ties.

Every value is a fraction in [0, 1], higher is better. A query never retrieves itself, R is its
number of relevant items without itself, and a query without any is left out and counted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmlkit.metrics.retrieval import count_relevant

# Working memory of one query, for each gallery item, each possible distance and each of k ranks.
BYTES_PER_ITEM = 16  # the product, twice as float32, its cell as int32, the match, and a margin
BYTES_PER_DISTANCE = 360  # some twenty float64 values of two groups
BYTES_PER_RANK = 40  # five float64 values


@dataclass(frozen=True)
class CodeRetrieval:
    """Per-query results of one evaluation of binary codes, on the CPU.

    Args:
        queries: (Q,) int64, positions of the queries that have a relevant item.
        labels: (Q,) int64, their classes.
        num_lone: queries left out because the gallery holds no item of their class.
        per_query: metric name to (Q,) float32 values, expected over random orders of ties.
        worst: the same names, ties against the model.
        best: the same names, ties for the model.
    """

    queries: Tensor
    labels: Tensor
    num_lone: int
    per_query: dict[str, Tensor]
    worst: dict[str, Tensor]
    best: dict[str, Tensor]

    def means(self) -> dict[str, float]:
        """Return the mean expected value of each metric over the queries."""
        return _means(self.per_query)

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Return each metric's mean over the queries with ties against and for the model."""
        worst, best = _means(self.worst), _means(self.best)
        return {name: (worst[name], best[name]) for name in worst}


def binarise(embeddings: Tensor) -> Tensor:
    """Return (N, D) bool codes, a bit per component: is it above zero?

    The code of Zhai and Wu, "Classification is a strong baseline for deep metric learning", BMVC
    2019, https://arxiv.org/abs/1811.12649. It suits embeddings centred at zero.

    Raises:
        ValueError: NaN or infinity in the embeddings.
    """
    if not embeddings.isfinite().all():
        raise ValueError("the embeddings hold NaN or infinity; the training has diverged")
    return embeddings > 0


@torch.no_grad()
def code_metrics(
    codes: Tensor,
    labels: Tensor,
    *,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    ks: tuple[int, ...] = (1, 2, 4, 8),
    memory_mib: int = 128,
) -> CodeRetrieval:
    """Compute the metrics of :func:`metrics_of_ties` for every query by Hamming distance.

    Args:
        codes: (N, bits) bool queries; without a gallery each queries all the others.
        labels: (N,) integer class of each query, any values.
        gallery: (M, bits) bool items to retrieve, disjoint from the queries; None for the queries.
        gallery_labels: (M,) integer class of each gallery item; given with a gallery only.
        ks: numbers of neighbours for Recall@K.
        memory_mib: about the working memory, beside four bytes per bit of the gallery. Sets how
            many queries are ranked at once and nothing else.

    Raises:
        ValueError: codes that are not bool, sizes that do not correspond, an empty set, a k below
            1 or beyond the gallery, no query with a relevant item.
    """
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels belong together; give both or neither")
    is_one_set = gallery is None
    if is_one_set:
        gallery, gallery_labels = codes, labels
    _check_codes("queries", codes, labels)
    _check_codes("gallery", gallery, gallery_labels)
    if codes.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries of {codes.shape[1]} bits cannot search a gallery of {gallery.shape[1]} bits; "
            "encode both by the same model"
        )
    _check_ks(ks, len(gallery) - is_one_set)
    labels, gallery_labels = labels.to(codes.device), gallery_labels.to(codes.device)
    queries = (count_relevant(labels, gallery_labels) > int(is_one_set)).nonzero().squeeze(1)
    if not len(queries):
        raise ValueError("no query has a relevant item; give some class a second image")

    signs = _signs(gallery)
    bytes_per_query = (
        BYTES_PER_ITEM * len(gallery)
        + BYTES_PER_DISTANCE * (codes.shape[1] + 1)
        + BYTES_PER_RANK * max(ks, default=0)
    )
    expected, worst, best = [], [], []
    for rows in queries.split(max(1, memory_mib * 2**20 // bytes_per_query)):
        others, hits = _count_by_distance(codes[rows], labels[rows], signs, gallery_labels)
        if is_one_set:
            hits[:, 0] -= 1  # each query itself: at distance 0, and of its own class
        occurs = (others + hits).any(dim=0)  # few of many bits' distances do: half the time
        others, hits = others[:, occurs], hits[:, occurs]
        none = torch.zeros_like(hits)
        expected.append(metrics_of_ties(others + hits, hits, ks))
        # Ties resolved are groups of one kind each, among which no order matters.
        worst.append(metrics_of_ties(_in_turn(others, hits), _in_turn(none, hits), ks))
        best.append(metrics_of_ties(_in_turn(hits, others), _in_turn(hits, none), ks))
    return CodeRetrieval(
        queries=queries.cpu(),
        labels=labels[queries].cpu(),
        num_lone=len(labels) - len(queries),
        per_query=_join(expected),
        worst=_join(worst),
        best=_join(best),
    )


def _count_by_distance(
    codes: Tensor, labels: Tensor, gallery_signs: Tensor, gallery_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (Q, bits + 1) gallery items of other classes and of the query's, by distance."""
    num_queries, bits = codes.shape
    # Sums of fewer than 2^24 signs: exact in float32, TensorFloat-32 on a GPU included.
    product = _signs(codes) @ gallery_signs.T  # (Q, M), bits minus twice the distance
    # One histogram for all: a query's cells are each distance for other classes and for its own.
    cell = (bits - product).int()  # in half the time of int64
    cell += gallery_labels == labels[:, None]
    num_cells = 2 * (bits + 1)
    cell += num_cells * torch.arange(num_queries, dtype=torch.int32, device=codes.device)[:, None]
    counts = torch.bincount(cell.flatten(), minlength=num_queries * num_cells)
    others, hits = counts.view(num_queries, bits + 1, 2).unbind(dim=2)
    return others, hits


def metrics_of_ties(sizes: Tensor, hits: Tensor, ks: tuple[int, ...]) -> dict[str, Tensor]:
    """Return the expected metrics of rankings known up to the order within groups of ties.

    All orders within a group are equally likely. With R = a query's number of relevant items:

    - ``recall_at_k``: chance that any of the first k items is relevant (the hit rate);
    - ``r_precision``: number of relevant items among the first R, over R;
    - ``map_at_r``: sum of the precision at each relevant item among the first R, over R;
    - ``average_precision``: sum of the precision at each relevant item, over R.

    Args:
        sizes: (Q, G) items in each group, nearest group first; 0 where a group is empty.
        hits: (Q, G) relevant items in each group, at least one in every row.
        ks: numbers of neighbours for Recall@K, at most the items of a row.

    Returns:
        Metric name to (Q,) float64 values.
    """
    sizes, hits = sizes.double(), hits.double()
    before, hits_before = sizes.cumsum(1) - sizes, hits.cumsum(1) - hits  # in the groups before
    relevant = hits.sum(1)
    within_r = (relevant[:, None] - before).clamp_min(0).minimum(sizes)  # ranks of a group
    chance = hits / sizes.clamp_min(1)  # that a given rank of the group holds a relevant item
    # Given that one does, the chance that another given rank of the group does as well.
    other_chance = (hits - 1) / (sizes - 1).clamp_min(1)
    ranks = torch.arange(1, int(sizes.sum(1).max()) + 1, device=sizes.device)
    harmonic = torch.cat([sizes.new_zeros(1), 1 / ranks.double()]).cumsum(0)  # H_0, H_1 ...

    def precision_sum(depth: Tensor) -> Tensor:
        """Sum, over the first ``depth`` (Q, G) ranks of each group, of precision at a hit.

        The t-th rank adds chance * (hits_before + 1 + (t - 1) * other_chance) / (before + t).
        Summed over t, with H the harmonic numbers, (t - 1) / (before + t) is
        depth - (before + 1) * (H_(before + depth) - H_before).
        """
        inverse_ranks = harmonic[(before + depth).long()] - harmonic[before.long()]
        constant = hits_before + 1 - other_chance * (before + 1)
        return (chance * (other_chance * depth + constant * inverse_ranks)).sum(1)

    return {f"recall_at_{k}": _hit_rate(sizes, hits, k) for k in ks} | {
        "r_precision": (chance * within_r).sum(1) / relevant,
        "map_at_r": precision_sum(within_r) / relevant,
        "average_precision": precision_sum(sizes) / relevant,
    }


def _hit_rate(sizes: Tensor, hits: Tensor, k: int) -> Tensor:
    """Return (Q,) the chance that the first k items hold a relevant one."""
    ends = sizes.cumsum(1)
    group = (ends < k).sum(1, keepdim=True)  # (Q, 1), the group that holds rank k
    size, hit = sizes.gather(1, group), hits.gather(1, group)
    drawn = k - (ends.gather(1, group) - size)  # how many of the group are among the first k
    sure = hits.cumsum(1).gather(1, group) > hit  # some group before holds one
    # Drawn one after another: the chance that each is of another class, if all before were. It
    # reaches 0 once the other classes run out, and the product stays there.
    draw = torch.arange(k, device=sizes.device)
    missed = torch.where(draw < drawn, (size - hit - draw) / (size - draw), 1)
    return torch.where(sure.squeeze(1), 1, 1 - missed.prod(1))


def _in_turn(first: Tensor, second: Tensor) -> Tensor:
    """Return (Q, 2G): the columns of two (Q, G) counts in turn."""
    return torch.stack([first, second], dim=2).flatten(1)


def _signs(codes: Tensor) -> Tensor:
    """Return bool codes as float32, +1 for a set bit and -1 for any other."""
    return codes.float().mul_(2).sub_(1)


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the metrics of successive queries, as float32 on the CPU."""
    return {name: torch.cat([part[name] for part in parts]).float().cpu() for name in parts[0]}


def _means(per_query: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean of each metric over the queries."""
    return {name: values.double().mean().item() for name, values in per_query.items()}


def _check_codes(name: str, codes: Tensor, labels: Tensor) -> None:
    """Refuse codes that are not a (N, bits) bool matrix with a label for each row."""
    if codes.dtype != torch.bool:
        raise ValueError(f"{name}: codes are bool, these are {codes.dtype}; binarise them first")
    if codes.ndim != 2 or labels.shape != codes.shape[:1]:
        raise ValueError(
            f"{name}: codes of shape {tuple(codes.shape)} and labels of shape "
            f"{tuple(labels.shape)} do not correspond; give (N, bits) and (N,)"
        )
    if not len(codes):
        raise ValueError(f"{name}: the set is empty; give at least one code")


def _check_ks(ks: tuple[int, ...], num_items: int) -> None:
    """Refuse a Recall@K that the number of items to retrieve does not define."""
    if min(ks, default=1) < 1:
        raise ValueError(f"Recall@{min(ks)} is not defined; K starts at 1")
    if max(ks, default=1) > num_items:
        raise ValueError(
            f"Recall@{max(ks)} needs at least {max(ks)} items to retrieve, there are {num_items}"
        )
