"""Pair masks and draws by hand, against the rules, and against pytorch-metric-learning."""

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import miners as reference_miners
from scipy.stats import chisquare

from dmlkit.miners import (
    all_pairs,
    distance_weighted_triplets,
    multi_similarity_miner,
    pairs_or_all,
)

# Classes of two, three and (class 3) a single member.
LABELS = torch.tensor([0, 1, 2, 0, 2, 1, 2, 3])


def unit_rows(rows, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64))


def to_masks(indices, size):
    """Turn pytorch-metric-learning's (a1, p, a2, n) into two (size, size) masks."""
    positives = torch.zeros(size, size, dtype=torch.bool)
    negatives = positives.clone()
    positives[indices[0], indices[1]] = True
    negatives[indices[2], indices[3]] = True
    return positives, negatives


def test_all_pairs_of_three_items_by_hand():
    positives, negatives = all_pairs(torch.tensor([4, 9, 4]))
    assert positives.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert negatives.tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert positives.dtype == negatives.dtype == torch.bool


def test_all_pairs_and_self_cover_the_square_once():
    positives, negatives = all_pairs(LABELS)
    cover = positives.int() + negatives.int() + torch.eye(len(LABELS), dtype=torch.int)
    assert (cover == 1).all()


def test_all_pairs_rejects_labels_that_are_not_one_id_per_row():
    with pytest.raises(ValueError, match=r"shape \(4, 1\)"):
        all_pairs(torch.zeros(4, 1, dtype=torch.long))


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_multi_similarity_miner_follows_the_rule_pair_by_pair(epsilon):
    embeddings = unit_rows(len(LABELS), 4)
    similarity = embeddings @ embeddings.T
    positives, negatives = multi_similarity_miner(embeddings, LABELS, epsilon=epsilon)

    for a in range(len(LABELS)):
        p_all = [i for i in range(len(LABELS)) if i != a and LABELS[i] == LABELS[a]]
        n_all = [i for i in range(len(LABELS)) if LABELS[i] != LABELS[a]]
        if not p_all:
            p_kept, n_kept = [], []
        else:
            nearest_negative = max(similarity[a, n] for n in n_all)
            farthest_positive = min(similarity[a, p] for p in p_all)
            p_kept = [p for p in p_all if similarity[a, p] - epsilon < nearest_negative]
            n_kept = [n for n in n_all if similarity[a, n] + epsilon > farthest_positive]
        assert positives[a].nonzero().flatten().tolist() == p_kept
        assert negatives[a].nonzero().flatten().tolist() == n_kept


@pytest.mark.parametrize("seed", range(3))
def test_multi_similarity_miner_agrees_with_pytorch_metric_learning(seed):
    embeddings = unit_rows(24, 8, seed)
    labels = torch.arange(24) % 5

    ours = multi_similarity_miner(embeddings, labels, epsilon=0.1)
    reference = reference_miners.MultiSimilarityMiner(epsilon=0.1)(embeddings, labels)

    for mask, expected in zip(ours, to_masks(reference, 24), strict=True):
        assert mask.any() and not mask.all()
        assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [0]],
    ids=["one class", "all singletons", "one image"],
)
def test_an_anchor_without_positives_or_without_negatives_keeps_no_pair(labels):
    labels = torch.tensor(labels)
    positives, negatives = multi_similarity_miner(unit_rows(len(labels), 3), labels)
    assert not positives.any() and not negatives.any()


def test_equal_embeddings_do_not_make_an_item_its_own_positive():
    positives, negatives = multi_similarity_miner(torch.ones(4, 1), torch.tensor([0, 0, 1, 1]))
    expected_positives, expected_negatives = all_pairs(torch.tensor([0, 0, 1, 1]))
    assert torch.equal(positives, expected_positives)
    assert torch.equal(negatives, expected_negatives)


def test_given_pairs_pass_through_and_missing_ones_are_filled_in():
    given = multi_similarity_miner(unit_rows(len(LABELS), 4), LABELS)
    assert pairs_or_all(LABELS, given) is given
    for mask, expected in zip(pairs_or_all(LABELS, None), all_pairs(LABELS), strict=True):
        assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    "bad",
    [torch.ones(8, dtype=torch.bool), torch.ones(8, 8), torch.ones(7, 8, dtype=torch.bool)],
    ids=["a row that would broadcast", "floats", "not square"],
)
def test_a_mask_of_another_shape_or_type_is_refused(bad):
    good = torch.ones(8, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"give bool of shape \(8, 8\)"):
        pairs_or_all(LABELS, (good, bad))


def rows_at(distances, dim):
    """Return two equal rows, and further ones at the given distances from them."""
    cosine = 1 - torch.tensor(distances, dtype=torch.float64) ** 2 / 2
    rows = torch.zeros(len(distances) + 2, dim, dtype=torch.float64)
    rows[:, 0] = torch.cat([torch.ones(2, dtype=torch.float64), cosine])
    rows[2:, 1] = (1 - cosine**2).sqrt()
    labels = torch.tensor([0, 0, *range(1, len(distances) + 1)])
    return rows, labels


def count_draws(rows, labels, draws=2000, seed=0, **options):
    """Return how often each item is the negative, for anchor 0 and for anchor 1."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(2, len(labels))
    for _ in range(draws):
        anchor, positive, negative = distance_weighted_triplets(
            rows, labels, generator=generator, **options
        )
        assert anchor.tolist() == [0, 1] and positive.tolist() == [1, 0]
        counts[[0, 1], negative] += 1
    return counts


@pytest.mark.parametrize("dim", [2, 3, 8])
@pytest.mark.parametrize(("nearest", "farthest"), [(0.5, 1.4), (0.9, 1.99)])
def test_negatives_are_drawn_by_one_over_the_density_of_their_distance(dim, nearest, farthest):
    distances = [0.2, 0.5, 0.95, 1.1, 1.25, 1.39, 1.41, 1.7]
    rows, labels = rows_at(distances, dim)

    counts = count_draws(rows, labels, nearest=nearest, farthest=farthest)

    weights = []
    for distance in distances:
        d = max(distance, nearest)
        density = d ** (dim - 2) * (1 - d**2 / 4) ** ((dim - 3) / 2)
        weights.append(1 / density if distance < farthest else 0.0)
    expected = torch.tensor(weights, dtype=torch.float64) / sum(weights) * 2000
    in_reach = expected > 0
    assert (counts[:, :2] == 0).all()
    for of_anchor in counts[:, 2:]:
        assert (of_anchor[~in_reach] == 0).all()
        assert chisquare(of_anchor[in_reach].double(), expected[in_reach]).pvalue > 0.01


def test_each_positive_pair_draws_one_negative_independently_of_the_others():
    rows = unit_rows(12, 4)
    labels = torch.tensor([0] * 6 + [1] * 6)
    generator, draws, alike = torch.Generator().manual_seed(0), 400, 0
    weight = torch.zeros(12, 12)
    for _ in range(draws):
        anchor, positive, negative = distance_weighted_triplets(rows, labels, generator=generator)
        assert torch.equal(torch.stack([anchor, positive], 1), all_pairs(labels)[0].nonzero())
        assert (labels[negative] != labels[anchor]).all()
        negative = negative.view(12, 5)
        weight.scatter_add_(1, negative, torch.full((12, 5), 1 / (5 * draws)))
        alike += (negative[:, 0] == negative[:, 4]).float() / draws

    # Two independent draws coincide as often as the sum of the squared probabilities says.
    assert (alike - (weight**2).sum(dim=1)).abs().max() < 0.08
    assert ((weight**2).sum(dim=1) < 0.9).any()


def test_an_anchor_with_all_negatives_out_of_reach_draws_from_them_uniformly():
    rows, labels = rows_at([1.45, 1.5, 1.9], 8)
    counts = count_draws(rows, labels)
    assert (counts[:, :2] == 0).all()
    for of_anchor in counts:
        assert chisquare(of_anchor[2:]).pvalue > 0.01


@pytest.mark.parametrize("dim", [2, 3, 512, 4096])
def test_weights_neither_overflow_nor_underflow(dim):
    # Beside the weight of the first, those of the others are below any number of 32 bits.
    rows, labels = rows_at([0.7, 1.2, 1.39], dim)
    counts = count_draws(rows.float(), labels, draws=20)
    assert counts.sum() == 40
    if dim > 3:
        assert (counts[:, 2] == 20).all()


@pytest.mark.parametrize("dim", [2, 3])
def test_opposite_rows_can_be_in_reach(dim):
    # In three dimensions q(2) is not 0 but 0^0 times 2, and so the weights are as 2 to 1.
    rows, labels = rows_at([1.0, 2.0], dim)
    counts = count_draws(rows, labels, draws=50, farthest=2.1)
    assert (counts[:, 2] > 0).all()
    assert ((counts[:, 3] > 0) == (dim == 3)).all()


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [0]],
    ids=["one class", "all singletons", "one image"],
)
def test_an_anchor_without_positives_or_without_negatives_has_no_triplet(labels):
    triplets = distance_weighted_triplets(unit_rows(len(labels), 3), torch.tensor(labels))
    assert [index.shape for index in triplets] == [(0,)] * 3


def test_draws_keep_to_the_given_pairs():
    positives = torch.zeros(8, 8, dtype=torch.bool)
    negatives = positives.clone()
    positives[2, 4] = negatives[2, 1] = positives[5, 1] = negatives[7, 0] = True
    triplets = distance_weighted_triplets(unit_rows(8, 3), LABELS, pairs=(positives, negatives))
    assert [index.tolist() for index in triplets] == [[2], [4], [1]]


def test_equal_generators_draw_equal_triplets():
    rows, labels = unit_rows(24, 4), torch.arange(24) % 4
    one, other, third = (
        distance_weighted_triplets(rows, labels, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one[2], other[2])
    assert not torch.equal(one[2], third[2])


def test_a_nan_item_is_drawn_for_certain():
    rows = unit_rows(8, 3)
    rows[7] = torch.nan
    anchor, _, negative = distance_weighted_triplets(rows, LABELS)
    assert len(anchor) == 10 and (negative == 7).all()
