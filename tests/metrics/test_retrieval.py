"""Retrieval metrics by hand, against a slow reference with exact ties, and the library's."""

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from dmlkit.metrics import count_relevant, retrieval_metrics

A, B = 0, 1
LOW, HIGH = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max


def on_circle(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def axes(*numbers):
    """Unit vectors of 4-space along axis ``abs(n)``, 1 to 4, pointing back where n is negative."""
    return torch.stack([torch.eye(4)[abs(n) - 1] * (1 if n > 0 else -1) for n in numbers])


def means(embeddings, labels, **options):
    options = {"ks": (1,)} | options
    return retrieval_metrics(embeddings, torch.tensor(labels), **options).means()


def with_ties(count, num_classes, seed):
    """Random vertices of the 24-cell: unit vectors whose products are exactly 0, +-1/2 or +-1."""
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 4)
    vertices = torch.cat([torch.eye(4), -torch.eye(4), corners])  # (24, 4)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(24, (count,), generator=generator)
    return vertices[chosen], torch.randint(num_classes, (count,), generator=generator)


def without_ties(count=90, dim=6, seed=0):
    """Random directions with classes of 1 (three of them), 2, 3 ... items, in random order."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(count, dim, generator=generator), dim=1)
    sizes = torch.tensor([1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    labels = torch.arange(len(sizes)).repeat_interleave(sizes)
    labels = torch.cat([labels, torch.full((count - len(labels),), 20)])
    return embeddings, labels[torch.randperm(count, generator=generator)]


def reference_metrics(queries, labels, gallery, gallery_labels, ks, same_set):
    """One query at a time, sorted by similarity and then with other classes first."""
    values = {name: [] for name in [*(f"recall_at_{k}" for k in ks), "r_precision", "map_at_r"]}
    for i, (query, label) in enumerate(zip(queries.tolist(), labels, strict=True)):
        ranking = []
        for j, (item, item_label) in enumerate(zip(gallery.tolist(), gallery_labels, strict=True)):
            if not (same_set and i == j):
                similarity = sum(q * g for q, g in zip(query, item, strict=True))
                ranking.append((-similarity, bool(item_label == label)))
        matches = [match for _, match in sorted(ranking)]  # False sorts before True
        relevant = sum(matches)
        if not relevant:
            continue
        for k in ks:
            values[f"recall_at_{k}"].append(float(any(matches[:k])))
        values["r_precision"].append(sum(matches[:relevant]) / relevant)
        precisions = [sum(matches[:r]) / r for r in range(1, relevant + 1) if matches[r - 1]]
        values["map_at_r"].append(sum(precisions) / relevant)
    return values


def test_five_points_ranked_by_hand():
    embeddings, labels = on_circle(0, 10, 45, 30, 100), [A, A, A, B, B]

    # Query:      0 A        10 A       45 A       30 B       100 B
    # Ranking:  A B A B    A B A B    B A A B    A A A B    A B A A
    # R:            2          2          2          1          1
    # R-prec.:     1/2        1/2        1/2         0          0
    # MAP@R:  (1/1)/2    (1/1)/2    (1/2)/2          0          0
    assert means(embeddings, labels, ks=(1, 2, 4)) == pytest.approx(
        {
            "recall_at_1": 2 / 5,
            "recall_at_2": 4 / 5,
            "recall_at_4": 1.0,
            "r_precision": 1.5 / 5,
            "map_at_r": 1.25 / 5,
        }
    )


def test_a_query_is_left_out_by_its_index_when_another_class_holds_its_duplicate():
    # Both items at 0 degrees see the other one first; whoever drops the first column instead of
    # the query itself finds itself as a match. Rankings, ties at 20 and at 30 included:
    # 0 A: B A B;  0 B: A A B;  20 A: B (B A);  30 B: A (A B).
    found = means(on_circle(0, 0, 20, 30), [A, B, A, B], ks=(1, 2, 3))
    assert found["recall_at_1"] == 0.0
    assert found["recall_at_2"] == 1 / 4
    assert found["recall_at_3"] == 1.0
    assert found["r_precision"] == found["map_at_r"] == 0.0


def test_duplicates_within_a_class_find_each_other():
    found = means(on_circle(0, 0, 90, 90), [A, A, B, B])
    assert set(found.values()) == {1.0}


def test_a_collapsed_embedding_scores_zero_and_not_one():
    # Three classes of four: the eight items of other classes come before the three of one's own.
    embeddings = on_circle(33).expand(12, 2)
    found = means(embeddings, [0, 1, 2] * 4, ks=(1, 8, 9))
    assert found == {
        "recall_at_1": 0,
        "recall_at_8": 0,
        "recall_at_9": 1,
        "r_precision": 0,
        "map_at_r": 0,
    }


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_a_tie_across_the_last_neighbour_counts_against_the_model(order):
    # Similarities 1 (other class), 0 (other class), 0 (match): the match comes last of three.
    gallery, gallery_labels = axes(1, 2, 3)[order], torch.tensor([B, B, A])[order]
    found = means(axes(1), [A], gallery=gallery, gallery_labels=gallery_labels, ks=(1, 2, 3))
    assert [found[f"recall_at_{k}"] for k in (1, 2, 3)] == [0, 0, 1]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_a_tie_within_the_first_r_counts_against_the_model(order):
    # Similarities 1 (match), 0 (match), 0 (other), -1 (other); R = 2: match, other, match, other.
    gallery, gallery_labels = axes(1, 2, 3, -1)[order], torch.tensor([A, A, B, B])[order]
    found = means(axes(1), [A], gallery=gallery, gallery_labels=gallery_labels)
    assert found == {"recall_at_1": 1, "r_precision": 1 / 2, "map_at_r": 1 / 2}


@pytest.mark.parametrize("rows", [1, 3, 101])
def test_exact_duplicates_tie_whatever_their_place_in_the_matrix_product(rows):
    # Each of 53 items is there twice, once as a match: other, match, other, match ... and R = 53.
    generator = torch.Generator().manual_seed(0)
    items = F.normalize(torch.randn(53, 67, generator=generator), dim=1)
    queries = F.normalize(torch.randn(101, 67, generator=generator), dim=1)
    found = retrieval_metrics(
        queries,
        torch.zeros(101, dtype=torch.int64),
        gallery=torch.cat([items, items]),
        gallery_labels=torch.arange(106) // 53,
        ks=(1, 2),
        memory_mib=rows * 106 * 8 / 2**20,
    )
    assert found.per_query["recall_at_1"].sum() == 0
    assert found.per_query["recall_at_2"].sum() == 101
    assert found.per_query["r_precision"].tolist() == pytest.approx([26 / 53] * 101)


def test_zero_and_negative_zero_similarity_are_a_tie():
    # The products +-1e-60 are below the least float32, which leaves 0.0 and -0.0.
    query = torch.tensor([[1e-30, 1.0, 0.0]])
    match, other = [1e-30, 0.0, 1.0], [-1e-30, 0.0, 1.0]
    for gallery, gallery_labels in (([match, other], [A, B]), ([other, match], [B, A])):
        found = means(
            query,
            [A],
            gallery=torch.tensor(gallery),
            gallery_labels=torch.tensor(gallery_labels),
            ks=(1, 2),
        )
        assert (found["recall_at_1"], found["recall_at_2"]) == (0, 1)


@pytest.mark.parametrize(("match", "other", "recall"), [(100, 170, 1), (170, 100, 0), (80, 100, 1)])
def test_negative_similarities_are_ranked_like_any_others(match, other, recall):
    gallery = on_circle(match, other)
    found = means(on_circle(0), [A], gallery=gallery, gallery_labels=torch.tensor([A, B]))
    assert found["recall_at_1"] == recall


def test_a_query_does_not_retrieve_itself_when_all_others_point_away():
    found = retrieval_metrics(on_circle(0, 180, 170), torch.tensor([A, A, B]), ks=(1, 2))
    assert found.neighbours[0].tolist() == [2, 1]
    assert found.per_query["recall_at_1"].tolist() == [0, 0]


def test_a_single_class_is_found_by_any_embedding():
    found = retrieval_metrics(on_circle(0, 50, 120, 250), torch.full((4,), 7), ks=(1, 3))
    assert set(found.means().values()) == {1.0}
    assert found.num_lone == 0


def test_lone_classes_ask_nothing_but_stay_in_the_gallery_and_are_counted():
    # B at 10 degrees is the nearest of both items of A.
    found = retrieval_metrics(on_circle(0, 10, 40, 200), torch.tensor([A, B, A, 5]), ks=(1, 2))
    assert found.queries.tolist() == [0, 2]
    assert found.labels.tolist() == [A, A]
    assert found.num_lone == 2
    assert found.means()["recall_at_1"] == 0
    assert found.means()["recall_at_2"] == 1


def test_r_may_be_larger_than_the_number_of_neighbours_kept():
    # A three times at 0 and twice at 90 degrees, B twice at 30; R is 4 for A and 1 for B.
    # A at 0: A A B B (A A): R-precision 1/2, MAP@R (1 + 1) / 4.
    # A at 90: A B B A (A A): R-precision 1/2, MAP@R (1 + 2/4) / 4.
    # B: B: 1 and 1.
    found = retrieval_metrics(
        on_circle(0, 0, 0, 90, 90, 30, 30),
        torch.tensor([A, A, A, A, A, B, B]),
        num_neighbours=1,
        ks=(1,),
    )
    assert found.neighbours.shape == (7, 1)
    assert found.per_query["r_precision"].tolist() == [0.5] * 5 + [1, 1]
    assert found.per_query["map_at_r"].tolist() == [0.5] * 3 + [0.375] * 2 + [1, 1]


def test_queries_without_their_class_in_the_gallery_are_left_out_and_counted():
    # Classes 3 (between those of the gallery), -1 (below them) and 9 (above them) are missing.
    found = retrieval_metrics(
        on_circle(0, 5, 10, 15, 90),
        torch.tensor([2, 3, -1, 9, 4]),
        gallery=on_circle(3, 95, 20),
        gallery_labels=torch.tensor([2, 4, 4]),
        ks=(1, 3),
    )
    assert found.queries.tolist() == [0, 4]
    assert found.labels.tolist() == [2, 4]
    assert found.num_lone == 3
    assert found.neighbours.tolist() == [[0, 2, 1], [1, 2, 0]]
    assert set(found.means().values()) == {1.0}


def test_a_gallery_item_equal_to_the_query_counts():
    found = means(
        on_circle(0, 90), [A, B], gallery=on_circle(0, 90), gallery_labels=torch.tensor([A, B])
    )
    assert found["recall_at_1"] == 1


def test_relevant_items_are_counted_for_any_labels():
    gallery_labels = torch.tensor([HIGH, -5, HIGH, LOW, 3])
    labels = torch.tensor([LOW, HIGH, 4, -6, 3, HIGH - 1, LOW + 1])
    assert count_relevant(labels, gallery_labels).tolist() == [1, 2, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["queries", "gallery"])
def test_embeddings_that_are_not_finite_are_refused(value, where):
    good, bad = on_circle(0, 90), on_circle(0, 90)
    bad[1, 0] = value
    queries, gallery = (bad, good) if where == "queries" else (good, bad)
    with pytest.raises(ValueError, match="NaN or infinity"):
        means(queries, [A, B], gallery=gallery, gallery_labels=torch.tensor([A, B]))


def test_more_neighbours_than_there_are_others_are_refused():
    embeddings, labels = on_circle(0, 10, 20), torch.tensor([A, A, A])
    retrieval_metrics(embeddings, labels, ks=(2,))
    with pytest.raises(ValueError, match="Recall@3 needs at least 3 items.*there are 2"):
        retrieval_metrics(embeddings, labels, ks=(1, 3))
    gallery = {"gallery": embeddings, "gallery_labels": labels}
    retrieval_metrics(embeddings, labels, ks=(3,), **gallery)
    with pytest.raises(ValueError, match="Recall@4 needs at least 4 items.*there are 3"):
        retrieval_metrics(embeddings, labels, ks=(4,), **gallery)


def test_a_set_of_lone_classes_is_refused():
    with pytest.raises(ValueError, match="no query has a relevant item"):
        means(on_circle(0, 10), [A, B])


KS = (1, 2, 5, 20)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_classes", [3, 12, 40], ids=["large", "middling", "many lone"])
def test_matches_the_reference_among_many_ties(num_classes, seed):
    embeddings, labels = with_ties(60, num_classes, seed)
    found = retrieval_metrics(embeddings, labels, ks=KS)
    expected = reference_metrics(embeddings, labels, embeddings, labels, KS, same_set=True)
    for name, values in found.per_query.items():
        assert values.tolist() == pytest.approx(expected[name]), name
    assert found.per_query.keys() == expected.keys()
    assert len(found.queries) + found.num_lone == 60


@pytest.mark.parametrize("seed", range(4))
def test_matches_the_reference_among_many_ties_with_a_gallery(seed):
    embeddings, labels = with_ties(90, 15, seed)
    (queries, gallery), (asked, held) = embeddings.split([30, 60]), labels.split([30, 60])
    found = retrieval_metrics(queries, asked, gallery=gallery, gallery_labels=held, ks=KS)
    expected = reference_metrics(queries, asked, gallery, held, KS, same_set=False)
    for name, values in found.per_query.items():
        assert values.tolist() == pytest.approx(expected[name]), name


@pytest.mark.parametrize("separate", [False, True], ids=["one set", "query and gallery"])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_pytorch_metric_learning_where_there_are_no_ties(separate, seed):
    embeddings, labels = without_ties(seed=seed)
    theirs = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    if separate:
        (queries, gallery), (asked, held) = embeddings.split([30, 60]), labels.split([30, 60])
        ours = retrieval_metrics(queries, asked, gallery=gallery, gallery_labels=held).means()
        expected = theirs.get_accuracy(queries, asked, gallery, held)
    else:
        ours = retrieval_metrics(embeddings, labels).means()
        expected = theirs.get_accuracy(embeddings, labels)
    assert ours["recall_at_1"] == pytest.approx(expected["precision_at_1"], rel=1e-5)
    assert ours["r_precision"] == pytest.approx(expected["r_precision"], rel=1e-5)
    assert ours["map_at_r"] == pytest.approx(expected["mean_average_precision_at_r"], rel=1e-5)


def assert_same(one, other, order=None):
    for name, values in one.per_query.items():
        expected = other.per_query[name]
        torch.testing.assert_close(values, expected if order is None else expected[order])


def test_the_order_of_the_items_does_not_matter():
    embeddings, labels = with_ties(60, 6, seed=9)  # no lone class
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    one = retrieval_metrics(embeddings, labels)
    assert_same(retrieval_metrics(embeddings[order], labels[order]), one, order)


def test_a_rotation_does_not_matter():
    embeddings, labels = without_ties()
    noise = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rotation = torch.linalg.qr(noise).Q
    turned = (embeddings.double() @ rotation).float()
    assert_same(retrieval_metrics(turned, labels), retrieval_metrics(embeddings, labels))


def test_the_names_of_the_classes_do_not_matter():
    embeddings, labels = with_ties(60, 6, seed=3)
    names = torch.tensor([HIGH, -1, LOW, 2**40, 0, -(2**62)])
    assert_same(retrieval_metrics(embeddings, names[labels]), retrieval_metrics(embeddings, labels))


@pytest.mark.parametrize("similarities", [1, 7 * 60, 59 * 60])
def test_the_size_of_a_chunk_does_not_matter(similarities):
    embeddings, labels = with_ties(60, 20, seed=4)
    whole = retrieval_metrics(embeddings, labels)
    chunked = retrieval_metrics(embeddings, labels, memory_mib=8 * similarities / 2**20)
    assert_same(chunked, whole)
    assert torch.equal(chunked.queries, whole.queries)
    assert chunked.neighbours.shape == whole.neighbours.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_float_type_are_taken(dtype):
    embeddings, labels = with_ties(60, 6, seed=5)  # exact in every type
    assert_same(
        retrieval_metrics(embeddings.to(dtype), labels), retrieval_metrics(embeddings, labels)
    )


def test_neighbours_come_nearest_first_without_the_query_and_with_other_classes_first():
    embeddings, labels = with_ties(60, 6, seed=6)
    found = retrieval_metrics(embeddings, labels, num_neighbours=100)

    assert found.neighbours.shape == (60, 59)
    for query, row in zip(found.queries.tolist(), found.neighbours, strict=True):
        others = [item for item in range(60) if item != query]
        assert sorted(row.tolist()) == others
        similarity = embeddings[row] @ embeddings[query]
        match = labels[row] == labels[query]
        ranking = list(zip((-similarity).tolist(), match.tolist(), strict=True))
        assert ranking == sorted(ranking)


def test_recall_grows_with_the_number_of_neighbours():
    embeddings, labels = without_ties()
    found = retrieval_metrics(embeddings, labels, ks=(1, 2, 4, 8, 16, 89)).per_query
    recalls = torch.stack([found[f"recall_at_{k}"] for k in (1, 2, 4, 8, 16, 89)])
    assert (recalls[1:] >= recalls[:-1]).all()
    assert (recalls[-1] == 1).all()
    assert 0 < recalls[0].mean() < recalls[2].mean() < 1


def test_no_value_leaves_the_unit_interval_and_map_never_exceeds_r_precision():
    found = retrieval_metrics(*without_ties()).per_query
    for values in found.values():
        assert values.min() >= 0 and values.max() <= 1
    assert (found["map_at_r"] <= found["r_precision"] + 1e-6).all()
