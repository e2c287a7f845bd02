"""The sort keys, the ranks of matches and what a ranker is certain of, against slow references."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmlkit.metrics.ranking import BEYOND, LOWEST, Ranker, ranks_of_matches, sort_key

TINY = 1e-45  # the least float32 above zero, a denormal
SPECIAL = [0.0, -0.0, TINY, -TINY, 1.2e-38, -1.2e-38, 3.4e38, -3.4e38, float("inf"), -float("inf")]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def crowd(num_groups, per_group, dim, step, seed=0):
    """Unit rows in groups that lie ``step`` apart, in random order, classes mixed."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_groups, dim, generator=generator).repeat_interleave(per_group, dim=0)
    rows = centres + step * torch.randn(centres.shape, generator=generator)
    labels = torch.randint(5, (len(rows),), generator=generator)
    return F.normalize(rows, dim=1)[torch.randperm(len(rows), generator=generator)], labels


def exact_scores(queries, items):
    """(B, M) scores by definition: in float64, rounded to 2^-40 and to float32."""
    rows = [(query * items.double()).sum(dim=1) for query in queries.double()]
    return (torch.stack(rows) * 2**40).round().div(2**40).float()


# --------------------------------------------------------------------------------------------
# sort_key


def test_keys_order_as_the_score_and_then_put_matches_last():
    scores = torch.tensor([-1.0, -1.0, -0.0, 0.0, -0.0, 0.0, 2.0, 2.0])
    is_match = torch.tensor([True, False, True, True, False, False, True, False])
    key = sort_key(scores, is_match)

    assert key.dtype == torch.int64
    assert key[2] == key[3] and key[4] == key[5]  # the two zeros are one
    assert key[[0, 1, 2, 4, 6, 7]].diff().min() > 0  # ascending in score, a match below its equal


@pytest.mark.parametrize("spread", [1e-30, 1.0, 1e30])
def test_keys_order_all_floats_like_pairs_of_score_and_class(spread):
    scores = torch.cat([torch.tensor(SPECIAL), spread * normal(100)]).repeat(2)
    is_match = torch.arange(len(scores)) < len(scores) // 2
    key = sort_key(scores, is_match)

    pairs = list(zip(scores.tolist(), (~is_match).tolist(), strict=True))
    for i, pair in enumerate(pairs):
        assert (key[i] > key).tolist() == [pair > other for other in pairs]
        assert (key[i] == key).tolist() == [pair == other for other in pairs]


def test_neighbouring_floats_have_different_keys_of_their_order():
    for value in (1.0, -1.0, 0.0, 1e-40, -1e-40, 0.1):
        low = torch.tensor([value])
        high = torch.nextafter(low, torch.tensor([torch.inf]))
        lower_other, higher_match = (
            sort_key(low, low > torch.inf),
            sort_key(high, high > -torch.inf),
        )
        assert lower_other < higher_match


def test_every_key_is_above_the_one_that_stands_for_nothing():
    lowest = torch.tensor([-torch.inf])
    assert sort_key(lowest, torch.tensor([True])) > LOWEST


# --------------------------------------------------------------------------------------------
# ranks_of_matches


def test_ranks_of_matches_by_hand():
    #                    rank:  3  1  4  2        2  1  4  3
    key = torch.tensor([[4, 9, 1, 7], [-3, 5, -9, -8]])
    is_match = torch.tensor([[True, False, True, True], [False, False, False, True]])
    assert ranks_of_matches(key, is_match).tolist() == [[2, 3, 4], [3, 0, 0]]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("distinct", [3, 10, 1000])
def test_ranks_of_matches_against_sorting(distinct, share):
    generator = torch.Generator().manual_seed(distinct)
    score = torch.randint(-distinct, distinct, (40, 60), generator=generator).float()
    is_match = torch.rand(40, 60, generator=generator) < share
    is_match[0] = False  # a query without matches
    ranks = ranks_of_matches(sort_key(score, is_match), is_match)

    assert ranks.shape == (40, is_match.sum(dim=1).max())
    for row, values, matches in zip(ranks.tolist(), score.tolist(), is_match.tolist(), strict=True):
        order = sorted((-value, match) for value, match in zip(values, matches, strict=True))
        expected = [rank for rank, (_, match) in enumerate(order, start=1) if match]
        assert row == expected + [0] * (len(row) - len(expected))


# --------------------------------------------------------------------------------------------
# Ranker


def listed(ranker, rows, needed):
    scores = torch.empty(len(rows), ranker.num_gallery)
    return ranker.best(ranker.scores(rows, out=scores), rows, needed)


@pytest.mark.parametrize("dim", [2, 16, 128, 1024])
@pytest.mark.parametrize("step", [0, 1e-7, 1e-6, 1e-5, 1e-3, 1.0])
def test_what_is_certain_ranks_before_everything_else(step, dim):
    # Groups of nine, listed to 16 + 4: near ties lie across the end of the list for many queries.
    rows, labels = crowd(60, 9, dim, step, seed=dim)
    queries, asked, items, held = rows[:40], labels[:40], rows[40:], labels[40:]
    ranker = Ranker(queries, asked, (items, held), "cosine")
    needed = torch.arange(40) % 16 + 1
    found = listed(ranker, torch.arange(40), needed)
    key = sort_key(exact_scores(queries, items), held == asked[:, None])

    assert found.items.shape == found.is_match.shape == (40, 16 + BEYOND)
    assert ((found.certain >= needed) | (found.certain == -1)).all()
    for i, certain in enumerate(found.certain.tolist()):
        assert torch.equal(found.is_match[i], held[found.items[i]] == asked[i])
        if certain > 0:
            best = key[i].sort(descending=True).values[:certain]
            assert torch.equal(key[i][found.items[i, :certain]], best)


def test_near_ties_at_the_end_of_the_list_leave_only_what_is_before_them_certain():
    # Scores 0.9, 0.8, 0.7 and then 20 times 0.5: listed are 3 + 4 or 4 + 4.
    scores = torch.tensor([0.9, 0.8, 0.7] + [0.5] * 20)
    items = torch.stack([scores, (1 - scores**2).sqrt()], dim=1)
    labels = torch.arange(23)
    ranker = Ranker(torch.eye(2)[:1], torch.tensor([2]), (items, labels), "cosine")

    found = listed(ranker, torch.tensor([0]), torch.tensor([3]))
    assert found.items[0, :3].tolist() == [0, 1, 2]
    assert found.is_match.tolist() == [[False, False, True] + [False] * 4]
    assert found.certain.tolist() == [3]
    assert listed(ranker, torch.tensor([0]), torch.tensor([4])).certain.tolist() == [-1]
    assert listed(ranker, torch.tensor([0]), torch.tensor([19])).certain.tolist() == [23]  # all


def test_certain_reaches_as_far_as_the_last_wide_gap():
    # Ten scores 0.9, 0.8 ... and a list of 2 + 4: the sixth is certain only if the seventh is known
    scores = torch.arange(9, -1, -1) / 10
    items = torch.stack([scores, (1 - scores**2).sqrt()], dim=1)
    ranker = Ranker(torch.eye(2)[:1], torch.tensor([0]), (items, torch.arange(10)), "cosine")
    found = listed(ranker, torch.tensor([0]), torch.tensor([2]))
    assert found.items.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert found.certain.tolist() == [5]


def test_one_item_that_is_not_listed_may_still_tie_with_the_last_that_is():
    # Seven items and a list of 2 + 4, which ends within the five equal ones.
    scores = torch.tensor([0.9, 0.8] + [0.5] * 5)
    items = torch.stack([scores, (1 - scores**2).sqrt()], dim=1)
    for place in range(2, 7):
        labels = torch.ones(7, dtype=torch.int64)
        labels[place] = 0
        ranker = Ranker(torch.eye(2)[:1], torch.tensor([0]), (items, labels), "cosine")
        assert listed(ranker, torch.tensor([0]), torch.tensor([2])).certain.tolist() == [2]
        assert listed(ranker, torch.tensor([0]), torch.tensor([3])).certain.tolist() == [7]  # all


@pytest.mark.parametrize("count", [24, 25, 100, 403])
def test_the_list_holds_the_largest_scores_of_all_in_order(count):
    # Apart in score by more than the rounding error, in any order of the gallery.
    scores = torch.linspace(0.95, -0.95, count)
    items = torch.stack([scores, (1 - scores**2).sqrt()], dim=1)
    for seed in range(20):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        ranker = Ranker(torch.eye(2)[:1], torch.tensor([0]), (items[order], order), "cosine")
        for needed in (1, 2, 8, 20):
            found = listed(ranker, torch.tensor([0]), torch.tensor([needed]))
            assert order[found.items[0]].tolist() == list(range(needed + BEYOND))


def reversed_by_float32(dim, count=1500):
    """Triples of a query and two rows, the first nearer in float64 and farther in float32."""
    query = F.normalize(normal(count, dim, seed=1), dim=1)
    one = F.normalize(normal(count, dim, seed=2) + query, dim=1)
    two = F.normalize(one + 1e-7 * normal(count, dim, seed=3), dim=1)
    triples = []
    for q, a, b in zip(query, one, two, strict=True):
        items = torch.stack([a, b])
        exact, rough = exact_scores(q[None], items)[0], (q[None] @ items.T)[0]
        if exact[0] > exact[1] and rough[0] < rough[1]:
            triples.append((q, a, b))
    return triples


@pytest.mark.parametrize("dim", [64, 512, 2048])
def test_float32_products_alone_would_order_some_pairs_wrongly(dim):
    triples = reversed_by_float32(dim)
    assert len(triples) > 5
    labels = torch.tensor([0, 1] + [2] * 30)
    for query, near, far in triples:
        for first, second in ((near, far), (far, near)):
            # Whatever class is nearer and wherever it stands, the nearer one comes first.
            items = torch.cat([torch.stack([first, second]), -query.expand(30, dim)])
            ranker = Ranker(query[None], torch.tensor([0]), (items, labels), "cosine")
            found = listed(ranker, torch.tensor([0]), torch.tensor([2]))
            assert found.certain.tolist() == [2]
            assert torch.equal(items[found.items[0, 0]], near)
            assert found.is_match[0, 0] == (first is near)


def test_the_rounding_errors_of_float32_stay_below_the_tolerance():
    # Of equal entries, whose rounding errors do not cancel, and of random ones.
    for dim in (2, 64, 128, 384, 2048):
        level = torch.linspace(0.5, 1, 500)[:, None]
        even = (level / dim**0.5).expand(-1, dim).clone()
        even[:, -1] = (1 - even[:, :-1].square().sum(dim=1)).clamp_min(0).sqrt()
        rows = F.normalize(torch.cat([even, normal(200, dim), normal(200, dim).abs()]), dim=1)
        ranker = Ranker(rows, torch.arange(len(rows)), None, "cosine")
        error = rows @ rows.T - rows.double() @ rows.double().T
        spread = error.amax(dim=1) - error.amin(dim=1)
        assert (spread < ranker.tolerance[:, 0]).all()
        assert ranker.tolerance.max() < 1e-4  # and does not call everything a near tie


@pytest.mark.parametrize("set_by", ["the old interface", "the new interface", "both libraries"])
def test_ranking_ignores_a_precision_that_is_allowed_for_training_and_leaves_it(set_by):
    matmuls = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [matmul.fp32_precision for matmul in matmuls]
    seen = []

    class Rows(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.mm:
                seen.append([matmul.fp32_precision for matmul in matmuls])
            return super().__torch_function__(function, types, args, kwargs)

    try:
        if set_by == "the old interface":
            torch.set_float32_matmul_precision("medium")
        else:
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        if set_by == "both libraries":
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        allowed = [matmul.fp32_precision for matmul in matmuls]
        rows = F.normalize(normal(8, 4))
        ranker = Ranker(rows, torch.arange(8) // 2, None, "cosine")
        ranker.asked = ranker.asked.as_subclass(Rows)
        ranker.scores(torch.arange(8), torch.empty(8, 8))
        assert seen == [["ieee", "ieee"]]
        assert [matmul.fp32_precision for matmul in matmuls] == allowed
    finally:
        for matmul, precision in zip(matmuls, before, strict=True):
            matmul.fp32_precision = precision


def first_ranks(scores, is_match):
    """By counting: others that are at least as near as the nearest match, and one."""
    best = np.where(is_match, scores, -np.inf).max(axis=1, keepdims=True)
    return ((scores >= best) & ~is_match).sum(axis=1) + 1


@pytest.mark.parametrize("step", [0, 1e-7, 1e-6, 1e-4, 1.0])
def test_first_matches_are_on_the_right_side_of_every_k_or_said_to_be_open(step):
    rows, _ = crowd(40, 12, 32, step, seed=5)
    labels = torch.arange(480) // 3 % 150  # classes of 3 or 6
    ranker = Ranker(rows, labels, None, "cosine")
    ks, everyone = (1, 7, 50, 300), torch.arange(480)
    first, is_settled = ranker.first_match(
        ranker.scores(everyone, out=torch.empty(480, 480)), everyone, ks
    )
    scores = exact_scores(rows, rows).fill_diagonal_(-torch.inf)
    is_match = (labels == labels[:, None]).fill_diagonal_(False)
    expected = torch.from_numpy(first_ranks(scores.numpy(), is_match.numpy()))
    for k in ks:
        assert torch.equal((first <= k)[is_settled], (expected <= k)[is_settled])
    assert is_settled.sum() > (240 if step == 1.0 else 10)


@pytest.mark.parametrize("ahead", [3, 4, 5])
@pytest.mark.parametrize("ties", [0, 1])
def test_a_first_match_near_k_is_open_only_if_a_near_tie_decides(ahead, ties):
    # Ahead of the match are 3, 4 or 5 others and perhaps an equal one, for Recall@5.
    scores = torch.tensor([0.9] * ahead + [0.5] * (1 + ties) + [0.1] * 9)
    items = torch.stack([scores, (1 - scores**2).sqrt()], dim=1)
    labels = torch.ones(len(items), dtype=torch.int64)
    labels[ahead] = 0
    ranker = Ranker(torch.eye(2)[:1], torch.tensor([0]), (items, labels), "cosine")
    row = torch.tensor([0])
    buffer = ranker.scores(row, out=torch.empty(1, len(items)))
    first, is_settled = ranker.first_match(buffer, row, (5,))

    assert is_settled.item() is not (ahead == 4 and ties == 1)
    if is_settled:
        assert (first <= 5).item() is (ahead + ties < 5)


def test_near_ties_among_matches_leave_nothing_open():
    # Four others, then three matches one float32 step apart: the first match is the fifth.
    last = torch.tensor(0.5).view(torch.int32) + torch.arange(3)
    scores = torch.cat([torch.tensor([0.9] * 4), last.int().view(torch.float32)])
    items = torch.stack([scores, (1 - scores**2).sqrt()], dim=1)
    ranker = Ranker(
        torch.eye(2)[:1], torch.tensor([0]), (items, (torch.arange(7) < 4).long()), "cosine"
    )
    row = torch.tensor([0])
    buffer = ranker.scores(row, out=torch.empty(1, 7))
    first, is_settled = ranker.first_match(buffer, row, (4, 5))
    assert is_settled.tolist() == [True]
    assert first.tolist() == [5]


def test_exact_keys_hide_the_query_and_put_it_last():
    rows, labels = crowd(5, 4, 8, 0, seed=1)
    ranker = Ranker(rows, labels, None, "cosine")
    asked = torch.tensor([7, 2])
    key, is_match = ranker.keys(asked)
    assert key[0, 7] == key[1, 2] == LOWEST
    assert (key == LOWEST).sum() == 2
    expected = labels == labels[asked][:, None]
    expected[0, 7] = expected[1, 2] = False
    assert torch.equal(is_match, expected)


def test_a_gallery_of_more_than_one_block_is_ranked_as_a_whole():
    items = F.normalize(normal(4100, 3), dim=1)
    labels = torch.arange(4100) % 2
    ranker = Ranker(items[:3], labels[:3], (items, labels), "cosine")
    key, _ = ranker.keys(torch.arange(3))
    scores = exact_scores(items[:3], items)
    assert torch.equal(key, sort_key(scores, labels == labels[:3, None]))
