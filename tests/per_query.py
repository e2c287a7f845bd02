"""Made-up per-query results, for the tests of intervals and of verdicts."""

import numpy as np

# Spreads of a difference that make classes matter more than replicates.
SPREAD = {"class": 0.14, "replicate": 0.007, "both": 0.042, "query": 0.14}


def replicates(means, *, spread=0.0, classes=8, per_class=5, seed=0, shared=False):
    """Return per-query results of one method, a replicate for each mean."""
    generator = np.random.default_rng(seed)
    labels = np.arange(classes).repeat(per_class)
    return [
        {
            "labels": labels,
            "classes": np.array([f"{0 if shared else i}-{c}" for c in range(classes)]),
            "map_at_r": mean + spread * generator.standard_normal(len(labels)),
        }
        for i, mean in enumerate(means)
    ]
