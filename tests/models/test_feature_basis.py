"""The feature basis, and class means to start it from."""

import pytest
import torch
from torch.nn.functional import normalize

from dmlkit.models import FeatureBasis, class_means


def basis_of(*rows):
    basis = FeatureBasis(len(rows), len(rows[0]))
    basis.start_from(torch.tensor(rows))
    return basis


# --- The basis


def test_responses_are_products_with_the_vectors_by_hand():
    # W f of (0.6, 0.8): 0.6, 3 * 0.6 - 0.8 = 1 and 0, neither made unit nor shifted.
    basis = basis_of([1.0, 0.0], [3.0, -1.0], [0.0, 0.0])
    responses = basis(torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    torch.testing.assert_close(responses, torch.tensor([[0.6, 1.0, 0.0], [0.0, -1.0, 0.0]]))


def test_the_vectors_are_all_that_is_learned_and_all_of_them_are():
    basis = FeatureBasis(5, 3)
    assert {name: value.shape for name, value in basis.named_parameters()} == {"vectors": (5, 3)}
    basis(torch.ones(2, 3)).square().sum().backward()
    assert (basis.vectors.grad != 0).all()
    assert basis.state_dict().keys() == {"vectors"}


@pytest.mark.parametrize("dim", [16, 256])
def test_vectors_start_normal_with_variance_one_over_the_dimension(dim):
    torch.manual_seed(0)
    scaled = FeatureBasis(4000, dim).vectors.detach() * dim**0.5
    assert scaled.mean().item() == pytest.approx(0, abs=0.02)
    assert scaled.var().item() == pytest.approx(1, abs=0.02)
    # The fourth moment tells a normal (3) from a uniform distribution (1.8).
    assert scaled.pow(4).mean().item() == pytest.approx(3, abs=0.15)


def test_a_seed_fixes_the_start():
    starts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        starts.append(FeatureBasis(4, 3).vectors)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_coarsen_the_responses(dtype):
    basis, embeddings = FeatureBasis(6, 64), normalize(torch.randn(4, 64)).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        inside = basis(embeddings)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, basis(embeddings.float()))


def test_embeddings_in_double_precision_keep_it():
    assert FeatureBasis(6, 5)(torch.ones(2, 5).double()).dtype == torch.float64


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_an_empty_basis_is_refused(sizes):
    with pytest.raises(ValueError, match=f"num_vectors={sizes[0]} and embedding_dim={sizes[1]}"):
        FeatureBasis(*sizes)


# --- Starting from given vectors


def test_it_starts_from_a_copy_of_given_vectors_and_still_learns():
    basis, rows = FeatureBasis(2, 2), torch.tensor([[1.0, 0.0], [0.6, 0.8]], requires_grad=True)
    parameter = basis.vectors
    basis.start_from(rows)
    assert basis.vectors is parameter and parameter.is_leaf and parameter.requires_grad
    assert torch.equal(parameter, rows)
    torch.optim.SGD(basis.parameters(), lr=0.1).zero_grad()
    basis(torch.ones(1, 2)).sum().backward()
    assert rows.grad is None
    with torch.no_grad():
        parameter += 1
    assert rows[0].tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (3,), (3, 4)])
def test_vectors_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"the basis \(4, 3\); give one vector for each"):
        FeatureBasis(4, 3).start_from(torch.ones(shape))


# --- Class means


def test_class_means_by_hand():
    # Class 0: (1, 0) and (0, 1), of mean (1/2, 1/2). Class 1: (0.6, 0.8) alone. Class 2: three of
    # (0, -1) and one of (0.8, 0.6), of mean (0.2, -0.6), whose length is sqrt(0.4).
    embeddings = [[1, 0], [0.6, 0.8], [0, -1], [0, 1], [0, -1], [0.8, 0.6], [0, -1]]
    means = class_means(torch.tensor(embeddings), torch.tensor([0, 1, 2, 0, 2, 2, 2]))
    expected = [[0.5**0.5, 0.5**0.5], [0.6, 0.8], [0.2 / 0.4**0.5, -0.6 / 0.4**0.5]]
    torch.testing.assert_close(means, torch.tensor(expected))


def test_class_means_are_unit_without_gradient_and_at_least_in_float32():
    embeddings = normalize(torch.randn(12, 5)).bfloat16().requires_grad_()
    means = class_means(embeddings, torch.arange(12) % 4)
    assert means.dtype == torch.float32 and not means.requires_grad
    torch.testing.assert_close(means.norm(dim=1), torch.ones(4))
    assert class_means(embeddings.double(), torch.arange(12) % 4).dtype == torch.float64


def test_class_means_that_cancel_are_zero():
    means = class_means(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0]))
    assert means.tolist() == [[0, 0]]


def test_a_basis_of_class_means_responds_most_to_the_own_class():
    torch.manual_seed(0)
    labels, centres = torch.arange(40) % 4, torch.eye(4, 8)
    embeddings = normalize(centres[labels] + 0.2 * torch.randn(40, 8))
    basis = FeatureBasis(4, 8)
    basis.start_from(class_means(embeddings, labels))
    assert torch.equal(basis(embeddings).argmax(dim=1), labels)


@pytest.mark.parametrize("labels", [[0, 2, 2], [1, 2, 1], [-1, 0, 1]], ids=str)
def test_numbers_without_an_image_are_refused(labels):
    with pytest.raises(ValueError, match=f"from {min(labels)} to {max(labels)}; number them from"):
        class_means(torch.ones(3, 2), torch.tensor(labels))


@pytest.mark.parametrize(("images", "shape"), [(0, (0,)), (3, (2,)), (3, (3, 1))])
def test_embeddings_without_a_label_each_are_refused(images, shape):
    with pytest.raises(ValueError, match="give one class for each of at least one embedding"):
        class_means(torch.ones(images, 2), torch.zeros(shape, dtype=torch.long))
