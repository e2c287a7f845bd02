"""Distances between unit rows against torch's own, and where rows coincide."""

import math

import pytest
import torch
import torch.nn.functional as F

from dmlkit.distances import cosine_similarity, euclidean_distance


def unit_rows(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype))


def test_both_agree_with_torch_between_two_sets():
    queries, gallery = unit_rows(5, 7), unit_rows(9, 7, seed=1)

    cosine = F.cosine_similarity(queries[:, None], gallery[None], dim=2)
    torch.testing.assert_close(cosine_similarity(queries, gallery), cosine)
    torch.testing.assert_close(euclidean_distance(queries, gallery), torch.cdist(queries, gallery))


def test_without_others_the_rows_are_compared_with_themselves():
    rows = unit_rows(6, 4)
    torch.testing.assert_close(cosine_similarity(rows), rows @ rows.T)
    torch.testing.assert_close(euclidean_distance(rows), euclidean_distance(rows, rows))


def test_distance_of_orthogonal_and_of_opposite_rows_on_the_circle():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # Chords of 90 and 180 degrees are sqrt(2) and 2.
    root = math.sqrt(2)
    expected = torch.tensor([[0.0, root, 2.0], [root, 0.0, root], [2.0, root, 0.0]])
    torch.testing.assert_close(euclidean_distance(rows), expected)


def test_distance_has_the_analytic_gradient():
    raw = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    others = unit_rows(5, 3, seed=1)

    # Normalising inside the checked function keeps the rows on the sphere, where d is defined.
    def distance(rows):
        return euclidean_distance(F.normalize(rows), others)

    assert torch.autograd.gradcheck(distance, raw.requires_grad_())


@pytest.mark.parametrize("dim", [2, 64, 512, 2048])
def test_rows_that_coincide_are_at_exactly_zero_with_zero_gradient(dim):
    row = unit_rows(1, dim, dtype=torch.float32)
    rows = row.repeat(40, 1).requires_grad_()

    distance = euclidean_distance(rows)
    distance.sum().backward()

    assert (distance == 0).all()
    assert (rows.grad == 0).all()


def test_rows_a_hair_apart_keep_their_distance_and_a_finite_gradient():
    angle = torch.tensor([0.0, 0.01])
    rows = torch.stack([angle.cos(), angle.sin()], dim=1).requires_grad_()

    distance = euclidean_distance(rows)[0, 1]
    distance.backward()

    assert distance.item() == pytest.approx(0.01, rel=2e-3)
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize("function", [cosine_similarity, euclidean_distance])
def test_autocast_does_not_coarsen_the_result(function):
    rows = unit_rows(8, 16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = function(rows)

    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, function(rows), rtol=0, atol=0)


def test_half_precision_rows_are_compared_in_single_precision():
    assert cosine_similarity(unit_rows(3, 4).bfloat16()).dtype == torch.float32


def test_nan_stays_nan_and_is_not_taken_for_equal_rows():
    rows = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]])
    assert euclidean_distance(rows).isnan().tolist() == [[False, True], [True, True]]
