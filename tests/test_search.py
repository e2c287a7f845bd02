"""Every method gets the same search, and no test class has a part in it."""

from math import nan

import numpy as np
import pytest
from scipy.stats import loguniform

from dmlkit.search import (
    Trial,
    best_of,
    between,
    check_search,
    draw_settings,
    expected_best,
    run_trial,
)

DEFAULTS = {"LEARNING_RATE": 0.001, "margin": 0.2, "IMAGES_PER_CLASS": 4}
SPACE = {"LEARNING_RATE": loguniform(1e-5, 1e-2), "IMAGES_PER_CLASS": [2, 4, 8]}


def test_the_first_trial_is_the_default_and_the_others_are_random_within_the_space():
    drawn = draw_settings(DEFAULTS, SPACE, 50, seed=0)
    assert drawn[0] == DEFAULTS and len(drawn) == 50
    rates = [settings["LEARNING_RATE"] for settings in drawn[1:]]
    assert min(rates) >= 1e-5 and max(rates) <= 1e-2
    assert np.median(np.log10(rates)) == pytest.approx(-3.5, abs=0.5)
    assert {settings["IMAGES_PER_CLASS"] for settings in drawn} == {2, 4, 8}
    assert {settings["margin"] for settings in drawn} == {0.2}  # is not searched
    assert all(type(settings["LEARNING_RATE"]) is float for settings in drawn)


def test_a_longer_search_repeats_the_shorter_one_and_another_seed_draws_others():
    three, six = (draw_settings(DEFAULTS, SPACE, count, seed=0) for count in (3, 6))
    assert three == six[:3]
    assert three != draw_settings(DEFAULTS, SPACE, 3, seed=1)


def test_a_trial_scores_the_mean_over_folds_at_each_step():
    scores = iter([{10: 0.2, 20: 0.6}, {10: 0.4, 20: 0.2}])
    trial = run_trial({"x": 1}, [1, 2], lambda settings, fold: next(scores))
    assert trial.scores == pytest.approx({10: 0.3, 20: 0.4})
    assert (trial.best_step, trial.score) == (20, pytest.approx(0.4))


def test_of_equal_scores_the_earlier_step_and_the_earlier_trial_are_chosen():
    first, second = Trial({"x": 1}, {10: 0.5, 20: 0.5}), Trial({"x": 2}, {10: 0.5})
    assert first.best_step == 10
    assert best_of([first, second]) is first
    assert best_of([Trial({}, {10: 0.4}), first]) is first


def test_a_trial_that_diverges_is_never_chosen_and_all_of_them_say_so():
    def diverge(settings, fold):
        raise FloatingPointError("the loss is nan")

    lost = run_trial({"x": 1}, [1], diverge)
    assert lost.score == -1
    good = Trial({"x": 2}, {10: 0.0})
    assert best_of([lost, good, Trial({}, {10: nan})]) is good
    with pytest.raises(ValueError, match="every trial diverged; lower the learning rates"):
        best_of([lost])


def test_the_expected_best_of_some_trials_is_that_of_all_choices_of_so_many():
    # Of 1, 2 and 6: one at a time (1 + 2 + 6) / 3, of pairs (2 + 6 + 6) / 3, of all 6.
    assert expected_best([6, 1, 2]) == pytest.approx([3, 14 / 3, 6])


def test_between_is_uniform_from_the_first_to_the_second():
    assert between(0.3, 1.2).support() == (0.3, 1.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 0, "last"), "SEARCH_FOLDS=0"),
        ((0, 5, "last"), "1 to 4"),
        ((6, 2, "validation"), "SELECTION=last"),
    ],
)
def test_searches_that_cannot_be_meant_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_search(*arguments)
    check_search(6, 4, "last")
    check_search(0, 2, "validation")
