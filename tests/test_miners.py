"""Pair masks by hand, against a loop over the rule, and against pytorch-metric-learning."""

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import miners as reference_miners

from dmlkit.miners import all_pairs, multi_similarity_miner, pairs_or_all

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
