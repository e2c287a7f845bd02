"""Tables are the rows, in percent."""

import numpy as np
import pandas as pd
import pytest

from dmlkit.tables import show_claims, summarise


def test_a_table_shows_means_intervals_and_the_number_of_replicates():
    rows = pd.DataFrame(
        {
            "run_id": ["x0", "x1"],
            "method": ["x", "x"],
            "metric_map_at_r": [0.2, 0.4],
            "metric_recall_at_8": [0.5, 0.7],
            "steps": [10, 10],
            "seconds": [3.0, 5.0],
        }
    )
    labels = np.arange(3)
    per_query = {
        "x0": {"labels": labels, "map_at_r": np.full(3, 0.2)},
        "x1": {"labels": labels, "map_at_r": np.full(3, 0.4)},
    }
    table = summarise(rows, per_query, ["x"], intervals=("map_at_r",), means=("recall_at_8",))
    assert table.loc["x"].to_dict() == {
        "MAP@R": "30.0 [20.0, 40.0]",
        "R@8": "60.0",
        "steps": 10,
        "s / run": "4",
        "n": 2,
    }


def test_claims_are_shown_in_points():
    claims = pd.DataFrame(
        [
            {
                **{"claim": "A", "statement": "x beats y", "published": "+2", "n": 5},
                **{"difference": 0.031, "low": 0.01, "high": 0.05, "t_low": -0.01, "t_high": 0.07},
                **{"p": 0.04, "p_holm": 0.08, "detectable": 0.06, "verdict": "not resolved"},
            }
        ]
    )
    line = show_claims(claims).loc["A"]
    assert line["ours, points [bootstrap]"] == "+3.1 [+1.0, +5.0]"
    assert line["[t interval]"] == "[-1.0, +7.0]"
    assert line["detectable"] == "6.0"


@pytest.mark.parametrize("columns", [["claim", "verdict"], []], ids=["columns", "none"])
def test_no_claims_show_an_empty_table(columns):
    assert show_claims(pd.DataFrame(columns=columns)).empty
