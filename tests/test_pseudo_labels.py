"""Clusters as labels, how they agree with classes, and mining by similarity: by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from dmlkit import pseudo_labels
from dmlkit.losses import ContrastiveLoss, SimilarityDistributionLoss, response_similarity
from dmlkit.metrics import Clusters, kmeans
from dmlkit.pseudo_labels import agreement, cluster, mine_by_similarity, purity

LOG_2, LOG_3 = math.log(2), math.log(3)
HIGH = torch.iinfo(torch.int64).max

# Cosines of four images.
SIMILARITY = torch.tensor(
    [[1.0, 0.7, 0.4, 0.1], [0.7, 1.0, 0.3, 0.2], [0.4, 0.3, 1.0, 0.5], [0.1, 0.2, 0.5, 1.0]]
)


def unit_blobs(count=90, num_blobs=6, spread=0.05):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % num_blobs
    centres = torch.randn(num_blobs, 8, generator=generator)
    noise = spread * torch.randn(count, 8, generator=generator)
    return F.normalize(centres[labels] + noise), labels


def masks(positives, negatives, size=4):
    """Return the symmetric masks of pairs given once."""
    found = torch.zeros(2, size, size, dtype=torch.bool)
    for mask, pairs in zip(found, (positives, negatives), strict=True):
        for one, other in pairs:
            mask[one, other] = mask[other, one] = True
    return found.tolist()


def as_lists(pairs):
    return [mask.tolist() for mask in pairs]


# --- Clusters


def test_labels_are_those_of_k_means():
    embeddings, _ = unit_blobs()
    found = cluster(embeddings, 6, seed=3)
    expected = kmeans(embeddings, 6, iterations=20, restarts=5, seed=3).assignments
    assert torch.equal(found.labels, expected)
    assert found.sizes.tolist() == expected.bincount().tolist()
    assert found.labels.dtype == found.sizes.dtype == torch.int64


def test_separated_groups_are_found():
    embeddings, truth = unit_blobs()
    found = cluster(embeddings, 6, seed=0, restarts=20)
    assert agreement(found.labels, truth) == pytest.approx({"purity": 1, "nmi": 1, "ami": 1})
    assert found.sizes.tolist() == [15] * 6


def test_numbers_have_no_gaps_where_a_cluster_has_no_image(monkeypatch):
    assignments = torch.tensor([4, 1, 4, 4, 1, 7])
    found = Clusters(assignments, torch.empty(9, 2), 0.0, (0.0,), 1)
    monkeypatch.setattr(pseudo_labels, "kmeans", lambda *_, **__: found)
    found = cluster(torch.zeros(6, 2), 9, seed=0)
    assert found.labels.tolist() == [1, 0, 1, 1, 0, 2]
    assert found.sizes.tolist() == [2, 3, 1]


def test_fewer_distinct_embeddings_than_clusters():
    found = cluster(torch.eye(2).repeat(3, 1), 4, seed=0)
    assert sorted(found.labels.unique().tolist()) == [0, 1]
    assert found.sizes.tolist() == [3, 3]


def test_a_seed_fixes_the_labels_and_the_options_reach_k_means():
    embeddings, _ = unit_blobs(spread=2.0)
    one = cluster(embeddings, 12, seed=1)
    assert torch.equal(cluster(embeddings, 12, seed=1).labels, one.labels)
    assert not torch.equal(cluster(embeddings, 12, seed=2).labels, one.labels)
    short = cluster(embeddings, 12, seed=1, iterations=1, restarts=1).labels
    assert torch.equal(short, kmeans(embeddings, 12, iterations=1, seed=1).assignments)


def test_more_clusters_than_images_are_refused():
    with pytest.raises(ValueError, match="k = 5 clusters of 4 points; choose k in 1..4"):
        cluster(torch.eye(4), 5, seed=0)


# --- Agreement with the classes


def test_agreement_of_six_images_by_hand():
    # Clusters {0, 1, 2, 3} {4, 5} of classes {0, 1} {2, 3} {4, 5}: 2 + 2 of 6 in the majority.
    # The classes tell the cluster: I = H(clusters) = log 3 - (2/3) log 2, H(classes) = log 3.
    labels, truth = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 2, 2])
    information = LOG_3 - 2 / 3 * LOG_2
    # Of 15 places of the small cluster 3 are a class; the others have I less by (2/3) log 2.
    chance = information - 12 / 15 * 2 / 3 * LOG_2
    expected = {
        "purity": 4 / 6,
        "nmi": 2 * information / (information + LOG_3),
        "ami": (information - chance) / ((information + LOG_3) / 2 - chance),
    }
    assert agreement(labels, truth) == pytest.approx(expected)


def test_the_names_of_clusters_and_classes_do_not_matter():
    labels, truth = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0, 2])
    found = agreement(labels, truth)
    assert found["purity"] == pytest.approx(4 / 6)  # one of two, two of three, one of one
    renamed = torch.tensor([HIGH, -HIGH, 5])
    assert agreement(renamed[labels], truth) == pytest.approx(found)
    assert agreement(labels, renamed[truth]) == pytest.approx(found)


def test_purity_counts_the_majority_image_by_image():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (200,), generator=generator)
    truth = torch.randint(5, (200,), generator=generator)
    majority = 0
    for number in range(7):
        classes = truth[labels == number].tolist()
        majority += max(classes.count(name) for name in set(classes))
    assert purity(labels, truth) == majority / 200
    assert purity(labels, truth) != purity(truth, labels)


def test_purity_is_one_for_clusters_of_one_image_and_the_largest_class_for_a_single_one():
    truth = torch.tensor([3, 3, 3, 8, 9])
    assert purity(torch.arange(5), truth) == 1
    assert purity(torch.zeros(5, dtype=torch.long), truth) == 3 / 5


def test_random_labels_have_purity_and_mutual_information_but_none_beyond_chance():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(300) % 60
    found = agreement(torch.randint(60, (300,), generator=generator), truth)
    assert found["purity"] > 0.2 and found["nmi"] > 0.5
    assert abs(found["ami"]) < 0.05


@pytest.mark.parametrize("compare", [purity, agreement])
def test_labels_that_are_no_classes_of_images_are_refused(compare):
    labels = torch.tensor([0, 1, 1])
    with pytest.raises(ValueError, match="truth .* do not correspond"):
        compare(labels, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="labels .* do not correspond"):
        compare(labels[:, None], labels)
    with pytest.raises(ValueError, match=r"truth are torch.float32; give integers"):
        compare(labels, labels.float())
    with pytest.raises(ValueError, match="labels are empty"):
        compare(labels[:0], labels[:0])


# --- Mining


def test_pairs_at_or_beyond_a_threshold_by_hand():
    # 0.7 and 0.5 are at least 0.5; 0.1 and 0.2 at most 0.2; 0.4 and 0.3 are neither.
    found = mine_by_similarity(SIMILARITY, 0.2, 0.5)
    assert as_lists(found) == masks([(0, 1), (2, 3)], [(0, 3), (1, 3)])
    assert all(mask.dtype == torch.bool for mask in found)


def test_with_clusters_positives_share_one_and_negatives_do_not():
    # Of the pairs above, 0 and 1 are of one cluster and 2 and 3 of two; 0 and 3 of one, 1 and 3
    # of one too, so neither is negative.
    found = mine_by_similarity(SIMILARITY, 0.2, 0.5, labels=torch.tensor([6, 6, 2, 6]))
    assert as_lists(found) == masks([(0, 1)], [])
    found = mine_by_similarity(SIMILARITY, 0.2, 0.5, labels=torch.tensor([6, 2, 9, 9]))
    assert as_lists(found) == masks([(2, 3)], [(0, 3), (1, 3)])


def test_nothing_pairs_with_itself_though_equal_images_pair():
    # Thresholds that take in the similarity of 1 for a positive, and for a negative.
    similarity = torch.ones(3, 3)
    every_pair = masks([(0, 1), (0, 2), (1, 2)], [], size=3)
    assert as_lists(mine_by_similarity(similarity, 0.2, 0.5)) == every_pair
    assert as_lists(mine_by_similarity(similarity, 1.0, 2.0)) == every_pair[::-1]


@pytest.mark.parametrize(
    "thresholds",
    [(0.5, 0.5), (0.6, 0.3), (math.nan, 0.5), (0.2, math.nan), (math.nan, math.nan)],
    ids=str,
)
def test_without_thresholds_apart_there_are_no_pairs(thresholds):
    for labels in (None, torch.tensor([0, 0, 1, 1])):
        for lower, upper in (thresholds, map(torch.tensor, thresholds)):
            found = mine_by_similarity(SIMILARITY, lower, upper, labels=labels)
            assert as_lists(found) == masks([], [])


def test_a_nan_keeps_its_pairs_so_that_the_loss_shows_it():
    embeddings, labels = unit_blobs(count=6, num_blobs=2)
    embeddings[3, 0] = torch.nan
    pairs = mine_by_similarity(response_similarity(embeddings), 0.2, 0.5, labels=labels)
    assert pairs[0][3].sum() == 2 and pairs[1][3].sum() == 3
    assert ContrastiveLoss()(embeddings, labels, pairs=pairs).isnan()


def test_pairs_serve_a_loss_and_have_no_gradient():
    embeddings, labels = unit_blobs(count=12, num_blobs=3, spread=0.4)
    embeddings.requires_grad_()
    distribution_loss = SimilarityDistributionLoss()
    distribution_loss(embeddings, labels)
    upper, lower = distribution_loss.thresholds
    similarity = response_similarity(embeddings)

    pairs = mine_by_similarity(similarity, lower, upper)
    ContrastiveLoss()(embeddings, labels, pairs=pairs).backward()

    assert not (pairs[0] & pairs[1]).any()
    for mask, of_kind in zip(pairs, (similarity >= upper, similarity <= lower), strict=True):
        assert 0 < mask.sum() < 12 * 11
        assert torch.equal(mask, of_kind & ~torch.eye(12, dtype=torch.bool))
    in_a_pair = (pairs[0] | pairs[1]).any(dim=1)
    assert (embeddings.grad[~in_a_pair] == 0).all()


def test_an_unsuitable_shape_is_refused():
    with pytest.raises(ValueError, match=r"similarity has shape \(3, 4\); give \(B, B\)"):
        mine_by_similarity(torch.ones(3, 4), 0.2, 0.5)
    for shape in ((3,), (4, 1)):
        with pytest.raises(ValueError, match="one cluster id for each of the 4 rows"):
            mine_by_similarity(SIMILARITY, 0.2, 0.5, labels=torch.zeros(shape, dtype=torch.long))
