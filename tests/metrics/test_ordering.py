"""Rank correlations by hand and against SciPy's, and similarities to views."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from dmlkit.metrics import rank_correlation_within_classes, similarity_to_views


def on_a_circle(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def random_set(count=50, num_classes=12):
    """Embeddings and factors, many of them equal, and labels in no order."""
    generator = torch.Generator().manual_seed(0)
    # Corners of a cube in four dimensions: every similarity is a multiple of a half, exactly.
    embeddings = torch.randint(2, (count, 4), generator=generator).double() - 0.5
    labels = torch.randint(num_classes, (count,), generator=generator) * 7 - 3
    factors = {
        "few values": torch.randint(-4, 5, (count,), generator=generator).short(),
        "many values": torch.randn(count, generator=generator),
    }
    return embeddings, labels, factors


def reference(embeddings, labels, factor):
    """SciPy's correlation of each query, NaN where it has none."""
    found = [math.nan] * len(labels)
    similarity = embeddings @ embeddings.T
    for query in range(len(labels)):
        others = (labels == labels[query]) & (torch.arange(len(labels)) != query)
        ours, theirs = similarity[query, others], -(factor[others] - factor[query]).abs().double()
        if others.sum() >= 3 and len(ours.unique()) > 1 and len(theirs.unique()) > 1:
            found[query] = spearmanr(ours.numpy(), theirs.numpy()).statistic
    return found


def one_class(*degrees, factor):
    embeddings = on_a_circle(*degrees)
    labels = torch.zeros(len(embeddings), dtype=torch.long)
    factors = {"pose": torch.tensor(factor)}
    return rank_correlation_within_classes(embeddings, labels, factors)["pose"].tolist()


def test_four_images_by_hand():
    # Angles apart, and factor apart, with their ranks, 1 the nearest:
    # of 0:  10, 31, 60 -> 1 2 3    of 0: 4, 1, 9 -> 2 1 3    1 - 6 (1 + 1) / 24 = 1/2
    # of 10: 10, 21, 50 -> 1 2 3    of 4: 4, 3, 5 -> 2 1 3    1/2
    # of 31: 31, 21, 29 -> 3 1 2    of 1: 1, 3, 8 -> 1 2 3    1 - 6 (4 + 1 + 1) / 24 = -1/2
    # of 60: 60, 50, 29 -> 3 2 1    of 9: 9, 5, 8 -> 3 1 2    1/2
    found = one_class(0, 10, 31, 60, factor=[0, 4, 1, 9])
    assert found == pytest.approx([0.5, 0.5, -0.5, 0.5])


def test_the_order_of_the_factor_gives_1_and_the_reverse_minus_1():
    # No two images are as far from a third.
    assert one_class(0, 10, 25, 52, 90, factor=[0, 10, 25, 52, 90]) == pytest.approx([1] * 5)
    factor = torch.tensor([0, 1, 3, 7])
    similarity = torch.eye(4) + 0.05 * (factor[:, None] - factor).abs()  # the farther, the higher
    embeddings, labels = torch.linalg.cholesky(similarity), torch.zeros(4, dtype=torch.long)
    found = rank_correlation_within_classes(embeddings, labels, {"pose": factor})
    assert found["pose"].tolist() == pytest.approx([-1] * 4)


def test_agrees_with_scipy_query_by_query_ties_included():
    embeddings, labels, factors = random_set()
    found = rank_correlation_within_classes(embeddings, labels, factors)
    assert found.keys() == factors.keys()
    for name, factor in factors.items():
        expected = reference(embeddings, labels, factor)
        assert 5 < sum(map(math.isnan, expected)) < 30
        assert found[name].tolist() == pytest.approx(expected, nan_ok=True)


def test_an_angle_goes_around():
    embeddings = on_a_circle(0, 20, 50, 90)  # as the factor is ordered, if 350 is next to 10
    labels, turned = torch.zeros(4, dtype=torch.long), torch.tensor([-10, 10, 40, 80])
    for factor in (turned % 360, turned + 720 * torch.arange(4)):
        factors = {"turn": factor}
        found = rank_correlation_within_classes(embeddings, labels, factors, angles=["turn"])
        assert found["turn"].tolist() == pytest.approx([1.0] * 4)
    along = rank_correlation_within_classes(embeddings, labels, {"turn": turned % 360})
    assert along["turn"][0] < 0


def test_a_query_without_a_correlation_has_nan():
    # All others of the first image differ by 1 from it; of the fifth all are as similar.
    embeddings = torch.cat([on_a_circle(0, 10, 31, 60), torch.zeros(4, 1).double()], dim=1)
    embeddings = torch.cat([embeddings, torch.tensor([[0, 0, 1]])])
    labels, factor = torch.zeros(5, dtype=torch.long), torch.tensor([0, 1, -1, 1, -1])
    expected = reference(embeddings, labels, factor)
    assert [math.isnan(value) for value in expected] == [True, False, False, False, True]
    found = rank_correlation_within_classes(embeddings, labels, {"pose": factor})
    assert found["pose"].tolist() == pytest.approx(expected, nan_ok=True)


def test_a_constant_factor_has_no_correlation():
    assert all(map(math.isnan, one_class(0, 10, 31, 60, factor=[7, 7, 7, 7])))


def test_classes_of_fewer_than_four_images_have_nan():
    assert all(map(math.isnan, one_class(0, 10, 30, factor=[0, 1, 2])))
    embeddings = on_a_circle(0, 10, 25, 52, 5, 15, 40)
    labels = torch.tensor([1, 1, 1, 1, 0, 0, 0])
    factors = {"pose": torch.tensor([0, 10, 25, 52, 2, 0, 1])}
    found = rank_correlation_within_classes(embeddings, labels, factors)["pose"].tolist()
    assert found == pytest.approx([1] * 4 + [math.nan] * 3, nan_ok=True)


def test_embeddings_in_float16_and_labels_of_any_integer_type_are_taken():
    embeddings, labels, factors = random_set()
    found = rank_correlation_within_classes(embeddings.half(), labels.short(), factors)
    expected = rank_correlation_within_classes(embeddings.half().float(), labels, factors)
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(5).long()}, "labels .* do not correspond to the rows"),
        ({"factors": {"pose": torch.zeros(5)}}, r"factor pose \(5,\) does not correspond"),
        ({"factors": {"pose": torch.zeros(4, 1)}}, r"factor pose \(4, 1\).* should be \(4,\)"),
        ({"factors": {"pose": torch.tensor([0, 1, math.nan, 2])}}, "row 2 of factor pose holds"),
        ({"embeddings": torch.full((4, 2), math.inf)}, "row 0 of embeddings holds NaN"),
        ({"embeddings": torch.zeros(0, 2)}, "is empty"),
    ],
    ids=["labels", "factor", "column", "factor NaN", "embeddings", "nothing"],
)
def test_what_does_not_correspond_is_refused(change, message):
    given = {"embeddings": on_a_circle(0, 1, 2, 3), "labels": torch.zeros(4).long()}
    given |= {"factors": {"pose": torch.arange(4)}} | change
    with pytest.raises(ValueError, match=message):
        rank_correlation_within_classes(**given)


def test_similarities_to_views_are_means_over_images_by_strength():
    views = torch.stack([on_a_circle(0, 60, 90), on_a_circle(30, 30, -30)])
    found = similarity_to_views(views)
    torch.testing.assert_close(found, torch.tensor([0.75, 0.25], dtype=torch.float64))
    assert similarity_to_views(views.half()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 4), (0, 2, 4), (3, 1, 4)])
def test_other_shapes_of_views_are_refused(shape):
    with pytest.raises(ValueError, match=r"give \(M, 1 \+ N, D\)"):
        similarity_to_views(torch.ones(shape))
