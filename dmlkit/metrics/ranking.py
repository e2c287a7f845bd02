"""Who ranks where: the gallery items that each query finds first, exactly and at float32 speed.

By definition a ranking follows the cosine similarity or the Euclidean distance computed in
float64 and rounded to float32 (cosines to 2^-40 as well), so that duplicates tie whatever order a
matrix product sums in; among equals, items of other classes come first.

Computing everything in float64 would take more than twice as long. But rounding matters only to
items whose scores almost agree. So scores are computed in float32, and only those that lie closer
to another than the rounding error are computed again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST = torch.iinfo(torch.int64).min
GROUP = 8  # columns compared by their maximum first
PIECE = 1024  # gallery items multiplied at once
UNIT = 3e-7  # a length this near 1 is 1: normalised in float32, rows of 2048 are off by 2.4e-7
BEYOND = 4  # items listed beyond those a metric needs, so that near ties at the end can be seen


@dataclass(frozen=True)
class Found:
    """What some queries found.

    Args:
        items: (B, L) int64 gallery positions, best first.
        is_match: (B, L) whether an item has the class of the query.
        certain: (B,) how many of the L are certain to rank before everything else; -1 if fewer
            than needed, and then neither items nor their order are certain.
    """

    items: Tensor
    is_match: Tensor
    certain: Tensor


class Ranker:
    """Ranks a gallery for queries.

    Args:
        embeddings: (N, D) float32 queries.
        labels: (N,) int64 their classes.
        gallery: (M, D) float32 items and (M,) int64 their classes; None if the queries search one
            another.
        distance: ``cosine``, for which rows that are not of unit length are normalised, or
            ``euclidean``.
    """

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        gallery: tuple[Tensor, Tensor] | None,
        distance: str,
    ) -> None:
        self.is_one_set = gallery is None
        items, self.gallery_labels = gallery or (embeddings, labels)
        self.labels = labels
        self.is_cosine = distance == "cosine"
        self.classes, self.by_class = self.gallery_labels.sort()
        if self.is_cosine:
            embeddings = _unit_rows(embeddings, "embeddings")
            items = embeddings if self.is_one_set else _unit_rows(items, "gallery")
        self.embeddings, self.items = embeddings, items
        # Rows whose products are the scores in float32.
        self.asked, self.searched = embeddings, items
        if not self.is_cosine:
            self.asked, self.searched = _rows_for_distances(embeddings, items)
        self.num_gallery = len(items)
        self.num_items = len(items) - self.is_one_set  # without the query itself
        # The rounding error of a product of length D grows like sqrt(D) (Higham and Mary, 2019).
        # Two scores have one each; the worst that we could construct is a third of this.
        size = self.asked.norm(dim=1) * self.searched.norm(dim=1).max()
        error = 8 * self.asked.shape[1] ** 0.5 * torch.finfo(torch.float32).eps
        self.tolerance = (error * size)[:, None]  # (N, 1), of each query

    def scores(self, rows: Tensor, out: Tensor) -> Tensor:
        """Write the float32 scores (B, M) of the queries ``rows`` into ``out``; own score -inf."""
        asked = self.asked.index_select(0, rows)
        # Piece by piece, which some libraries multiply a fifth faster than all at once.
        pieces = out.split(PIECE, dim=1), self.searched.split(PIECE)
        with _full_precision():
            for place, items in zip(*pieces, strict=True):
                torch.mm(asked, items.T, out=place)
        if self.is_one_set:
            out[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        return out

    def best(self, scores: Tensor, rows: Tensor, needed: Tensor) -> Found:
        """Return the best of ``scores`` (B, M), at least ``needed`` (B,) of them."""
        length = min(int(needed.max()) + BEYOND, self.num_items)
        values, items = _largest(scores, length)
        is_match = self.gallery_labels[items] == self.labels[rows][:, None]
        is_near = values[:, :-1] - values[:, 1:] <= self.tolerance[rows]  # (B, L - 1)
        if length == self.num_items:
            certain = torch.full_like(needed, length)
        else:
            # Behind the last gap that is wider than the rounding error, anything may follow.
            rank = torch.arange(1, length, device=rows.device)
            certain = torch.where(is_near, 0, rank).amax(dim=1)
            certain[certain < needed] = -1
        self._settle(items, is_match, rows, is_near & (certain[:, None] > 0))
        return Found(items, is_match, certain)

    def first_match(
        self, scores: Tensor, rows: Tensor, ks: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return (B,) ranks of the first matches, right as far as "at most k" goes, for all k.

        The second result, (B,), is False where rounding leaves even that open.
        """
        # Matches stand together once the gallery is sorted by class.
        wanted = self.labels[rows]
        start, end = (torch.searchsorted(self.classes, wanted, right=r) for r in (False, True))
        place = start[:, None] + torch.arange(int((end - start).max()), device=rows.device)
        own = scores.gather(1, self.by_class[place.clamp_max(self.num_gallery - 1)])
        own = own.masked_fill(place >= end[:, None], -torch.inf)  # (B, R); the query's own is too
        best = own.amax(dim=1, keepdim=True)
        error = self.tolerance[rows]
        # Counted, not summed: the sum of a mask makes a copy of eight bytes for each entry.
        least = (scores > best + error).count_nonzero(dim=1)  # items that rank before it
        most = (scores >= best - error).count_nonzero(dim=1)
        most -= (own >= best - error).count_nonzero(dim=1)
        is_settled = torch.stack([(most < k) | (least >= k) for k in ks]).all(dim=0)
        return least + 1, is_settled

    def _settle(self, items: Tensor, is_match: Tensor, rows: Tensor, is_near: Tensor) -> None:
        """Sort what lies too near the next (B, L - 1), exactly and in place."""
        unsure = torch.zeros_like(is_match)
        unsure[:, :-1] |= is_near
        unsure[:, 1:] |= is_near
        where = unsure.nonzero()  # (U, 2)
        key = torch.zeros_like(items)
        for place in where.split(max(1, 2**17 // self.asked.shape[1])):
            row, column = place.unbind(1)
            first = self.embeddings[rows[row]].double()
            second = self.items[items[row, column]].double()
            if self.is_cosine:
                score = _rounded((first * second).sum(dim=1))
            else:
                score = -torch.linalg.vector_norm(first - second, dim=1)
            key[row, column] = sort_key(score.float(), is_match[row, column])
        # Only items that are near each other change places: those of one cluster.
        touched = where[:, 0].unique()
        cluster = (~is_near[touched]).cumsum(dim=1)
        cluster = torch.cat([torch.zeros_like(cluster[:, :1]), cluster], dim=1)
        order = key[touched].argsort(dim=1, descending=True)
        order = order.gather(1, cluster.gather(1, order).argsort(dim=1, stable=True))
        items[touched] = items[touched].gather(1, order)
        is_match[touched] = is_match[touched].gather(1, order)

    def keys(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return for the queries ``rows`` the exact sort keys of all items and which are matches.

        Both are (B, M). A query's own key is the lowest, and it is no match of itself.
        """
        asked, parts = self.embeddings[rows].double(), self.items.split(4096)
        if self.is_cosine:
            found = [_rounded(asked @ part.double().T) for part in parts]
        else:
            # By differences, whose error does not grow with the distance from the origin.
            how = "donot_use_mm_for_euclid_dist"
            found = [-torch.cdist(asked, part.double(), compute_mode=how) for part in parts]
        is_match = self.gallery_labels == self.labels[rows][:, None]
        key = sort_key(torch.cat(found, dim=1).float(), is_match)
        if self.is_one_set:
            own = torch.arange(len(rows), device=rows.device), rows
            key[own], is_match[own] = LOWEST, False
        return key, is_match


@contextmanager
def _full_precision() -> Iterator[None]:
    """Multiply in float32 proper, whatever the caller allows for training (such as TF32)."""
    libraries = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    allowed = [library.fp32_precision for library in libraries]
    for library in libraries:
        library.fp32_precision = "ieee"
    try:
        yield
    finally:
        for library, precision in zip(libraries, allowed, strict=True):
            library.fp32_precision = precision


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` largest values (B, count) of each row and their columns, as topk does.

    In groups of eight columns first: the largest values lie in the groups with the largest maxima,
    which leaves an eighth of the columns to sort out, twice.
    """
    groups = scores.shape[1] // GROUP
    if groups <= count:
        return scores.topk(count, dim=1)
    grouped = scores[:, : GROUP * groups].unflatten(1, (GROUP, groups))  # columns g, g + groups ...
    chosen = grouped.amax(dim=1).topk(count, dim=1, sorted=False).indices  # (B, count)
    offset = groups * torch.arange(GROUP, device=scores.device)
    columns = (chosen[:, :, None] + offset).flatten(1)
    rest = torch.arange(GROUP * groups, scores.shape[1], device=scores.device)
    columns = torch.cat([columns, rest.expand(len(scores), -1)], dim=1)
    values, place = scores.gather(1, columns).topk(count, dim=1)
    return values, columns.gather(1, place)


def sort_key(scores: Tensor, is_match: Tensor) -> Tensor:
    """Return int64 numbers that order as ``scores`` (float32), matches behind equal others."""
    # Bits of floats order as integers do, in reverse for negative ones. Adding 0.0 turns -0.0
    # into 0.0, whose bits differ though they are equal.
    bits = (scores + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return 2 * ordered + ~is_match


def ranks_of_matches(key: Tensor, is_match: Tensor) -> Tensor:
    """Return (B, R) ranks of each query's matches, from 1, ascending; 0 where there are fewer.

    Args:
        key: (B, M) sort keys of all items.
        is_match: (B, M) which of them are matches.
    """
    counts = is_match.sum(dim=1)
    most = int(counts.max())
    wanted = key.masked_fill(~is_match, LOWEST).topk(most, dim=1).values  # (B, R) descending
    # How many of the wanted ones an item of another class ranks before; ties cannot occur, since
    # the lowest bit of a key says whether it is a match.
    others = key.masked_fill(is_match, LOWEST)
    before = torch.searchsorted(wanted.flip(1), others)  # (B, M), 0..R
    number = torch.zeros(len(key), most + 1, dtype=torch.int64, device=key.device)
    number.scatter_add_(1, before, torch.ones_like(before[:1, :1]).expand_as(before))
    ahead = number.flip(1).cumsum(dim=1)[:, :most]  # (B, R), those before the best wanted first
    place = torch.arange(1, most + 1, device=key.device)
    return torch.where(place <= counts[:, None], ahead + place, 0)


def _unit_rows(rows: Tensor, name: str) -> Tensor:
    """Return (N, D) rows of unit length, unchanged those within ``UNIT`` of it."""
    # Part by part: the norm in float64 copies what it is given.
    lengths = torch.cat(
        [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in rows.split(4096)]
    )
    if (lengths == 0).any():
        raise ValueError(
            f"row {int((lengths == 0).nonzero()[0])} of the {name} is a zero vector, which has no "
            "direction; use distance='euclidean', or find out why the model gives zeros"
        )
    # Normalised in float32 already, a row would only be copied.
    lengths[(lengths - 1).abs() < UNIT] = 1
    if (lengths == 1).all():
        return rows
    parts = zip(rows.split(4096), lengths.split(4096), strict=True)
    return torch.cat([(part / length[:, None]).float() for part, length in parts])


def _rounded(cosine: Tensor) -> Tensor:
    """Return float64 cosines without the noise of a sum that is nearly zero."""
    return (cosine * 2**40).round() / 2**40


def _rows_for_distances(embeddings: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows whose product is x . y - |y|^2 / 2, which orders as the distance does.

    Of both moved by the gallery's mean and brought to a size of about 1, so that squares neither
    lose digits nor leave the range of float32.
    """
    mean = gallery.mean(dim=0, dtype=torch.float64)
    asked, searched = embeddings - mean, gallery - mean
    size = max(asked.abs().max(), searched.abs().max(), torch.finfo(torch.float64).tiny)
    asked, searched = asked / size, searched / size
    half = searched.square().sum(dim=1, keepdim=True) / 2
    ones = torch.ones_like(asked[:, :1])
    return torch.cat([asked, ones], dim=1).float(), torch.cat([searched, -half], dim=1).float()
