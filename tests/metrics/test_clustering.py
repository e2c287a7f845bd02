"""k-means and mutual information by hand, and k-means against scikit-learn's."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from dmlkit.metrics import clustering
from dmlkit.metrics.clustering import clustering_metrics, kmeans

HIGH = torch.iinfo(torch.int64).max
LOG_2, LOG_3 = math.log(2), math.log(3)


def column(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


def blobs(count=400, num_blobs=8, dim=16, spread=0.6, seed=0):
    """Overlapping Gaussian blobs around random centres, and their numbers."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_blobs
    centres = torch.randn(num_blobs, dim, generator=generator)
    return centres[labels] + spread * torch.randn(count, dim, generator=generator), labels


def separated_blobs():
    return blobs(count=60, num_blobs=3, dim=4, spread=0.01)


def lloyd(points, centroids, iterations):
    """Run the algorithm below ``kmeans`` from given centroids."""
    buffer = torch.empty(7, len(centroids))
    return clustering._lloyd(points, centroids.clone(), iterations, buffer)


def same_partition(one, other):
    return normalized_mutual_info_score(one, other) == pytest.approx(1)


# k-means


def test_two_pairs_by_hand():
    # Pairs {0, 2} and {10, 14}: centroids 1 and 12, objective 1 + 1 + 4 + 4. Any two points lead
    # there: from 0 and 2, {0} {2, 10, 14} -> 0 and 8.67, {0, 2} {10, 14}.
    found = kmeans(column(0, 2, 10, 14), 2)
    assert sorted(found.centroids.flatten().tolist()) == pytest.approx([1, 12])
    assert found.objective == pytest.approx(10)
    assert found.assignments[0] == found.assignments[1] != found.assignments[2]
    assert found.assignments[2] == found.assignments[3]


def test_the_iterations_of_a_line_by_hand():
    points, centroids = column(0, 1, 2, 9), column(0, 1)
    # Assigned {0} {1, 2, 9} (the points 1 and 2 are at most as near to 0); moved to 0 and 4;
    # assigned {0, 1} {9} and 2, as near to both, to the first: 0 + 1 + 4 + 25 = 30.
    assignments, moved, done, objective = lloyd(points, centroids, 1)
    assert moved.flatten().tolist() == [0, 4]
    assert (assignments.tolist(), done, objective) == ([0, 0, 0, 1], 1, 30)
    # Moved to 1 and 9: 1 + 0 + 1 + 0 = 2, and nothing changes any more.
    assignments, moved, done, objective = lloyd(points, centroids, 9)
    assert moved.flatten().tolist() == [1, 9]
    assert (assignments.tolist(), done, objective) == ([0, 0, 0, 1], 2, 2)


def test_one_cluster_lies_at_the_mean():
    # Mean (2, 1); squared distances 5, 5, 4, 4... of (0, 0), (4, 2), (2, 3), (2, -1).
    points = torch.tensor([[0.0, 0.0], [4.0, 2.0], [2.0, 3.0], [2.0, -1.0]])
    found = kmeans(points, 1)
    assert found.centroids.tolist() == [[2, 1]]
    assert found.assignments.tolist() == [0, 0, 0, 0]
    assert found.objective == 18


def test_as_many_clusters_as_points_leave_no_distance():
    points, _ = blobs()
    found = kmeans(points, len(points))
    assert found.objective == pytest.approx(0, abs=1e-9)
    assert found.assignments.unique().tolist() == list(range(len(points)))
    torch.testing.assert_close(found.centroids[found.assignments], points)


def test_separated_blobs_are_found():
    points, labels = separated_blobs()
    found = kmeans(points, 3, restarts=10)
    assert same_partition(found.assignments, labels)
    for number in range(3):
        mean = points[labels == number].mean(0)
        own = found.assignments[labels == number][0]
        torch.testing.assert_close(found.centroids[own], mean)


def test_an_empty_cluster_gets_the_farthest_points_each_once():
    # All four points are nearest to 0, so the other two centroids are empty. Farthest from 0 are
    # 9 and then -7. From 0, 9 and -7: {0, 1} {9} {-7}, means 1/2, 9, -7, objective 1/4 + 1/4.
    points, centroids = column(1, -7, 0, 9), column(0, 50, 60)
    assignments, moved, _, objective = lloyd(points, centroids, 1)
    assert assignments.tolist() == [0, 2, 0, 1]
    assert moved.flatten().tolist() == [0.75, 9, -7]  # the mean of all four, and the two
    assert lloyd(points, centroids, 5)[3] == 0.5
    assert objective == 0.0625 + 0.5625


def test_an_empty_cluster_gets_the_point_far_from_its_centroid_and_not_from_the_origin():
    # {0, -4} {10, 13} {}: -4 lies 4 from 0, 13 lies 3 from 10. From -2, 11.5 and -4: 0 goes to
    # -2, -4 to -4, and the objective is 4 + 0 + 2.25 + 2.25.
    points, centroids = column(0, -4, 10, 13), column(0, 10, 100)
    assignments, moved, _, objective = lloyd(points, centroids, 1)
    assert moved.flatten().tolist() == [-2, 11.5, -4]
    assert assignments.tolist() == [0, 2, 1, 1]
    assert objective == 8.5


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6])
def test_fewer_distinct_points_than_clusters(k):
    # Three times (1, 2) and three times (5, 5).
    points = torch.tensor([[1.0, 2.0], [5.0, 5.0]]).repeat(3, 1)
    found = kmeans(points, k)
    assert found.objective == pytest.approx(0 if k > 1 else 6 * 2.5**2)
    assert found.centroids.isfinite().all()
    if k > 1:
        torch.testing.assert_close(found.centroids[found.assignments], points)


def test_coincident_points_are_one_cluster():
    found = kmeans(torch.full((6, 3), 0.1), 2)
    assert found.objective == pytest.approx(0, abs=1e-12)
    assert len(found.assignments.unique()) == 1


@pytest.mark.parametrize("k", [2, 8, 40, 150])
def test_agrees_with_scikit_learn_from_the_same_centroids(k):
    points, _ = blobs()
    initial = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(k))[:k]]
    theirs = KMeans(
        k, init=initial.double().numpy(), n_init=1, algorithm="lloyd", max_iter=100, tol=0
    ).fit(points.double().numpy())
    assignments, centroids, _, objective = lloyd(points, initial, 100)
    assert objective == pytest.approx(theirs.inertia_, rel=1e-5)
    assert assignments.tolist() == theirs.labels_.tolist()
    expected = torch.from_numpy(theirs.cluster_centers_).float()
    torch.testing.assert_close(centroids, expected, rtol=1e-4, atol=1e-5)


def test_each_point_has_the_nearest_centroid_and_the_objective_adds_up():
    points, _ = blobs()
    for iterations in range(1, 12):  # at the end few centroids move, and only they are looked at
        found = kmeans(points, 30, iterations=iterations)
        distance = torch.cdist(points.double(), found.centroids.double())
        nearest = distance.min(dim=1)
        assert torch.equal(found.assignments, nearest.indices)
        assert found.objective == pytest.approx(nearest.values.square().sum().item(), rel=1e-5)


def test_the_objective_never_grows_with_iterations():
    points, _ = blobs()
    values = [kmeans(points, 40, iterations=iterations).objective for iterations in range(1, 15)]
    assert all(later <= earlier for earlier, later in zip(values, values[1:], strict=False))
    assert values[-1] < values[0]


def test_the_initial_centroids_are_distinct_points(monkeypatch):
    initial = []
    monkeypatch.setattr(
        clustering, "_lloyd", lambda p, c, i, b: (initial.append(c), c, c, 1, 0.0)[1:]
    )
    kmeans(column(*range(-10, 11)), 21, restarts=2)  # the mean is 0
    # In units of 8, the power of two below the largest.
    assert sorted((8 * initial[0]).flatten().tolist()) == list(range(-10, 11))
    assert initial[0].tolist() != initial[1].tolist()


def test_it_stops_when_nothing_changes():
    points, _ = blobs()
    long = kmeans(points, 8, iterations=500)
    assert long.iterations < 500
    exact = kmeans(points, 8, iterations=long.iterations)
    assert torch.equal(long.centroids, exact.centroids)
    means = torch.stack([points[long.assignments == number].mean(0) for number in range(8)])
    torch.testing.assert_close(long.centroids, means)


def test_restarts_differ_and_the_least_objective_is_kept():
    points, _ = blobs()
    found = kmeans(points, 20, restarts=6, iterations=5)
    assert len(set(found.objectives)) == 6
    assert found.objective == min(found.objectives)
    distance = (points - found.centroids[found.assignments]).square().sum().item()
    assert distance == pytest.approx(found.objective, rel=1e-5)
    for restarts in range(1, 6):
        fewer = kmeans(points, 20, restarts=restarts, iterations=5)
        assert fewer.objectives == found.objectives[:restarts]


def test_a_seed_fixes_the_result_whatever_was_drawn_before():
    points, _ = blobs()
    one = kmeans(points, 20, seed=3)
    torch.manual_seed(99)
    other = kmeans(points, 20, seed=3)
    assert torch.equal(one.assignments, other.assignments)
    assert torch.equal(one.centroids, other.centroids)
    assert one.objectives == other.objectives
    assert kmeans(points, 20, seed=4).objectives != one.objectives


@pytest.mark.parametrize("rows", [1, 7, 399, 400])
def test_the_size_of_a_chunk_does_not_matter(rows, monkeypatch):
    points, _ = blobs()
    whole = kmeans(points, 12)
    monkeypatch.setattr(clustering, "CHUNK_ROWS", rows)
    chunked = kmeans(points, 12)
    assert torch.equal(chunked.assignments, whole.assignments)
    assert chunked.objective == pytest.approx(whole.objective, rel=1e-6)


def test_the_scores_stay_within_the_memory(monkeypatch):
    held = []
    monkeypatch.setattr(
        clustering, "_lloyd", lambda p, c, i, buffer: (held.append(buffer), c, c, 1, 0.0)[1:]
    )
    points, _ = blobs(count=3000)
    for k in (2, 600, 3000):
        kmeans(points, k, memory_mib=1)
        assert held[-1].shape == (min(1024, 2**20 // (4 * k)), k)
        kmeans(points, k, memory_mib=100)
        assert held[-1].shape == (1024, k)
    kmeans(torch.zeros(300_000, 1), 300_000, memory_mib=1)
    assert held[-1].shape == (1, 300_000)


def test_a_common_offset_does_not_matter():
    points, _ = blobs()
    points = (points * 64).round() / 64  # exact after the shift as well
    one, other = kmeans(points, 12), kmeans(points + 4096, 12)
    assert torch.equal(one.assignments, other.assignments)
    assert other.objective == pytest.approx(one.objective, rel=1e-4)
    torch.testing.assert_close(other.centroids, one.centroids + 4096)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_points_of_any_float_type_are_taken(dtype):
    points, _ = blobs()
    points = (points * 8).round() / 8  # exact in every type
    one, other = kmeans(points, 12), kmeans(points.to(dtype), 12)
    assert other.centroids.dtype == torch.float32
    assert other.assignments.dtype == torch.int64
    assert torch.equal(one.assignments, other.assignments)


def test_the_points_are_left_as_they_are_and_need_no_gradient():
    points, _ = blobs()
    points.requires_grad_()
    before = points.detach().clone()
    assert not kmeans(points, 5).centroids.requires_grad
    assert torch.equal(points, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k = 0 clusters of 4 points; choose k in 1..4"),
        ({"k": 5}, "k = 5 clusters of 4 points; choose k in 1..4"),
        ({"iterations": 0}, "iterations = 0 should be above 0"),
        ({"restarts": 0}, "restarts = 0 should be above 0"),
        ({"memory_mib": 0}, "memory_mib = 0 should be above 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        kmeans(column(1, 2, 3, 4), **({"k": 2} | options))


@pytest.mark.parametrize("size", [1e-30, 1e30, 3e38])
def test_the_size_of_the_points_does_not_matter(size):
    points, _ = blobs()
    points = points / points.abs().max()
    found, scaled = kmeans(points, 8), kmeans(points * size, 8)
    assert torch.equal(scaled.assignments, found.assignments)
    assert scaled.objective == pytest.approx(found.objective * size**2, rel=1e-5)
    torch.testing.assert_close(scaled.centroids / size, found.centroids)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_repeats_itself_and_agrees_with_the_cpu():
    points, _ = blobs(count=5000, num_blobs=40)
    one, other = kmeans(points.cuda(), 40), kmeans(points.cuda(), 40)
    assert one.assignments.is_cuda and one.centroids.is_cuda
    assert torch.equal(one.assignments, other.assignments)
    assert torch.equal(one.centroids, other.centroids)
    first = [kmeans(points.to(device), 40, iterations=1) for device in ("cpu", "cuda")]
    assert first[0].objective == pytest.approx(first[1].objective, rel=1e-4)
    assert one.objective == pytest.approx(kmeans(points, 40).objective, rel=0.02)


# Mutual information


def scores(clusters, labels, monkeypatch):
    """Return the metrics of clusters given by hand."""
    found = clustering.Clusters(torch.tensor(clusters), torch.empty(0), 0.0, (0.0,), 1)
    monkeypatch.setattr(clustering, "kmeans", lambda *_, **__: found)
    return clustering_metrics(torch.zeros(len(labels), 2), torch.tensor(labels))


@pytest.mark.parametrize("clusters", [[0, 0, 1, 1], [1, 1, 0, 0]])
def test_the_classes_themselves_score_one(clusters, monkeypatch):
    found = scores(clusters, [5, 5, 3, 3], monkeypatch)
    assert (found["nmi_arithmetic"], found["nmi_geometric"]) == pytest.approx((1, 1))
    assert found["ami"] == pytest.approx(1)


@pytest.mark.parametrize("clusters", [[0, 0, 0, 0], [0, 1, 0, 1]], ids=["one", "independent"])
def test_clusters_that_say_nothing_score_zero(clusters, monkeypatch):
    found = scores(clusters, [0, 0, 1, 1], monkeypatch)
    assert (found["nmi_arithmetic"], found["nmi_geometric"]) == pytest.approx((0, 0), abs=1e-12)
    # For [0, 1, 0, 1] the expected information is above its own: E = log 2 / 3 (next test), so
    # AMI = (0 - log 2 / 3) / (log 2 - log 2 / 3) = -1/2. With one cluster E = 0 and AMI = 0.
    assert found["ami"] == pytest.approx(0 if len(set(clusters)) == 1 else -1 / 2, abs=1e-12)


def test_two_of_three_classes_merged_by_hand(monkeypatch):
    # Classes {0, 1} {2, 3} {4, 5}, clusters {0, 1, 2, 3} {4, 5}. The classes tell the cluster, so
    # I = H(clusters) = log 3 - (2/3) log 2, and H(classes) = log 3.
    found = scores([0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2], monkeypatch)
    information = LOG_3 - 2 / 3 * LOG_2
    assert found["nmi_arithmetic"] == pytest.approx(2 * information / (information + LOG_3))
    assert found["nmi_geometric"] == pytest.approx(math.sqrt(information / LOG_3))
    # Of the 15 places of the small cluster 3 are a class, with I as above; the other 12 take one
    # image of two classes, I = H(clusters) - H(clusters | classes) = H(clusters) - (2/3) log 2.
    expected = information - 12 / 15 * 2 / 3 * LOG_2
    ami = (information - expected) / ((information + LOG_3) / 2 - expected)
    assert found["ami"] == pytest.approx(ami)


def test_the_chance_level_of_four_images_by_hand(monkeypatch):
    # Of the three ways to pair four images one is the classes (NMI 1) and two are independent of
    # them (NMI 0), so chance is 1/3 (E = log 2 / 3); the mean of many permutations comes near.
    monkeypatch.setattr(clustering, "PERMUTATIONS", 600)
    found = scores([0, 0, 1, 1], [0, 0, 1, 1], monkeypatch)
    assert found["nmi_arithmetic_of_random_labels"] == pytest.approx(1 / 3, abs=0.06)
    assert found["nmi_geometric_of_random_labels"] == pytest.approx(1 / 3, abs=0.06)


def test_the_geometric_mean_never_scores_less(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    clusters = torch.randint(3, (60,), generator=generator).tolist()
    found = scores(clusters, torch.randint(20, (60,), generator=generator).tolist(), monkeypatch)
    assert found["nmi_geometric"] > found["nmi_arithmetic"]
    chance = found["nmi_geometric_of_random_labels"], found["nmi_arithmetic_of_random_labels"]
    assert chance[0] > chance[1]


def test_separated_classes_score_one_whatever_their_names():
    points, labels = separated_blobs()
    for names in ([0, 1, 2], [HIGH, -HIGH, 7]):
        found = clustering_metrics(points, torch.tensor(names)[labels])
        assert found["nmi_arithmetic"] == pytest.approx(1)
        assert found["nmi_geometric"] == pytest.approx(1)
        assert found["ami"] == pytest.approx(1)
        assert found["nmi_arithmetic_of_random_labels"] < 0.2
    assert list(found) == [
        "nmi_arithmetic",
        "nmi_arithmetic_of_random_labels",
        "nmi_geometric",
        "nmi_geometric_of_random_labels",
        "ami",
    ]


def test_random_embeddings_of_tiny_classes_have_a_high_nmi_and_no_ami():
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(600, 8, generator=generator), dim=1)
    by_classes = []
    for num_classes in (6, 60, 200):
        found = clustering_metrics(embeddings, torch.arange(600) % num_classes, restarts=1)
        assert found["nmi_arithmetic"] == pytest.approx(
            found["nmi_arithmetic_of_random_labels"], abs=0.02
        )
        assert abs(found["ami"]) < 0.05
        by_classes.append(found["nmi_arithmetic"])
    assert by_classes[0] < 0.05 < by_classes[1] < 0.7 < by_classes[2]


def test_the_metrics_repeat_themselves_and_take_their_options():
    points, labels = blobs(num_blobs=20, spread=1.5)
    one = clustering_metrics(points, labels, seed=1)
    assert clustering_metrics(points, labels, seed=1) == one
    assert clustering_metrics(points, labels, seed=3) != one
    assert clustering_metrics(points, labels, seed=1, restarts=1) != one  # not the best of five
    clusters = kmeans(points, 20, iterations=2, restarts=3, seed=1).assignments
    found = clustering_metrics(points, labels, iterations=2, restarts=3, seed=1)
    expected = normalized_mutual_info_score(labels, clusters, average_method="geometric")
    assert found["nmi_geometric"] == pytest.approx(expected)


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="all labels are 7; NMI needs at least two classes"):
        clustering_metrics(column(0, 1, 2), torch.tensor([7, 7, 7]))


def test_classes_of_one_image_each_are_refused():
    with pytest.raises(ValueError, match="each class has a single image"):
        clustering_metrics(column(0, 1, 2), torch.arange(3))
