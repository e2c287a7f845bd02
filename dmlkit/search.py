"""The same search for every method: random trials, judged on held-out training classes.

No test class is seen. Each trial trains once per fold, and its score at a step is the mean over
folds of a metric on the classes held out (as Musgrave et al., 2020, do, who search by Bayesian
optimisation). The setting and the number of steps are chosen together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb, nan
from typing import Any, TypeVar

import numpy as np
from scipy.stats import uniform
from scipy.stats.distributions import rv_frozen
from sklearn.model_selection import ParameterSampler

Settings = dict[str, Any]
Fold = TypeVar("Fold")


@dataclass(frozen=True)
class Trial:
    """One setting and how it did on held-out classes.

    Args:
        settings: value of each parameter searched.
        scores: step to mean score over folds; a single NaN where training diverged.
    """

    settings: Settings
    scores: dict[int, float]

    @property
    def best_step(self) -> int:
        """The step of the best score, the earliest of equals."""
        return max(self.scores, key=lambda step: (np.nan_to_num(self.scores[step], nan=-1), -step))

    @property
    def score(self) -> float:
        """The best score; -1 where every step diverged."""
        return float(np.nan_to_num(self.scores[self.best_step], nan=-1))


def between(low: float, high: float) -> rv_frozen:
    """Return the uniform distribution from ``low`` to ``high``."""
    return uniform(low, high - low)


def check_search(trials: int, folds: int, selection: str) -> None:
    """Refuse what the parameters of a chapter cannot mean together.

    Args:
        trials: ``SEARCH_TRIALS``; 0 for no search.
        folds: ``SEARCH_FOLDS``.
        selection: ``SELECTION``.

    Raises:
        ValueError: if there are not 1 to 4 folds, or if the search and something else would both
            choose the step.
    """
    if not 1 <= folds <= 4:
        raise ValueError(f"SEARCH_FOLDS={folds} should be 1 to 4")
    if trials and selection != "last":
        raise ValueError("a search chooses the step as well; with SEARCH_TRIALS set SELECTION=last")


def draw_settings(
    defaults: Settings, space: Mapping[str, Any], count: int, *, seed: int
) -> list[Settings]:
    """Return ``count`` settings to try: the defaults, then random ones.

    Args:
        defaults: value of each parameter.
        space: for each parameter searched, a list of values or a distribution of SciPy's.
        count: number of trials, the defaults included.
        seed: random settings of one seed are the first of a longer list of the same seed.
    """
    drawn = ParameterSampler(space, max(count - 1, 0), random_state=seed)
    return [defaults, *(defaults | _plain(settings) for settings in drawn)][:count]


def run_trial(
    settings: Settings,
    folds: Sequence[Fold],
    train: Callable[[Settings, Fold], dict[int, float]],
) -> Trial:
    """Train with ``settings`` on each fold and return the mean scores.

    Args:
        settings: see ``draw_settings``.
        folds: whatever ``train`` needs of each: training classes, and others held out of them.
        train: returns step to score of one fold; a FloatingPointError says that it diverged.
    """
    found = []
    for fold in folds:
        try:
            found.append(train(settings, fold))
        except FloatingPointError:
            return Trial(settings, {0: nan})
    steps = set.intersection(*(set(scores) for scores in found))
    return Trial(settings, {s: float(np.mean([f[s] for f in found])) for s in sorted(steps)})


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the best score, the first of equals.

    Raises:
        ValueError: no trials, or all of them diverged.
    """
    if not trials or max(trial.score for trial in trials) < 0:
        raise ValueError("every trial diverged; lower the learning rates of the search")
    return max(trials, key=lambda trial: trial.score)


def expected_best(scores: Sequence[float]) -> np.ndarray:
    """Return the expected best of 1, 2 ... n of the n ``scores``, drawn without replacement.

    Says how a result depends on the number of trials (Dodge et al., 2019, "Show your work").
    """
    ordered = np.sort(np.asarray(scores, dtype=float))
    n = len(ordered)
    # The i-th smallest is the best of k if the other k - 1 come from the i - 1 below it.
    chance = [[comb(i, k - 1) / comb(n, k) for i in range(n)] for k in range(1, n + 1)]
    return np.array(chance) @ ordered


def _plain(settings: Mapping[str, Any]) -> Settings:
    """Return settings as Python numbers of four digits, which a row can hold and a person read."""
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in settings.items()
    }
