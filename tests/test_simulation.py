"""Made-up experiments have the structure and the spreads that were asked for."""

import numpy as np
import pytest

from dmlkit.simulation import SCHEMES, draw_scores, draw_splits

NONE = {"class": 0.0, "replicate": 0.0, "both": 0.0, "query": 0.0}


def draw(scheme, spread, *, n=4, classes=200, per_class=5):
    generator = np.random.default_rng(0)
    splits = draw_splits(scheme, n, classes, generator)
    return draw_scores(0.5, splits, NONE | spread, generator, per_class=per_class)


def shared(replicates):
    first, second = (set(replicate["classes"]) for replicate in replicates[:2])
    return len(first & second) / len(first)


def test_replicates_share_none_half_or_all_of_their_classes():
    found = [shared(draw(scheme, {})) for scheme in SCHEMES]
    assert found == [0, pytest.approx(0.5, abs=0.1), 1]


def test_without_spread_every_query_scores_the_mean():
    for replicate in draw("random halves", {}):
        assert (replicate["score"] == 0.5).all()
        assert np.bincount(replicate["labels"]).tolist() == [5] * 200


@pytest.mark.parametrize("part", NONE)
def test_each_part_varies_by_its_spread_and_over_what_it_belongs_to(part):
    replicates = draw("the same classes", {part: 0.1}, n=60)
    scores = np.stack([r["score"].reshape(200, 5) for r in replicates])  # (n, C, per class)
    # The spread is that of a difference of two methods, of which this is one.
    assert scores.std() == pytest.approx(0.1 / np.sqrt(2), rel=0.2)
    constant_over = {"class": (0, 2), "replicate": (1, 2), "both": (2,), "query": ()}[part]
    for axis in range(3):
        varies = scores.std(axis=axis).max() > 1e-9
        assert varies == (axis not in constant_over)


def test_a_class_has_the_same_part_in_all_replicates():
    by_name = {}
    for replicate in draw("random halves", {"class": 0.1}, per_class=1):
        for name, score in zip(replicate["classes"], replicate["score"], strict=True):
            assert by_name.setdefault(name, score) == score
