"""Made-up experiments with a known truth, on which intervals and verdicts are tried.

The score of a query is the sum of the method's true mean, a part that belongs to the class, one of
the replicate (class split and seed), one of this class in this replicate, and the query's own.
"""

from collections.abc import Mapping
from math import sqrt

import numpy as np

from dmlkit.intervals import Scores

SCHEMES = ("new classes", "random halves", "the same classes")


def draw_splits(
    scheme: str, n: int, num_classes: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Return for each of n replicates which classes (C,) it tests.

    Args:
        scheme: ``new classes`` for each replicate, as drawn data has them; ``random halves`` of
            twice as many; or ``the same classes``, where only the seed changes.
        n: replicates.
        num_classes: classes tested by each, C.
        generator: source of randomness.
    """
    if scheme == "new classes":
        return [np.arange(num_classes) + num_classes * replicate for replicate in range(n)]
    if scheme == "random halves":
        return [generator.permutation(2 * num_classes)[:num_classes] for _ in range(n)]
    return [np.arange(num_classes)] * n


def draw_scores(
    mean: float,
    splits: list[np.ndarray],
    spread: Mapping[str, float],
    generator: np.random.Generator,
    *,
    per_class: int = 10,
) -> list[Scores]:
    """Return the metric ``score`` of each query, replicate by replicate.

    Args:
        mean: the method's true mean.
        splits: classes that each replicate tests.
        spread: standard deviations of the part of a ``class``, a ``replicate``, ``both`` and a
            ``query`` in the *difference* of two methods; a method has 1/sqrt(2) of each, as two
            vary independently.
        generator: source of randomness.
        per_class: queries per class.
    """
    part = {name: size / sqrt(2) for name, size in spread.items()}
    of_class = generator.normal(0, part["class"], 1 + max(tested.max() for tested in splits))
    scores = []
    for tested in splits:
        of_replicate = generator.normal(0, part["replicate"])
        of_both = generator.normal(0, part["both"], len(tested))
        expected = mean + of_class[tested] + of_replicate + of_both
        values = generator.normal(expected[:, None], part["query"], (len(tested), per_class))
        labels = np.arange(len(tested)).repeat(per_class)
        scores.append({"labels": labels, "classes": tested.astype(str), "score": values.ravel()})
    return scores
