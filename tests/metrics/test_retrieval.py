"""Retrieval metrics by hand, against a slow reference with exact ties, and the library's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import average_precision_score
from torch.profiler import ProfilerActivity, profile

from dmlkit.metrics import count_relevant, retrieval_metrics
from dmlkit.metrics.retrieval import RECALL_LEVELS

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
    with pytest.raises(ValueError, match="no query has a relevant item"):
        means(on_circle(0), [A], gallery=on_circle(0, 10), gallery_labels=torch.tensor([B, B]))


FIVE, FIVE_LABELS = on_circle(0, 10, 45, 30, 100), torch.tensor([A, A, A, B, B])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": FIVE[:1], "labels": FIVE_LABELS[:1]}, "there are 0"),
        (
            {"gallery": FIVE.repeat(1, 2), "gallery_labels": FIVE_LABELS},
            r"embeddings \(5, 2\) and gallery \(5, 4\) do not correspond",
        ),
        ({"ks": (1, 5)}, "Recall@5 needs at least 5 items to retrieve, there are 4"),
        ({"distance": "l2"}, "no distance 'l2'; choose cosine or euclidean"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    arguments = {"embeddings": FIVE, "labels": FIVE_LABELS, "ks": (1,)} | change
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**arguments)


def test_a_zero_vector_has_no_cosine_and_is_named():
    holed = FIVE.clone()
    holed[3] = 0
    with pytest.raises(ValueError, match="row 3 of the embeddings is a zero vector"):
        retrieval_metrics(holed, FIVE_LABELS, ks=(1,))
    gallery = {"gallery": holed, "gallery_labels": FIVE_LABELS}
    with pytest.raises(ValueError, match="row 3 of the gallery is a zero vector"):
        retrieval_metrics(FIVE, FIVE_LABELS, ks=(1,), **gallery)
    # Its distance is that of any other point: 0 B, at the origin, sees 100 B at 1 among equals.
    found = retrieval_metrics(holed, FIVE_LABELS, ks=(1, 4), distance="euclidean")
    assert found.per_query["recall_at_4"].tolist() == [1] * 5


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


# --------------------------------------------------------------------------------------------
# Hard inputs: the quick way, the exact way and sorting float64 scores one query at a time agree


def crowd(num_groups, per_group, dim, step, num_classes, seed=0):
    """Unit rows in groups that lie ``step`` apart, in random order, classes mixed."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_groups, dim, generator=generator).repeat_interleave(per_group, dim=0)
    rows = centres + step * torch.randn(centres.shape, generator=generator)
    labels = torch.randint(num_classes, (len(rows),), generator=generator)
    return F.normalize(rows, dim=1)[torch.randperm(len(rows), generator=generator)], labels


def rounded_scores(query, items):
    """Scores by definition: in float64, rounded to 2^-40 and to float32."""
    return ((query.double() * items.double()).sum(dim=1) * 2**40).round().div(2**40).float()


def distances(query, items):
    return -(query.double() - items.double()).norm(dim=1)


def sort_all(queries, labels, gallery=None, gallery_labels=None, score=rounded_scores):
    """Yield per query its place, the score of every rank and whether a match is there."""
    same_set = gallery is None
    items, item_labels = (queries, labels) if same_set else (gallery, gallery_labels)
    for i, query in enumerate(queries):
        scores, matches = score(query, items).numpy(), (item_labels == labels[i]).numpy()
        order = np.lexsort((matches, -scores))  # by score, then False before True
        order = order[order != i] if same_set else order
        if matches[order].any():
            yield i, scores[order], matches[order]


def metrics_of(matches, ks):
    """Of one ranking, by the definitions."""
    relevant, rank = matches.sum(), np.arange(1, len(matches) + 1)
    precision = matches.cumsum() / rank
    return {f"recall_at_{k}": float(matches[:k].any()) for k in ks} | {
        "r_precision": matches[:relevant].sum() / relevant,
        "map_at_r": (precision * matches)[:relevant].sum() / relevant,
        "average_precision": (precision * matches).sum() / relevant,
    }


def assert_ranked_as_sorted(embeddings, labels, score=rounded_scores, **options):
    """Both ways to rank agree with sorting, in every metric and in every neighbour's score."""
    ks, gallery = options["ks"], {k: v for k, v in options.items() if k.startswith("gallery")}
    sort = list(sort_all(embeddings, labels, *gallery.values(), score=score))
    items = gallery.get("gallery", embeddings)
    item_labels = gallery.get("gallery_labels", labels)
    for rank_all in (False, True):
        found = retrieval_metrics(embeddings, labels, rank_all=rank_all, **options)
        assert found.queries.tolist() == [i for i, _, _ in sort]
        expected = [metrics_of(matches, ks) for _, _, matches in sort]
        assert found.per_query.keys() | {"average_precision"} == expected[0].keys()
        for name, values in found.per_query.items():
            assert values.tolist() == pytest.approx([row[name] for row in expected]), name
        # Exact ties in the same class may stand in any order.
        for row, (i, scores, matches) in zip(found.neighbours, sort, strict=True):
            assert len(set(row.tolist())) == len(row)
            np.testing.assert_array_equal(
                score(embeddings[i], items[row]).numpy(), scores[: len(row)]
            )
            assert (item_labels[row] == labels[i]).tolist() == matches[: len(row)].tolist()


@pytest.mark.parametrize("dim", [2, 24, 2048])
@pytest.mark.parametrize("step", [0, 1e-7, 1e-6, 1e-5], ids=["equal", "1e-7", "1e-6", "1e-5"])
def test_near_ties_across_classes_are_ordered_as_in_float64(step, dim):
    embeddings, labels = crowd(20, 10, dim, step, num_classes=30, seed=dim)
    assert_ranked_as_sorted(embeddings, labels, ks=(1, 2, 9, 150))


@pytest.mark.parametrize("dim", [2, 24])
@pytest.mark.parametrize("step", [0, 3e-7, 1e-5])
def test_near_ties_in_a_gallery_are_ordered_as_in_float64(step, dim):
    rows, held = crowd(20, 12, dim, step, num_classes=25, seed=3)
    gallery = {"gallery": rows[60:], "gallery_labels": held[60:]}
    assert_ranked_as_sorted(rows[:60], held[:60], ks=(1, 4, 100, 180), **gallery)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_tiny_galleries_are_listed_whole(count):
    rows, labels = crowd(8, 5, 12, 1e-7, num_classes=3)
    gallery = {"gallery": rows[:count], "gallery_labels": labels[:count]}
    assert_ranked_as_sorted(rows, labels, ks=(1, count), **gallery)


@pytest.mark.parametrize("num_classes", [1, 2])
@pytest.mark.parametrize("step", [0, 1e-7, 1.0])
def test_classes_of_hundreds_are_ordered_as_in_float64(step, num_classes):
    embeddings, labels = crowd(30, 10, 16, step, num_classes)
    assert labels.bincount().min() > 128
    assert_ranked_as_sorted(embeddings, labels, ks=(1, 8))


def test_classes_of_very_different_sizes_are_ordered_as_in_float64():
    # 150 of one class and 50 of two each, with near ties across them, in chunks of seven.
    embeddings, _ = crowd(25, 10, 16, 1e-7, num_classes=1)
    labels = torch.cat([torch.zeros(150, dtype=torch.int64), 1 + torch.arange(100) // 2])
    memory_mib = 7 * 250 * 8 / 2**20
    assert_ranked_as_sorted(embeddings, labels, ks=(1, 10, 100), memory_mib=memory_mib)


def test_a_collapsed_embedding_of_many_items_is_ranked_exactly():
    # Each of 40 classes of 5 has 195 others before its own 4, wherever a list would end.
    found = retrieval_metrics(
        on_circle(33).expand(200, 2), torch.arange(200) % 40, ks=(1, 100, 195, 196), rank_all=True
    )
    # The matches stand at ranks 196 to 199.
    expected = sum(n / (195 + n) for n in range(1, 5)) / 4
    assert found.per_query["average_precision"].tolist() == pytest.approx([expected] * 200)
    quick = retrieval_metrics(
        on_circle(33).expand(200, 2), torch.arange(200) % 40, ks=(1, 100, 195, 196)
    )
    assert quick.means() == {
        "recall_at_1": 0,
        "recall_at_100": 0,
        "recall_at_195": 0,
        "recall_at_196": 1,
        "r_precision": 0,
        "map_at_r": 0,
    }


def test_two_items_find_each_other():
    for rank_all in (False, True):
        found = retrieval_metrics(
            on_circle(0, 180), torch.tensor([A, A]), ks=(1,), rank_all=rank_all
        )
        assert set(found.means().values()) == {1.0}
        assert found.neighbours.tolist() == [[1], [0]]


def line_of_scores(scores):
    """Unit rows whose cosine with the first axis is exactly ``scores``."""
    return torch.stack([scores, (1 - scores.double() ** 2).sqrt().float()], dim=1)


@pytest.mark.parametrize("rank", range(1, 13))
def test_recall_turns_to_one_at_the_rank_of_the_match_and_not_before(rank):
    # For whatever number of items is listed, one neighbour being asked for.
    gallery_labels = torch.full((40,), B)
    gallery_labels[rank - 1] = A
    gallery = {"gallery": line_of_scores(torch.linspace(0.9, -0.9, 40))}
    for k in range(1, 13):
        found = means(
            torch.eye(2)[:1],
            [A],
            **gallery,
            gallery_labels=gallery_labels,
            ks=(k,),
            num_neighbours=1,
        )
        assert found[f"recall_at_{k}"] == float(rank <= k)


def test_equal_items_behind_the_end_of_the_list_come_before_a_match_in_it():
    # One item at 0.9 and twenty at 0.5, one of them the match: its rank is 21, wherever it stands.
    gallery = line_of_scores(torch.tensor([0.9] + [0.5] * 20 + [-0.5] * 9))
    for place in range(1, 21):
        gallery_labels = torch.full((30,), B)
        gallery_labels[place] = A
        found = means(
            torch.eye(2)[:1],
            [A],
            gallery=gallery,
            gallery_labels=gallery_labels,
            ks=(2, 3, 4, 5, 6, 20, 21),
            num_neighbours=1,
        )
        assert [found[f"recall_at_{k}"] for k in (2, 3, 4, 5, 6, 20, 21)] == [0] * 6 + [1]


@pytest.mark.parametrize("ahead", [98, 99, 100])
@pytest.mark.parametrize("steps", [-1, 0, 1, 3], ids=["below", "equal", "above", "far above"])
@pytest.mark.parametrize("k", [20, 100])
def test_a_near_tie_across_rank_k_is_decided_exactly(ahead, steps, k):
    # Others clearly ahead (80 fewer for k = 20), then the match and an other some steps from it.
    ahead -= 100 - k
    match = torch.tensor(0.5)
    other = (match.view(torch.int32) + steps).view(torch.float32)
    scores = torch.cat(
        [torch.linspace(0.6, 0.9, ahead), match[None], other[None], torch.linspace(-0.9, 0.3, 150)]
    )
    gallery_labels = torch.full((len(scores),), B)
    gallery_labels[ahead] = A
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    found = means(
        torch.eye(2)[:1],
        [A],
        gallery=line_of_scores(scores)[order],
        gallery_labels=gallery_labels[order],
        ks=(1, k),
        num_neighbours=1,
    )
    rank = ahead + 1 + (steps >= 0)
    assert found[f"recall_at_{k}"] == float(rank <= k)


@pytest.mark.parametrize("step", [0, 1e-7, 1.0])
def test_recall_at_a_thousand_counts_as_far_as_it_says(step):
    # Classes of two and more, far apart in rank: the first match stands anywhere.
    embeddings, _ = crowd(150, 10, 24, step, num_classes=1, seed=8)
    labels = torch.arange(1500) // 3
    labels[:400] = 500
    ks = (1000, 10, 1, 100, 10, 1499)
    found = retrieval_metrics(embeddings, labels, ks=ks)

    scores = embeddings.double() @ embeddings.double().T
    scores = scores.float().fill_diagonal_(-torch.inf)
    is_match = (labels == labels[:, None]).fill_diagonal_(False)
    best = scores.masked_fill(~is_match, -torch.inf).amax(dim=1, keepdim=True)
    first = 1 + ((scores >= best) & ~is_match).sum(dim=1)
    for k in ks:
        assert torch.equal(found.per_query[f"recall_at_{k}"] == 1, first <= k)
    assert (found.per_query["recall_at_1499"] == 1).all()
    assert 0.2 < found.means()["recall_at_1000"] < 1
    assert list(found.per_query) == [
        *(f"recall_at_{k}" for k in (1000, 10, 1, 100, 1499)),
        "r_precision",
        "map_at_r",
    ]


# --------------------------------------------------------------------------------------------
# Average precision and the precision-recall curve


def test_average_precision_by_hand():
    # Rankings as above: 0 A: A B A B, 10 A: A B A B, 45 A: B A A B, 30 B: A A A B, 100 B: A B A A.
    # Sums over matches: (1/1 + 2/3) / 2 twice, (1/2 + 2/3) / 2, 1/4 and 1/2.
    found = retrieval_metrics(FIVE, FIVE_LABELS, ks=(1,), rank_all=True)
    expected = [5 / 6, 5 / 6, 7 / 12, 1 / 4, 1 / 2]
    assert found.per_query["average_precision"].tolist() == pytest.approx(expected)
    assert found.means()["average_precision"] == pytest.approx(3 / 5)
    assert "average_precision" not in retrieval_metrics(FIVE, FIVE_LABELS, ks=(1,)).per_query


def test_the_precision_recall_curve_by_hand():
    # Interpolated precision, up to recall 1/2 and beyond:
    # A: 1 and 2/3, 1 and 2/3, 2/3 and 2/3 (better than the 1/2 before it); B: 1/4 and 1/2.
    curve = retrieval_metrics(FIVE, FIVE_LABELS, ks=(1,), rank_all=True).precision_at_recall
    half = (1 + 1 + 2 / 3 + 1 / 4 + 1 / 2) / 5
    whole = (3 * 2 / 3 + 1 / 4 + 1 / 2) / 5
    assert curve.dtype == torch.float32
    assert curve.tolist() == pytest.approx([half] * 51 + [whole] * 50)
    assert retrieval_metrics(FIVE, FIVE_LABELS, ks=(1,)).precision_at_recall is None


def test_a_recall_is_reached_by_the_match_that_brings_it_and_not_before():
    # Match, other, match, other, match: precision 1, 2/3, 3/5 at recall 1/3, 2/3 and 1; 0.33 is
    # reached with the first match, 0.34 and 0.66 with the second, 0.67 with the third.
    curve = retrieval_metrics(
        on_circle(0),
        torch.tensor([A]),
        gallery=on_circle(10, 20, 30, 40, 50),
        gallery_labels=torch.tensor([A, B, A, B, A]),
        ks=(1,),
        rank_all=True,
    ).precision_at_recall
    assert curve.tolist() == pytest.approx([1] * 34 + [2 / 3] * 33 + [3 / 5] * 34)


def test_the_precision_recall_curve_against_its_definition():
    embeddings, labels = without_ties(seed=7)
    found = retrieval_metrics(embeddings, labels, rank_all=True)
    curves = []
    for _, _, matches in sort_all(embeddings, labels):
        number = matches.cumsum()
        precision = number / np.arange(1, len(matches) + 1)
        # The best precision at any rank where 100 times the recall is at least the level.
        curves.append(
            [precision[100 * number >= level * number[-1]].max() for level in range(RECALL_LEVELS)]
        )
    expected = np.mean(curves, axis=0)
    np.testing.assert_allclose(found.precision_at_recall.numpy(), expected, rtol=1e-5)
    assert (found.precision_at_recall.diff() <= 0).all()
    assert found.precision_at_recall[0] >= found.means()["recall_at_1"]


def test_the_curve_starts_at_one_where_every_first_neighbour_is_right():
    found = retrieval_metrics(
        on_circle(0, 1, 60, 61, 90), torch.tensor([A, A, B, B, A]), ks=(1,), rank_all=True
    )
    assert found.per_query["recall_at_1"].tolist() == [1, 1, 1, 1, 0]
    rest = retrieval_metrics(
        on_circle(0, 60),
        torch.tensor([A, B]),
        gallery=on_circle(1, 61, 90),
        gallery_labels=torch.tensor([A, B, A]),
        ks=(1,),
        rank_all=True,
    )
    assert rest.precision_at_recall[0] == 1
    assert rest.precision_at_recall[-1] < 1


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_agrees_with_scikit_learn_where_there_are_no_ties(seed):
    embeddings, labels = without_ties(seed=seed)
    found = retrieval_metrics(embeddings, labels, rank_all=True)
    for query, value in zip(found.queries, found.per_query["average_precision"], strict=True):
        others = torch.arange(len(labels)) != query
        score = embeddings[others].double() @ embeddings[query].double()
        expected = average_precision_score(labels[others] == labels[query], score)
        assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("separate", [False, True], ids=["one set", "query and gallery"])
def test_average_precision_agrees_with_pytorch_metric_learning(separate):
    embeddings, labels = without_ties(seed=4)
    split = [30, 60] if separate else [90, 0]
    (queries, gallery), (asked, held) = embeddings.split(split), labels.split(split)
    theirs = AccuracyCalculator(
        include=("mean_average_precision",),
        k=None,  # all
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    searched = {"gallery": gallery, "gallery_labels": held} if separate else {}
    ours = retrieval_metrics(queries, asked, rank_all=True, **searched).means()
    expected = theirs.get_accuracy(queries, asked, *searched.values())
    assert ours["average_precision"] == pytest.approx(expected["mean_average_precision"], rel=1e-5)


# --------------------------------------------------------------------------------------------
# Euclidean distance


def test_euclidean_and_cosine_disagree_by_hand():
    # Of (1, 0): (10, 0) points the same way at distance 9, (1, 1) is turned by 45 at distance 1.
    points = {"gallery": torch.tensor([[10.0, 0], [1, 1]]), "gallery_labels": torch.tensor([A, B])}
    query = torch.tensor([[1.0, 0]])
    assert means(query, [A], **points)["recall_at_1"] == 1
    assert means(query, [A], distance="euclidean", **points)["recall_at_1"] == 0
    assert means(query, [B], distance="euclidean", **points)["recall_at_1"] == 1


def test_euclidean_points_on_a_line_ranked_by_hand():
    # A at 0, 1 and 5, B at 2 and 4.5.
    # 0: A B B A, 1: (A at 0, B at 2 tie) B A B A, 5: B B A A, 2: A A B A, 4.5: A B A A; R 2, 1.
    # AP: (1/1 + 2/4) / 2, (1/2 + 2/4) / 2, (1/3 + 2/4) / 2, 1/3, 1/2.
    points = torch.tensor([0, 1, 5, 2, 4.5])[:, None]
    labels = torch.tensor([A, A, A, B, B])
    found = retrieval_metrics(points, labels, ks=(1, 2), distance="euclidean", rank_all=True)
    assert found.per_query["recall_at_1"].tolist() == [1, 0, 0, 0, 0]
    assert found.per_query["recall_at_2"].tolist() == [1, 1, 0, 0, 1]
    assert found.per_query["average_precision"].tolist() == pytest.approx(
        [3 / 4, 1 / 2, 5 / 12, 1 / 3, 1 / 2]
    )
    assert found.neighbours[2].tolist() == [4, 3, 1, 0]


@pytest.mark.parametrize("separate", [False, True], ids=["one set", "query and gallery"])
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1, 30, 1e6])
def test_euclidean_ranks_like_distances_in_float64(scale, separate):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(150, 12, generator=generator)
    points *= scale * torch.rand(150, 1, generator=generator)  # of all lengths
    labels = torch.randint(20, (150,), generator=generator)
    if separate:
        gallery = {"gallery": points[50:], "gallery_labels": labels[50:]}
        points, labels = points[:50], labels[:50]
    else:
        gallery = {}
    options = {"ks": (1, 5, 90), "distance": "euclidean", **gallery}
    assert_ranked_as_sorted(points, labels, score=distances, **options)
    found = retrieval_metrics(points, labels, num_neighbours=12, **options)
    items = gallery.get("gallery", points)
    expected = torch.cdist(points.double(), items.double())
    expected = expected if separate else expected.fill_diagonal_(torch.inf)
    nearest = expected.topk(12, largest=False).indices
    assert torch.equal(found.neighbours, nearest[found.queries])


@pytest.mark.parametrize("noise", [1e-2, 1.0])
def test_euclidean_sees_past_a_large_common_offset(noise):
    generator = torch.Generator().manual_seed(1)
    points = 1000 + noise * torch.randn(200, 16, generator=generator)
    labels = torch.randint(20, (200,), generator=generator)
    options = {"ks": (1, 5, 150), "distance": "euclidean"}
    assert_ranked_as_sorted(points, labels, score=distances, **options)


@pytest.mark.parametrize("step", [0, 1e-7, 1e-6])
@pytest.mark.parametrize("lengths", [(100, 100), (1, 1000), (1e-3, 1e-3)])
def test_near_ties_of_any_length_are_ordered_alike_by_both_ways(lengths, step):
    rows, labels = crowd(30, 10, 24, step, num_classes=40)
    group = (rows @ rows[:1].T).argsort(dim=0).argsort(dim=0) // 10
    rows = rows * (lengths[0] + (lengths[1] - lengths[0]) * group / 30)
    rows = torch.cat([rows, -rows, torch.zeros(2, 24)])  # with items at their mean
    labels = torch.cat([labels, labels + 1, torch.tensor([0, 0])])
    options = {"ks": (1, 2, 9, 150), "distance": "euclidean"}
    assert_same(
        retrieval_metrics(rows, labels, **options),
        retrieval_metrics(rows, labels, rank_all=True, **options),
    )


@pytest.mark.parametrize("rank_all", [False, True])
def test_distances_that_differ_in_the_eighth_digit_are_told_apart(rank_all):
    # From (1/2, 0) to (1, t): half the squared distance is 1/8 + t^2 / 2, in steps of 3e-8, of
    # which half a squared length, 1/2 + t^2 / 2, would lose every other one in float32.
    height = (6e-8 * torch.arange(20)).sqrt()
    side = torch.stack([torch.ones(20), height], dim=1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    found = retrieval_metrics(
        torch.tensor([[0.5, 0.0]]),
        torch.tensor([1]),  # in a tie of steps 1 and 2, the match, 1, would come last
        gallery=torch.cat([side[order], -side]),  # the other side is far away
        gallery_labels=torch.cat([order % 2, torch.ones(20, dtype=torch.int64)]),
        num_neighbours=20,
        distance="euclidean",
        rank_all=rank_all,
    )
    assert order[found.neighbours[0]].tolist() == list(range(20))


@pytest.mark.parametrize("offset", [1.0, -300.0, 5000.0])
def test_a_translation_does_not_matter_to_euclidean(offset):
    # On a grid of 1/256, where nothing is rounded when it is moved.
    noise = torch.randn(120, 9, generator=torch.Generator().manual_seed(5))
    points = (noise * 256).round() / 256
    labels = torch.arange(120) % 11
    moved = points + offset * torch.tensor([1.0, -1, 0] * 3)
    one = retrieval_metrics(points, labels, distance="euclidean")
    other = retrieval_metrics(moved, labels, distance="euclidean")
    assert_same(other, one)
    assert torch.equal(other.neighbours, one.neighbours)


def test_euclidean_copies_are_ties_at_any_offset():
    # Each of 40 points is there twice, once in the class of the query: other, match, other ...
    generator = torch.Generator().manual_seed(2)
    points = 50 + torch.randn(40, 7, generator=generator)
    queries = 50 + torch.randn(30, 7, generator=generator)
    for rank_all in (False, True):
        found = retrieval_metrics(
            queries,
            torch.zeros(30, dtype=torch.int64),
            gallery=torch.cat([points, points]),
            gallery_labels=torch.arange(80) // 40,
            ks=(1, 2),
            distance="euclidean",
            rank_all=rank_all,
        )
        assert found.per_query["recall_at_1"].sum() == 0
        assert found.per_query["recall_at_2"].sum() == 30
        assert found.per_query["r_precision"].tolist() == [1 / 2] * 30


def test_a_collapsed_embedding_scores_zero_under_euclidean():
    for value in (0.0, 0.3, 1000.0):
        found = means(torch.full((120, 5), value), [0, 1, 2, 3] * 30, distance="euclidean")
        assert set(found.values()) == {0.0}


@pytest.mark.parametrize("dim", [2, 6, 100])
def test_euclidean_and_cosine_agree_on_unit_rows(dim):
    embeddings, labels = without_ties(dim=dim, seed=1)
    one = retrieval_metrics(embeddings, labels, rank_all=True)
    other = retrieval_metrics(embeddings, labels, distance="euclidean", rank_all=True)
    assert_same(other, one)
    assert torch.equal(other.neighbours, one.neighbours)
    assert torch.equal(other.precision_at_recall, one.precision_at_recall)


@pytest.mark.parametrize("separate", [False, True], ids=["one set", "query and gallery"])
def test_euclidean_agrees_with_pytorch_metric_learning(separate):
    embeddings, labels = without_ties(seed=6)
    embeddings = embeddings * (1 + torch.arange(90)[:, None] % 7)  # lengths 1 to 7
    split = [30, 60] if separate else [90, 0]
    (queries, gallery), (asked, held) = embeddings.split(split), labels.split(split)
    theirs = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(LpDistance(normalize_embeddings=False)),
    )
    searched = {"gallery": gallery, "gallery_labels": held} if separate else {}
    ours = retrieval_metrics(queries, asked, distance="euclidean", **searched).means()
    expected = theirs.get_accuracy(queries, asked, *searched.values())
    assert ours["recall_at_1"] == pytest.approx(expected["precision_at_1"], rel=1e-5)
    assert ours["r_precision"] == pytest.approx(expected["r_precision"], rel=1e-5)
    assert ours["map_at_r"] == pytest.approx(expected["mean_average_precision_at_r"], rel=1e-5)


# --------------------------------------------------------------------------------------------
# What is taken and what comes back


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_the_length_of_a_row_does_not_matter_to_cosine(scale):
    embeddings, labels = without_ties()
    lengths = scale * (1 + torch.arange(90)[:, None] % 5)
    assert_same(
        retrieval_metrics(embeddings * lengths, labels), retrieval_metrics(embeddings, labels)
    )
    gallery = {"gallery": embeddings, "gallery_labels": labels}
    long_gallery = {"gallery": embeddings * lengths, "gallery_labels": labels}
    assert_same(
        retrieval_metrics(embeddings, labels, **long_gallery),
        retrieval_metrics(embeddings * lengths, labels, **gallery),
    )


@pytest.mark.parametrize("excess", [1e-5, 1e-3, 0.1])
def test_rows_of_nearly_unit_length_are_normalised(excess):
    # The other is at a greater angle and longer, so that its product with the query is greater.
    angle = 0.5 * excess**0.5
    items = torch.tensor([[1.0, 0.0], [torch.cos(torch.tensor(angle)), angle]])
    gallery = F.normalize(items, dim=1) * torch.tensor([[1.0], [1 + excess]])
    query = torch.tensor([[1.0, 0.0]])
    assert (gallery @ query.T).argmax() == 1
    found = means(query, [A], gallery=gallery, gallery_labels=torch.tensor([A, B]))
    assert found["recall_at_1"] == 1


@pytest.mark.parametrize("rank_all", [False, True])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_nothing_given_is_changed(distance, rank_all):
    embeddings, labels = with_ties(60, 6, seed=5)
    embeddings = 2 * embeddings
    given = {
        "embeddings": embeddings.clone(),
        "labels": labels.clone(),
        "gallery": embeddings.clone(),
        "gallery_labels": labels.clone(),
    }
    retrieval_metrics(**given, distance=distance, rank_all=rank_all)
    for name, value in given.items():
        assert torch.equal(value, labels if "labels" in name else embeddings), name


@pytest.mark.parametrize("rank_all", [False, True])
def test_results_are_plain_tensors_of_the_documented_types(rank_all):
    embeddings, labels = without_ties()
    found = retrieval_metrics(embeddings.requires_grad_(), labels, rank_all=rank_all)
    assert found.queries.dtype == found.labels.dtype == found.neighbours.dtype == torch.int64
    tensors = [found.queries, found.labels, found.neighbours, *found.per_query.values()]
    assert all(t.device.type == "cpu" and not t.requires_grad for t in tensors)
    for values in found.per_query.values():
        assert values.dtype == torch.float32
        assert values.shape == found.queries.shape
    assert (found.precision_at_recall is not None) == rank_all


def test_labels_of_32_bits_are_taken():
    embeddings, labels = with_ties(60, 6, seed=5)
    names = torch.tensor([2**31 - 1, -(2**31), 0, -1, 7, 100000])[labels]
    one = retrieval_metrics(embeddings, names)
    assert_same(retrieval_metrics(embeddings, names.int()), one)


@pytest.mark.parametrize("rank_all", [False, True])
@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, 1), (7, 7), (89, 89), (90, 89)])
def test_as_many_neighbours_as_asked_for_or_as_there_are(asked, given, rank_all):
    embeddings, labels = without_ties()
    found = retrieval_metrics(embeddings, labels, num_neighbours=asked, rank_all=rank_all)
    nearest = (embeddings @ embeddings.T).fill_diagonal_(-torch.inf).topk(given).indices
    assert torch.equal(found.neighbours, nearest[found.queries])


@pytest.mark.parametrize("rank_all", [False, True])
def test_a_gallery_that_is_the_queries_counts_every_query_itself(rank_all):
    embeddings, labels = without_ties()
    found = retrieval_metrics(
        embeddings, labels, gallery=embeddings, gallery_labels=labels, rank_all=rank_all
    )
    assert found.num_lone == 0
    assert found.neighbours[:, 0].tolist() == list(range(90))
    assert found.means()["recall_at_1"] == 1


@pytest.mark.parametrize("third", [5.0, 10.0])
@pytest.mark.parametrize("rank_all", [False, True])
def test_equal_distances_tie_under_euclidean(third, rank_all):
    found = retrieval_metrics(
        torch.zeros(1, 1),
        torch.tensor([A]),
        gallery=torch.tensor([[1.0], [-1], [third]]),
        gallery_labels=torch.tensor([A, B, B]),
        ks=(1, 2),
        distance="euclidean",
        rank_all=rank_all,
    )
    assert (found.means()["recall_at_1"], found.means()["recall_at_2"]) == (0, 1)


def test_signs_rank_alike_under_cosine_and_euclidean():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(20, (400,), generator=generator)
    centres = torch.randn(20, 16, generator=generator)
    codes = (centres[labels] + torch.randn(400, 16, generator=generator)).sign()
    one = retrieval_metrics(codes, labels)
    other = retrieval_metrics(codes, labels, distance="euclidean")
    for name, values in one.per_query.items():
        torch.testing.assert_close(other.per_query[name], values)


@pytest.mark.parametrize("exponent", [-100, -70, 62, 66, 90])
def test_the_scale_does_not_matter_to_euclidean(exponent):
    points = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 9
    one = retrieval_metrics(points, labels, distance="euclidean")
    other = retrieval_metrics(points * 2.0**exponent, labels, distance="euclidean")
    assert torch.equal(one.neighbours, other.neighbours)


@pytest.mark.parametrize("far", [1e5, 1e6])
def test_a_far_item_does_not_blur_the_others_under_euclidean(far):
    found = retrieval_metrics(
        torch.zeros(1, 1),
        torch.tensor([A]),
        gallery=torch.tensor([[1.0], [2], [far]]),
        gallery_labels=torch.tensor([A, B, B]),
        ks=(1,),
        distance="euclidean",
    )
    assert found.means()["recall_at_1"] == 1


def test_a_column_of_a_table_serves_as_labels():
    table = torch.tensor([[A, 7], [A, 8], [B, 9], [B, 9]])
    found = retrieval_metrics(torch.eye(4) + 1, table[:, 0], ks=(1,))
    assert found.labels.tolist() == [A, A, B, B]


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_come_back_as_int64(dtype):
    found = retrieval_metrics(torch.eye(2), torch.zeros(2, dtype=dtype), ks=(1,))
    assert found.labels.dtype == torch.int64


def test_float64_beyond_float32_is_refused():
    with pytest.raises(ValueError, match="infinity"):
        retrieval_metrics(torch.eye(2).double() * 1e200, torch.tensor([A, A]), ks=(1,))


def test_a_length_decides_nothing_and_changes_nothing_for_others():
    # The match and an item of another class in one direction, their lengths almost 1.
    query, match, other = on_circle(0), on_circle(10), on_circle(10)
    far = 3 * on_circle(90)
    for factor in (1 + 8e-7, 1 - 8e-7, 3.0):
        for rest in (torch.zeros(0, 2), far):
            gallery = torch.cat([match * factor, other, rest])
            labels = torch.tensor([A, B, B])[: len(gallery)]
            found = retrieval_metrics(
                query, torch.tensor([A]), gallery=gallery, gallery_labels=labels, ks=(1,)
            )
            assert found.means()["recall_at_1"] == 0  # a tie, which counts against the model


@pytest.mark.parametrize("rank_all", [False, True], ids=["nearest", "all"])
@pytest.mark.parametrize("num_classes", [2, 500])
def test_memory_stays_near_its_bound_for_large_and_small_classes(num_classes, rank_all):
    embeddings = F.normalize(torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)))
    labels = torch.arange(2000) % num_classes
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        retrieval_metrics(embeddings, labels, ks=(1,), rank_all=rank_all, memory_mib=4)
    held, most = 0, 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert most < 8 * 2**20


def test_copies_tie_though_their_score_is_almost_nothing():
    # Orthogonal to every query: sums of cancelling terms leave noise of 1e-17, not zero.
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(512, 512, generator=generator, dtype=torch.float64)).Q
    queries, item = basis[:101].float(), basis[[200]].float()
    found = retrieval_metrics(
        queries,
        torch.full((101,), A),
        gallery=item.repeat(6, 1),
        gallery_labels=torch.tensor([A, B, A, B, B, A]),
        ks=(1, 3, 4),
        rank_all=True,
    ).means()
    assert [found[f"recall_at_{k}"] for k in (1, 3, 4)] == [0, 0, 1]


def test_the_precision_that_training_allows_is_neither_used_nor_changed():
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        embeddings, labels = without_ties()
        found = retrieval_metrics(embeddings, labels)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(allowed)
    assert_same(found, retrieval_metrics(embeddings, labels))
