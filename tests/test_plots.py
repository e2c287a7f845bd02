"""Figures show what they are given; nobody compares pixels here."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

from dmlkit import plots
from dmlkit.datasets import ImageSet


@pytest.fixture(autouse=True)
def closed_figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def rows_with_history(*, validated):
    histories = []
    for loss in (8.0, 2.0):
        points = [{"step": 1, "images_seen": 4, "loss": loss}, {"step": 2, "images_seen": 8}]
        points[1]["loss"] = loss / 4
        if validated:
            for score, point in zip((0.1, 0.3), points, strict=True):
                point["validation_map_at_r"] = score
        histories.append(points)
    return pd.DataFrame({"method": ["a", "b"], "history": histories})


def test_losses_are_shown_relative_to_their_first_value_and_metrics_in_percent():
    figure = plots.learning_curves(rows_with_history(validated=True), ["a", "b"])
    loss, metric = figure.axes
    assert [line.get_ydata().tolist() for line in loss.lines[:2]] == [[1.0, 0.25]] * 2
    assert metric.lines[0].get_ydata().tolist() == pytest.approx([10.0, 30.0])
    assert metric.lines[0].get_xdata().tolist() == [4, 8]


def test_without_validation_only_the_loss_is_shown():
    assert len(plots.learning_curves(rows_with_history(validated=False), ["a", "b"]).axes) == 1


def test_arrows_point_down_the_gradient_and_along_the_circle():
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # The first wants to go up and outwards, the second half as far to the left.
    gradients = {"a_loss": torch.tensor([[-5.0, -2.0], [1.0, 0.0]]), "none": torch.zeros(2, 2)}
    proxies = {"a_loss": torch.tensor([[0.6, 0.8]])}
    figure = plots.gradient_arrows(points, torch.tensor([0, 1]), gradients, proxies)
    first, second = figure.axes[:2]
    arrows = next(c for c in first.collections if hasattr(c, "U"))
    assert arrows.U.tolist() == pytest.approx([0, -0.3], abs=1e-6)
    assert arrows.V.tolist() == pytest.approx([0.6, 0], abs=1e-6)
    assert first.get_title() == "a loss"
    still = next(c for c in second.collections if hasattr(c, "U"))
    assert not still.U.any() and not still.V.any()
    assert (len(first.collections), len(second.collections)) == (3, 2)  # with proxies, without
    assert not figure.axes[2].get_visible()


def black_images(labels):
    labels = torch.tensor(labels)
    names = tuple(map(str, labels.unique().tolist()))
    images = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
    return ImageSet(images, labels, names, "", torch.arange(len(labels)))


def test_neighbours_are_framed_and_signed_right_or_wrong():
    figure = plots.nearest_neighbours(
        black_images([0, 0, 1, 1]), torch.tensor([[1, 2, 3]]), torch.tensor([0]), count=2
    )
    query, right, wrong = figure.axes
    assert (right.get_xlabel(), wrong.get_xlabel()) == ("✓", "✗")
    frames = [axis.spines["left"].get_edgecolor()[:3] for axis in (query, right, wrong)]
    assert frames == [(0, 0, 0), plots.RIGHT, plots.WRONG]


def test_picked_queries_are_half_right_and_half_wrong_and_spread():
    recall = np.array([1, 1, 1, 0, 0, 1, 1, 0])
    assert plots.spread_queries(recall, 4).tolist() == [0, 6, 3, 7]
    assert plots.spread_queries(np.ones(3), 4).tolist() == [0, 2]


def test_sample_images_has_a_row_per_class():
    image_set = black_images([0, 0, 0, 1, 1, 1])
    assert len(plots.sample_images(image_set, classes=1, per_class=3).axes) == 3
    # Asked for more than there are, it shows what there is.
    assert len(plots.sample_images(image_set, classes=6, per_class=8).axes) == 6


@pytest.mark.slow
def test_maps_of_the_same_embedding_are_the_same_picture():
    embeddings = torch.nn.functional.normalize(
        torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1
    )
    figure = plots.embedding_maps(
        {"one": embeddings, "two": embeddings}, torch.arange(4).repeat_interleave(10)
    )
    one, two = (axis.collections[0].get_offsets() for axis in figure.axes)
    assert np.array_equal(one, two)
    assert len(one) == 40


def test_a_sweep_is_drawn_in_its_order_or_to_scale():
    line = pd.DataFrame({"mean": [50, 60.0], "low": [40, 55.0], "high": [55, 70.0]}, index=[0, 64])
    axis = plots.sweep_curves({"float": line}, "images").axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "64"]
    assert axis.get_xlabel() == "images" and axis.get_legend() is None
    line.index = [8, 64]
    axis = plots.sweep_curves({"float": line, "bits": line}, "bytes", log=True).axes[0]
    assert axis.get_xscale() == "log"
    drawn, _, (bars,) = axis.containers[0]
    assert drawn.get_xdata().tolist() == [8, 64] and drawn.get_ydata().tolist() == [50, 60]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[40, 55], [55, 70]]


def test_lines_are_the_columns_of_a_table():
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}, index=["10", "20"])
    (axis,) = plots.lines(table, "recall", "precision").axes
    assert [line.get_ydata().tolist() for line in axis.lines] == [[1.0, 2.0], [3.0, 4.0]]
    assert [line.get_label() for line in axis.lines] == ["a", "b"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("recall", "precision")


def test_similarities_of_two_kinds_of_pair_have_a_band_of_one_deviation():
    history = pd.DataFrame(
        {
            **{"mean_positive": [0.5, 0.8], "variance_positive": [0.04, 0.01]},
            **{"mean_negative": [0.1, 0.0], "variance_negative": [0.09, 0.16]},
        },
        index=[20, 40],
    )
    runs = {"a_student": history, "another": history - 0.01}
    before = {title: table.copy() for title, table in runs.items()}
    first, second = plots.two_distributions(runs).axes

    assert [axis.get_title() for axis in (first, second)] == ["a student", "another"]
    assert [axis.get_xlabel() for axis in (first, second)] == ["step", "step"]
    assert (first.get_ylabel(), second.get_ylabel()) == ("similarity", "")
    assert first.get_ylim() == second.get_ylim()
    legend = [text.get_text() for text in first.get_legend().get_texts()]
    assert legend == ["positive pairs", "negative pairs"] and second.get_legend() is None
    assert [line.get_xdata().tolist() for line in first.lines] == [[20, 40]] * 2
    assert [line.get_ydata().tolist() for line in first.lines] == [[0.5, 0.8], [0.1, 0.0]]
    assert second.lines[0].get_ydata().tolist() == pytest.approx([0.49, 0.79])
    ends = [([0.3, 0.7], [0.7, 0.9]), ([-0.2, -0.4], [0.4, 0.4])]
    for line, band, (low, high) in zip(first.lines, first.collections, ends, strict=True):
        at, edge = band.get_paths()[0].vertices.T
        assert edge[at == 20].min() == pytest.approx(low[0])
        assert edge[at == 20].max() == pytest.approx(high[0])
        assert edge[at == 40].min() == pytest.approx(low[1])
        assert edge[at == 40].max() == pytest.approx(high[1])
        assert to_rgb(band.get_facecolor()[0][:3]) == to_rgb(line.get_color())
    assert to_rgb(first.lines[0].get_color()) != to_rgb(first.lines[1].get_color())
    for title, table in runs.items():
        pd.testing.assert_frame_equal(table, before[title])


def test_differences_have_their_intervals_and_the_first_stands_on_top():
    index = pd.MultiIndex.from_tuples([("one", "x"), ("one", "y"), ("two", "x")])
    values = {"mean": [1.0, -2.0, 0.5], "low": [0.0, -3.0, 0.5], "high": [3.0, -1.5, 0.5]}
    first, second = plots.differences(pd.DataFrame(values, index=index), "points").axes
    means, _, (spans,) = first.containers[0]
    assert means.get_xdata().tolist() == [-2.0, 1.0]  # bottom to top
    assert [label.get_text() for label in first.get_yticklabels()] == ["y", "x"]
    ends = [segment[:, 0].tolist() for segment in spans.get_segments()]
    assert ends == [[-3.0, -1.5], [0.0, 3.0]]
    assert (first.get_title(loc="left"), second.get_xlabel()) == ("one", "points")


def test_a_grid_shows_each_image_in_its_place_under_the_title_of_its_column():
    images = torch.rand(2, 3, 3, 4, 4)
    axes = plots.image_grid(images, ["a", "b", "c"]).axes
    assert [axis.get_title() for axis in axes] == ["a", "b", "c", "", "", ""]
    shown = axes[4].images[0].get_array()
    assert np.array_equal(shown, images[1, 1].permute(1, 2, 0).numpy())


def test_published_differences_stand_beside_the_interval_of_ours():
    claims = pd.DataFrame(
        {
            "claim": ["A", "B"],
            "statement": ["first", "second"],
            "difference": [1.0, -2.0],
            "low": [-1.0, -3.0],
            "high": [3.0, -1.0],
            "published_low": [2.0, 4.0],
            "published_high": [4.0, 4.0],
        }
    )
    (axis,) = plots.beside_published(claims).axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["B: second", "A: first"]  # from below
    bars = next(c for c in axis.collections if len(c.get_segments()) == 2)
    assert [s[:, 0].round(9).tolist() for s in bars.get_segments()] == [[-3.0, -1.0], [-1.0, 3.0]]


def test_the_cost_figure_names_what_nothing_beats_in_both():
    methods = pd.DataFrame(
        {
            "seconds": [0, 0, 1, 2, 3, 3],
            "value": [50.0, 50.1, 60.0, 55.0, 61.0, 59.0],
            "group": ["none", "none", "a", "a", "b", "b"],
        },
        index=["frozen", "pca", "quick", "beaten", "best", "slow"],
    )
    (axis,) = plots.cost_and_result(methods, "R@1, %").axes
    assert [text.get_text() for text in axis.texts] == ["quick", "best", "frozen", "pca"]
    frozen, pca = (text.xy[1] for text in axis.texts[-2:])  # of the same height, or nearly
    assert pca - frozen > 0.03
