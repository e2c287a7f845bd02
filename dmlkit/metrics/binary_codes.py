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
        precision_within: (bits + 1,) float32, mean over queries of the share of relevant items
            among those at Hamming distance at most 0, 1 ... bits; 0 where there are none. With
            the next it makes the precision-recall curve, on which no order of ties has a say.
        recall_within: (bits + 1,) float32, mean share of the relevant items that are so near.
    """

    queries: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    num_lone: int
    per_query: dict[str, Tensor] = field(repr=False)
    worst: dict[str, Tensor] = field(repr=False)
    best: dict[str, Tensor] = field(repr=False)
    precision_within: Tensor = field(repr=False)
    recall_within: Tensor = field(repr=False)

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
        ValueError: what is no tensor (N, D), NaN or infinity in it.
    """
    check_rows("embeddings", embeddings)
    check_finite("embeddings", embeddings)
    return embeddings > 0


@torch.no_grad()
def code_metrics(
    codes: Tensor,
    labels: Tensor,
    *,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    ks: tuple[int, ...] = (1, 2, 4, 8),
    memory_mib: float = 128,
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
        ValueError: codes that are not bool, labels that are no integers, sizes that do not
            correspond, an empty set, a k below 1 or beyond the gallery, no query with a relevant
            item.
    """
    check_gallery(gallery, gallery_labels)
    _check_codes("codes", codes)
    labels = checked_labels("labels", labels, codes)
    is_one_set = gallery is None
    if is_one_set:
        gallery, gallery_labels = codes, labels
    _check_codes("gallery", gallery)
    gallery_labels = checked_labels("gallery_labels", gallery_labels, gallery)
    if codes.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries of {codes.shape[1]} bits cannot search a gallery of {gallery.shape[1]} bits; "
            "encode both by the same model"
        )
    ks = checked_ks(ks, len(gallery) - is_one_set)
    check_positive(memory_mib=memory_mib)
    queries = (count_relevant(labels, gallery_labels) > int(is_one_set)).nonzero().squeeze(1)
    if not len(queries):
        raise no_relevant_item(is_one_set)

    signs = _signs(gallery)
    bytes_per_query = (
        BYTES_PER_ITEM * len(gallery)
        + BYTES_PER_DISTANCE * (codes.shape[1] + 1)
        + BYTES_PER_RANK * max(ks, default=0)
    )
    expected, worst, best, within = [], [], [], []
    for rows in queries.split(max(1, int(memory_mib * 2**20) // bytes_per_query)):
        others, hits = _count_by_distance(codes[rows], labels[rows], signs, gallery_labels)
        if is_one_set:
            hits[:, 0] -= 1  # each query itself: at distance 0, and of its own class
        near_hits, near = hits.cumsum(1).double(), (others + hits).cumsum(1)
        within.append(torch.stack([near_hits / near.clamp_min(1), near_hits / near_hits[:, -1:]]))
        occurs = (others + hits).any(dim=0)  # few of many bits' distances do: half the time
        others, hits = others[:, occurs], hits[:, occurs]
        none = torch.zeros_like(hits)
        expected.append(metrics_of_ties(others + hits, hits, ks))
        # Ties resolved are groups of one kind each, among which no order matters.
        worst.append(metrics_of_ties(_in_turn(others, hits), _in_turn(none, hits), ks))
        best.append(metrics_of_ties(_in_turn(hits, others), _in_turn(hits, none), ks))
    precision_within, recall_within = torch.cat(within, dim=1).mean(dim=1).float().cpu()
    return CodeRetrieval(
        queries=queries.cpu(),
        labels=labels[queries].cpu(),
        num_lone=len(labels) - len(queries),
        per_query=_join(expected),
        worst=_join(worst),
        best=_join(best),
        precision_within=precision_within,
        recall_within=recall_within,
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


def _check_codes(name: str, codes: Tensor) -> None:
    """Raise ValueError unless ``codes`` is a bool tensor (N, bits) that is not empty."""
    check_rows(name, codes, "torch.from_numpy makes one of an array, binarise bits of floats")
    if codes.dtype != torch.bool:
        raise ValueError(
            f"{name} are {codes.dtype}; give bool, a column per bit: binarise(embeddings), "
            "codes.bool() of 0 and 1, codes > 0 of -1 and 1; packed bits must be unpacked"
        )
