"""Tables are the rows, in percent."""

import numpy as np
import pandas as pd
import pytest

from dmlkit.intervals import class_means
from dmlkit.tables import (
    circumstances,
    order_stability,
    show_claims,
    show_ledger,
    steps_to,
    summarise,
    sweep_table,
)


def test_a_table_shows_means_intervals_and_the_number_of_replicates():
    rows = pd.DataFrame(
        {
            "run_id": ["x0", "x1", "x2"],
            "method": ["x", "x", "x"],
            "metric_map_at_r": [0.2, 0.3, 0.4],
            "metric_recall_at_8": [0.5, 0.6, 0.7],
            "steps": [10, 10, 10],
            "seconds": [3.0, 4.0, 5.0],
        }
    )
    labels = np.arange(3)
    by_class = {
        "x0": {"labels": labels, "classes": np.array(list("abc")), "map_at_r": np.full(3, 0.2)},
        "x1": {"labels": labels, "classes": np.array(list("def")), "map_at_r": np.full(3, 0.3)},
        "x2": {"labels": labels, "classes": np.array(list("ghi")), "map_at_r": np.full(3, 0.4)},
    }
    table = summarise(rows, by_class, ["x"], intervals=("map_at_r",), means=("recall_at_8",))
    # The t interval of 20, 30, 40: 4.303 * 10 / sqrt(3) is 24.8.
    assert table.loc["x"].to_dict() == {
        "MAP@R": "30.0 [5.2, 54.8]",
        "R@8": "60.0",
        "steps": 10,
        "s / run": "4",
        "n": 3,
    }


CLAIM = {
    **{
        "claim": "A",
        "statement": "x beats y",
        "metric": "map_at_r",
        "published": "+2",
        "bound": 0.005,
    },
    **{"difference": 0.031, "low": 0.01, "high": 0.05, "t_low": -0.01, "t_high": 0.07},
    **{"n": 5, "p": 0.04, "p_holm": 0.08, "detectable": 0.06, "verdict": "not resolved"},
}


def test_claims_are_shown_in_points():
    line = show_claims(pd.DataFrame([CLAIM])).loc["A"]
    assert (line["points"], line["bound"]) == ("+3.1", "0.5")
    assert line["bootstrap"] == "+1.0 to +5.0"
    assert line["t interval"] == "-1.0 to +7.0"
    assert line["p (Holm)"] == "0.040 (0.080)"
    assert (line["metric"], line["detectable"], line["published"]) == ("MAP@R", "6.0", "+2")


def test_what_nothing_is_known_of_is_not_shown_as_zero():
    table = show_claims(pd.DataFrame([CLAIM | {"detectable": 0.0, "published": ""}]))
    assert table.loc["A", "detectable"] == "–"
    assert "published" not in table


def test_no_claims_are_said_to_be_none():
    assert "No claim" in show_claims(pd.DataFrame()).iloc[0, 0]


def test_a_ledger_has_a_line_per_claim_and_a_column_per_profile():
    claims = pd.DataFrame(
        {
            "profile": ["birds", "mini", "mini"],
            "claim": ["B2", "B2", "A1"],
            "paper": "P",
            "statement": ["two", "two", "one"],
            "metric": "recall_at_1",
            "published": "",
            "verdict": ["held", "reversed (demonstration)", "not resolved (demonstration)"],
            "difference": [0.0213, -0.01, 0.0],
            "n": [5, 3, 2],
        }
    )
    table = show_ledger(claims)
    assert table.index.tolist() == ["B2", "A1"]
    assert table["birds"].tolist() == ["held (+2.1, n\u00a05)", ""]
    assert table["mini"].tolist() == [
        "reversed, drawn (-1.0, n\u00a03)",
        "not resolved, drawn (+0.0, n\u00a02)",
    ]
    assert table.loc["B2", "metric"] == "R@1"
    assert "No claim is judged" in show_ledger(claims[:0]).iloc[0, 0]


def test_circumstances_name_every_device_that_took_part():
    rows = pd.DataFrame(
        {
            **{"device": ["cpu", "H200"], "threads": 1, "precision": "float32"},
            **{"versions": "torch 2", "code": "abc", "commit": "def", "protocol": "random"},
        }
    )
    assert circumstances(rows).startswith("Made on H200, cpu with 1 thread(s) in float32; torch 2")
    fixed = circumstances(rows.assign(protocol="official"))
    assert fixed.startswith("All replicates have the same test classes. Made on")


def test_an_order_that_every_class_agrees_on_is_stable_and_noise_is_not():
    generator = np.random.default_rng(0)
    labels = np.arange(40).repeat(np.arange(40) % 5 + 1)  # classes of one to five queries
    classes = np.arange(40).astype(str)
    by_class, lines = {}, []
    for seed in range(4):
        for level, method in enumerate("abcde"):
            noise = generator.normal(size=len(labels))
            values = {"map_at_r": 0.1 * level + 1e-3 * noise, "recall_at_1": noise}
            by_class[f"{method}{seed}"] = {"labels": labels, "classes": classes, **values}
            lines.append({"method": method, "seed": seed, "run_id": f"{method}{seed}"})
    rows = pd.DataFrame(lines)
    table = order_stability(rows, by_class, [*"abcde"], metrics=("recall_at_1", "map_at_r"))
    assert table.loc["MAP@R", "Kendall's tau"] == "1.00"
    of_noise = float(table.loc["R@1", "Kendall's tau"])
    assert abs(of_noise) < 0.4
    assert float(table.loc["MAP@R", "beyond R@1"]) == pytest.approx(1 - of_noise, abs=0.011)
    assert 0 < float(table.loc["MAP@R", "standard error"]) < 0.3
    assert order_stability(rows, by_class, [*"ab"]).empty
    means = {run_id: class_means(scores) for run_id, scores in by_class.items()}
    pd.testing.assert_frame_equal(
        order_stability(rows, means, [*"abcde"], metrics=("recall_at_1", "map_at_r")), table
    )


def test_a_sweep_shows_recall_at_1_in_percent_by_value_in_the_order_given():
    rows = pd.DataFrame({"run_id": ["a0", "a1", "b0", "b1"], "method": ["a", "a", "b", "b"]})
    by_class = {
        run: {"labels": np.arange(2), "classes": np.array(names), "recall_at_1": np.full(2, value)}
        for run, names, value in (
            *(("a0", ["p", "q"], 0.2), ("a1", ["r", "s"], 0.4)),
            *(("b0", ["p", "q"], 0.9), ("b1", ["r", "s"], 0.9)),
        )
    }
    table = sweep_table(rows, by_class, {"big": "b", "small": "a"})
    assert table.index.tolist() == ["big", "small"]
    assert table["mean"].tolist() == pytest.approx([90, 30])
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    assert table.loc["small", "low"] == 0  # 12.7 * 10 points wide, cut off


def test_the_first_step_near_the_last_value_is_counted_from_each_curve_and_averaged():
    def history(*values):
        return [
            {"step": 10 * (i + 1), "validation_recall_at_1": value}
            for i, value in enumerate(values)
        ]

    rows = pd.DataFrame(
        {
            "method": ["fast", "fast", "slow", "slow"],
            "seed": [0, 1, 0, 1],
            "history": [
                *(history(0.5, 0.5, 0.5), history(0.1, 0.6, 0.6)),
                *(history(0.1, 0.44, 0.5), history(0.1, 0.46, 0.5)),
            ],
        }
    )
    table = steps_to(rows, ["slow", "fast"])
    # Of 0.5 and 0.6: 0.44 is below 0.45, 0.46 is not, and 0.5 is below 0.54.
    assert table.loc["fast"].tolist() == ["55.0", "15", "15"]
    assert table.loc["slow"].tolist() == ["50.0", "25", "> 30"]
    names = ["validation R@1", "steps to 90% of it", "steps to 90% of the best"]
    assert table.columns.tolist() == names


def test_without_validation_there_is_nothing_to_come_near_to():
    rows = pd.DataFrame({"method": ["x"], "seed": [0], "history": [[{"step": 1, "loss": 2.0}]]})
    assert steps_to(rows, ["x"]).columns.empty
