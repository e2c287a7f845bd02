"""Metrics of binary codes by hand, over every order of the ties, and beside the float ranking."""

import itertools
from fractions import Fraction
from statistics import mean

import faiss
import numpy as np
import pytest
import torch

from dmlkit.metrics import retrieval_metrics
from dmlkit.metrics.binary_codes import binarise, code_metrics, metrics_of_ties

A, B = 0, 1
LOW, HIGH = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
KS = (1, 2, 4)


def bits(*words):
    return torch.tensor([[letter == "1" for letter in word] for word in words])


def measure(codes, labels, **options):
    return code_metrics(codes, torch.tensor(labels), **{"ks": KS} | options)


def random_codes(count, num_bits, num_classes, seed):
    """Codes whose bits follow their class, each flipped one time in four."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(num_classes, num_bits, generator=generator) < 0.5
    labels = torch.randint(num_classes, (count,), generator=generator)
    flips = torch.rand(count, num_bits, generator=generator) < 0.25
    return centres[labels] ^ flips, labels


def metrics_of_order(matches, ks):
    """The metrics of one ranking without ties, by their definitions."""
    relevant = sum(matches)
    precision = [Fraction(sum(matches[:rank]), rank) for rank in range(1, len(matches) + 1)]
    at_hits = [value * match for value, match in zip(precision, matches, strict=True)]
    return {f"recall_at_{k}": Fraction(any(matches[:k])) for k in ks} | {
        "r_precision": Fraction(sum(matches[:relevant]), relevant),
        "map_at_r": sum(at_hits[:relevant]) / relevant,
        "average_precision": sum(at_hits) / relevant,
    }


def all_orders(groups, ks):
    """The metrics of every order within the groups, which are lists of matches."""
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    # Matches are exchangeable: each distinct order stands for equally many permutations.
    return [metrics_of_order([*itertools.chain(*order)], ks) for order in set(orders)]


def reference_groups(query, label, items, item_labels):
    """Matches of the items, a list for each Hamming distance, nearest first."""
    groups = {}
    for item, item_label in zip(items.tolist(), item_labels.tolist(), strict=True):
        distance = sum(one != other for one, other in zip(query.tolist(), item, strict=True))
        groups.setdefault(distance, []).append(item_label == int(label))
    return [groups[distance] for distance in sorted(groups)]


def assert_matches_every_order(found, groups_of_queries, ks=KS):
    """Compare each query's mean, least and greatest value over all orders of its ties."""
    assert len(found.queries) == len(groups_of_queries)
    names = [*(f"recall_at_{k}" for k in ks), "r_precision", "map_at_r", "average_precision"]
    for values, pick in ((found.per_query, mean), (found.worst, min), (found.best, max)):
        assert list(values) == names
        for i, groups in enumerate(groups_of_queries):
            orders = all_orders(groups, ks)
            for name in names:
                expected = float(pick([order[name] for order in orders]))
                assert values[name][i].item() == pytest.approx(expected, abs=1e-7), (name, pick)


def assert_same(one, other, order=slice(None)):
    for field in ("per_query", "worst", "best"):
        for name, values in getattr(one, field).items():
            assert torch.equal(values, getattr(other, field)[name][order]), (field, name)


def test_a_bit_is_one_above_zero_and_at_zero_it_is_not():
    embeddings = torch.tensor([[0.5, -0.5, 0.0], [-0.0, 1e-30, -1e-30]])
    assert torch.equal(binarise(embeddings), bits("100", "010"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_not_binarised(value):
    with pytest.raises(ValueError, match="NaN or infinity"):
        binarise(torch.tensor([[1.0, value]]))


def test_packed_bits_keep_their_order_take_a_32nd_and_are_as_far_apart_for_faiss():
    embeddings = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    codes = binarise(embeddings)
    packed = np.packbits(codes.numpy(), axis=1)
    assert 32 * packed.nbytes == embeddings.numpy().nbytes
    assert (np.unpackbits(packed, axis=1) == codes.numpy()).all()
    index = faiss.IndexBinaryFlat(32)
    index.add(packed)
    distances, neighbours = index.search(packed, 40)
    ours = (codes[:, None] != codes).sum(dim=2)
    assert (distances == ours.sort(dim=1).values.numpy()).all()
    # Whatever order faiss gives ties, its Recall@1 lies between our bounds.
    labels = torch.arange(40) % 8
    first = [next(n for n in near if n != query) for query, near in enumerate(neighbours)]
    recall = (labels[first] == labels).float().mean().item()
    worst, best = code_metrics(codes, labels, ks=(1,)).bounds()["recall_at_1"]
    assert worst - 1e-6 <= recall <= best + 1e-6


def test_two_ties_by_hand():
    # Query 00 of A, R = 2. Distance 0: A and B; distance 1: A and B. Hits at ranks 1 or 2 (in
    # the first tie) and 3 or 4 (in the second), each as likely.
    # Precision at the hit: 1 or 1/2 in the first tie, 2/3 or 2/4 in the second.
    found = measure(
        bits("00"),
        [A],
        gallery=bits("00", "00", "01", "10"),
        gallery_labels=torch.tensor([A, B] * 2),
    )
    assert found.means() == pytest.approx(
        {
            "recall_at_1": 1 / 2,
            "recall_at_2": 1,
            "recall_at_4": 1,
            "r_precision": 1 / 2,
            "map_at_r": (3 / 4) / 2,
            "average_precision": (3 / 4 + 7 / 12) / 2,
        }
    )
    assert found.bounds() == {
        "recall_at_1": (0, 1),
        "recall_at_2": (1, 1),
        "recall_at_4": (1, 1),
        "r_precision": (1 / 2, 1 / 2),
        "map_at_r": (1 / 4, 1 / 2),
        "average_precision": pytest.approx(((1 / 2 + 1 / 2) / 2, (1 + 2 / 3) / 2)),
    }


def test_a_tie_across_rank_r_by_hand():
    # Query 00 of A, R = 2. Distance 0: B; distance 1: A, A, B, B at ranks 2 to 5; distance 2: B.
    # Rank 2 alone is within R: a hit in half of the orders, with precision 1/2.
    # Missed by the first 3 ranks: the tie starts with B and B, 2/4 * 1/3 = 1/6.
    # Precisions at the hits, by the ranks of both: 2 3: 1/2 + 2/3; 2 4: 1/2 + 2/4;
    # 2 5: 1/2 + 2/5; 3 4: 1/3 + 2/4; 3 5: 1/3 + 2/5; 4 5: 1/4 + 2/5. Their sum is 317/60.
    found = measure(
        bits("00"),
        [A],
        gallery=bits("00", "01", "01", "10", "10", "11"),
        gallery_labels=torch.tensor([B, A, B, A, B, B]),
        ks=(1, 2, 3, 4),
    )
    assert found.means() == pytest.approx(
        {
            "recall_at_1": 0,
            "recall_at_2": 1 / 2,
            "recall_at_3": 5 / 6,
            "recall_at_4": 1,
            "r_precision": 1 / 4,
            "map_at_r": 1 / 8,
            "average_precision": 317 / 60 / 6 / 2,
        }
    )
    assert found.bounds() == {
        "recall_at_1": (0, 0),
        "recall_at_2": (0, 1),
        "recall_at_3": (0, 1),
        "recall_at_4": (1, 1),
        "r_precision": (0, 1 / 2),
        "map_at_r": (0, 1 / 4),
        "average_precision": pytest.approx(((1 / 4 + 2 / 5) / 2, (1 / 2 + 2 / 3) / 2)),
    }


def test_codes_that_are_all_equal_score_chance_and_not_zero_or_one():
    # Three classes of four: 11 others, 3 of them relevant, in random order.
    found = measure(bits("0110").expand(12, 4), [0, 1, 2] * 4, ks=(1, 2, 8, 9))
    expected = found.means()
    assert expected["recall_at_1"] == pytest.approx(3 / 11)
    assert expected["recall_at_2"] == pytest.approx(1 - 8 / 11 * 7 / 10)
    assert expected["recall_at_8"] == pytest.approx(1 - 1 / 165)  # of 11 choose 8 draws
    assert expected["recall_at_9"] == 1
    assert expected["r_precision"] == pytest.approx(3 / 11)
    # Ranks 1 to 3 hold a hit with 3/11, and each before them holds another then with 2/10.
    assert expected["map_at_r"] == pytest.approx((1 + 1.2 / 2 + 1.4 / 3) / 11)
    bounds = found.bounds()
    assert bounds["recall_at_1"] == bounds["recall_at_8"] == bounds["r_precision"] == (0, 1)
    assert bounds["recall_at_9"] == (1, 1)
    assert bounds["map_at_r"] == pytest.approx((0, 1))
    assert bounds["average_precision"] == pytest.approx(((1 / 9 + 2 / 10 + 3 / 11) / 3, 1))


def test_one_class_is_found_by_any_code_in_any_order():
    found = measure(bits("00", "01", "01", "11", "11"), [7] * 5)
    assert found.means() == pytest.approx(dict.fromkeys(found.per_query, 1))
    for bound in found.bounds().values():
        assert bound == pytest.approx((1, 1))


def test_a_query_does_not_retrieve_itself_among_its_duplicates():
    # A at 00: B, B, A.  B at 00: A, B, A.  A at 11: B, then A and B tied.
    # B at 10: A, A and B tied.  Whoever counts itself finds a match first.
    found = measure(bits("00", "00", "11", "10"), [A, B, A, B], ks=(1,))
    assert found.best["recall_at_1"].tolist() == [0, 0, 0, 1]
    assert found.per_query["recall_at_1"].tolist() == pytest.approx([0, 0, 0, 1 / 3])


@pytest.mark.parametrize("seed", range(8))
def test_matches_every_order_of_the_ties(seed):
    # 8 items of 3 bits in up to 5 classes, lone ones among them: ties of one to all seven others.
    codes, labels = random_codes(8, 3, 2 + seed % 4, seed)
    found = code_metrics(codes, labels, ks=KS)
    groups = []
    for query in range(8):
        others = torch.arange(8) != query
        if (labels[others] == labels[query]).any():
            groups.append(
                reference_groups(codes[query], labels[query], codes[others], labels[others])
            )
    assert_matches_every_order(found, groups)
    assert found.num_lone == 8 - len(groups)


@pytest.mark.parametrize("seed", range(8))
def test_matches_every_order_of_the_ties_with_a_gallery(seed):
    codes, labels = random_codes(12, 2, 4, seed)
    (queries, gallery), (asked, held) = codes.split([5, 7]), labels.split([5, 7])
    found = code_metrics(queries, asked, gallery=gallery, gallery_labels=held, ks=KS)
    groups = [
        reference_groups(query, label, gallery, held)
        for query, label in zip(queries, asked, strict=True)
        if label in held
    ]
    assert_matches_every_order(found, groups)
    assert found.num_lone == 5 - len(groups)


@pytest.mark.parametrize("seed", range(3))
def test_matches_every_order_when_the_codes_are_all_equal(seed):
    labels = torch.randint(3, (8,), generator=torch.Generator().manual_seed(seed))
    found = code_metrics(torch.ones(8, 5, dtype=torch.bool), labels, ks=KS)
    others = [(torch.cat([labels[:i], labels[i + 1 :]]) == labels[i]).tolist() for i in range(8)]
    assert_matches_every_order(found, [[matches] for matches in others if any(matches)])


@pytest.mark.parametrize("seed", range(4))
def test_groups_of_ties_may_be_empty_and_of_one_item(seed):
    # Not by way of codes: sizes of 0 to 4, a single relevant item to all of them.
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(5, (20, 3), generator=generator) + torch.tensor([0, 0, 1])
    hits = (torch.rand(20, 3, generator=generator) * (sizes + 1)).long()
    hits[hits.sum(1) == 0, 2] = 1
    found = metrics_of_ties(sizes, hits, ks=(1,))
    for i in range(20):
        groups = [
            [True] * hit + [False] * (size - hit)
            for size, hit in zip(sizes[i].tolist(), hits[i].tolist(), strict=True)
        ]
        orders = all_orders(groups, ks=(1,))
        for name, values in found.items():
            expected = float(mean([order[name] for order in orders]))
            assert values[i].item() == pytest.approx(expected, abs=1e-12), name


def test_the_closed_form_keeps_its_digits_among_sixty_thousand_items():
    # Summed rank by rank; most of a group's harmonic numbers cancel far down the ranking.
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 1200, (1, 100), generator=generator)
    hits = (torch.rand(1, 100, generator=generator) ** 8 * sizes).long()
    before, found_before, precisions = 0, 0, 0.0
    for size, hit in zip(sizes[0].tolist(), hits[0].tolist(), strict=True):
        rank = torch.arange(1, size + 1, dtype=torch.float64)
        at_hit = found_before + 1 + (rank - 1) * (hit - 1) / max(size - 1, 1)
        precisions += (hit / size * at_hit / (before + rank)).sum().item()
        before, found_before = before + size, found_before + hit
    assert before > 55_000
    found = metrics_of_ties(sizes, hits, ks=(1,))["average_precision"]
    assert found.item() == pytest.approx(precisions / found_before, rel=1e-9)


def codes_without_ties():
    """1, 2, 4 ... 1024 in unary: the distances from each, 2^j - 2^i and 2^i - 2^k, all differ."""
    return torch.arange(1024) < 2 ** torch.arange(11)[:, None]


@pytest.mark.parametrize("seed", range(3))
def test_without_ties_all_three_agree_and_equal_the_float_ranking(seed):
    codes = codes_without_ties()
    labels = torch.randint(3, (11,), generator=torch.Generator().manual_seed(seed))
    found = code_metrics(codes, labels, ks=KS)
    for name, values in found.per_query.items():
        torch.testing.assert_close(values, found.worst[name], rtol=0, atol=1e-7)
        torch.testing.assert_close(values, found.best[name], rtol=0, atol=1e-7)
    assert_worst_equals_the_float_ranking(found, codes, labels)


def as_unit_rows(codes):
    """Rows of +-1 over the root of the bits: products are exact where the root is a power of 2."""
    return (2 * codes.float() - 1) / codes.shape[1] ** 0.5


def assert_worst_equals_the_float_ranking(found, codes, labels, **gallery):
    floats = retrieval_metrics(as_unit_rows(codes), labels, ks=KS, rank_all=True, **gallery)
    assert torch.equal(found.queries, floats.queries)
    assert torch.equal(found.labels, floats.labels)
    assert found.num_lone == floats.num_lone
    assert found.worst.keys() == floats.per_query.keys()
    for name, values in floats.per_query.items():
        torch.testing.assert_close(found.worst[name], values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_bits", [1, 4, 16, 64])
@pytest.mark.parametrize("num_classes", [3, 12, 60], ids=["large", "middling", "many lone"])
def test_the_worst_order_is_the_one_of_the_float_ranking(num_bits, num_classes):
    codes, labels = random_codes(90, num_bits, num_classes, seed=num_bits)
    found = code_metrics(codes, labels, ks=KS)
    assert_worst_equals_the_float_ranking(found, codes, labels)


@pytest.mark.parametrize("num_bits", [4, 64])
def test_the_worst_order_is_the_one_of_the_float_ranking_with_a_gallery(num_bits):
    codes, labels = random_codes(120, num_bits, 25, seed=num_bits)
    (queries, gallery), (asked, held) = codes.split([50, 70]), labels.split([50, 70])
    found = code_metrics(queries, asked, gallery=gallery, gallery_labels=held, ks=KS)
    assert_worst_equals_the_float_ranking(
        found, queries, asked, gallery=as_unit_rows(gallery), gallery_labels=held
    )


@pytest.mark.parametrize("num_bits", [1, 5, 40])
def test_the_expected_value_lies_between_the_bounds_within_zero_and_one(num_bits):
    codes, labels = random_codes(90, num_bits, 10, seed=num_bits)
    found = code_metrics(codes, labels, ks=(1, 2, 4, 89))
    for name, values in found.per_query.items():
        assert (found.worst[name] >= 0).all()
        assert (found.best[name] <= 1 + 1e-6).all()
        assert (values >= found.worst[name] - 1e-6).all()
        assert (values <= found.best[name] + 1e-6).all()
    assert found.means()["recall_at_1"] < found.bounds()["recall_at_1"][1]


def test_lone_classes_ask_nothing_but_stay_in_the_gallery_and_are_counted():
    # The query 00 has B and A at distance 1; the query 10 has A and 5 there.
    found = measure(bits("00", "01", "10", "11"), [A, B, A, 5], ks=(1,))
    assert found.queries.tolist() == [0, 2]
    assert found.labels.tolist() == [A, A]
    assert found.num_lone == 2
    assert found.per_query["recall_at_1"].tolist() == [1 / 2, 1 / 2]


def test_a_gallery_item_equal_to_the_query_counts():
    gallery = {"gallery": bits("00", "11"), "gallery_labels": torch.tensor([A, B])}
    found = measure(bits("00", "11"), [A, B], ks=(1,), **gallery)
    assert found.means()["recall_at_1"] == found.bounds()["recall_at_1"][0] == 1


def test_results_are_float32_and_their_means_are_taken_over_the_queries():
    codes, labels = random_codes(40, 4, 5, seed=2)
    found = code_metrics(codes, labels)
    for field in (found.per_query, found.worst, found.best):
        assert {values.dtype for values in field.values()} == {torch.float32}
        assert {len(values) for values in field.values()} == {len(found.queries)}
    mean_of = {name: sum(values.tolist()) / 40 for name, values in found.per_query.items()}
    assert found.means() == pytest.approx(mean_of)
    for name, (worst, best) in found.bounds().items():
        assert worst == pytest.approx(sum(found.worst[name].tolist()) / 40)
        assert best == pytest.approx(sum(found.best[name].tolist()) / 40)


def test_the_order_of_the_items_does_not_matter():
    codes, labels = random_codes(60, 6, 5, seed=9)  # no lone class
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert_same(code_metrics(codes[order], labels[order]), code_metrics(codes, labels), order)


def test_the_names_of_the_classes_do_not_matter():
    codes, labels = random_codes(60, 6, 6, seed=3)
    names = torch.tensor([HIGH, -1, LOW, 2**40, 0, -(2**62)])
    assert_same(code_metrics(codes, names[labels]), code_metrics(codes, labels))


def test_flipping_a_bit_of_all_codes_and_swapping_bits_does_not_matter():
    codes, labels = random_codes(60, 6, 6, seed=4)
    flipped = codes ^ bits("011010")
    assert_same(code_metrics(flipped, labels), code_metrics(codes, labels))
    assert_same(code_metrics(codes.flip(1), labels), code_metrics(codes, labels))


@pytest.mark.parametrize("separate", [False, True], ids=["one set", "query and gallery"])
def test_the_number_of_queries_ranked_at_once_does_not_matter(separate):
    codes, labels = random_codes(60, 6, 15, seed=5)
    gallery = {"gallery": codes[20:], "gallery_labels": labels[20:]} if separate else {}
    asked = slice(20) if separate else slice(None)
    one_by_one = code_metrics(codes[asked], labels[asked], memory_mib=1e-6, **gallery)
    at_once = code_metrics(codes[asked], labels[asked], **gallery)
    assert_same(one_by_one, at_once)
    assert torch.equal(one_by_one.queries, at_once.queries)


def test_precision_and_recall_within_a_distance_on_a_worked_example():
    # 000 A, 001 A, 011 A, 111 B. Others by distance, from 000: A1 A2 B3, from 001: A1 A1 B2, from
    # 011: A1 B1 A2. B is alone and no query.
    found = measure(bits("000", "001", "011", "111"), [A, A, A, B], ks=(1,))
    within = [0, (1 + 1 + 1 / 2) / 3, (1 + 2 / 3 + 2 / 3) / 3, 2 / 3]
    assert found.precision_within.tolist() == pytest.approx(within)
    assert found.recall_within.tolist() == pytest.approx([0, (1 / 2 + 1 + 1 / 2) / 3, 1, 1])


CODES, LABELS = bits("00", "01", "11"), torch.tensor([A, A, B])


def test_codes_that_are_not_bool_are_refused():
    with pytest.raises(
        ValueError, match=r"codes are torch.float32; give bool.*binarise\(embeddings\)"
    ):
        code_metrics(CODES.float(), LABELS)
    with pytest.raises(ValueError, match=r"gallery are torch.uint8; give bool.*codes.bool\(\)"):
        code_metrics(CODES, LABELS, gallery=CODES.byte(), gallery_labels=LABELS)


def test_codes_of_another_length_than_the_gallery_are_refused():
    with pytest.raises(ValueError, match="queries of 2 bits cannot search a gallery of 1 bits"):
        code_metrics(CODES, LABELS, gallery=CODES[:, :1], gallery_labels=LABELS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_codes_on_a_gpu_score_as_on_the_cpu():
    codes, labels = random_codes(300, 100, 20, seed=6)
    on_gpu = code_metrics(codes.cuda(), labels.cuda())
    on_cpu = code_metrics(codes, labels)
    for field in ("per_query", "worst", "best"):
        for name, values in getattr(on_gpu, field).items():
            torch.testing.assert_close(values, getattr(on_cpu, field)[name], rtol=0, atol=1e-6)
