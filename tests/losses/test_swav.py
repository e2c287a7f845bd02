"""Sinkhorn, swapped prediction, its queue and its diagnosis, by hand and by the official code."""

import math

import pytest
import torch
import torch.nn.functional as F

from dmlkit.losses import SwAVLoss, hyperparameters
from dmlkit.losses.swav import EmbeddingQueue, count_usage, diagnose, sinkhorn


def random_scores(*shape, dim=6, seed=0):
    """Return (*shape) float64 cosines of random directions."""
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    embeddings = F.normalize(torch.randn(*shape[:-1], dim, **draw), dim=-1)
    prototypes = F.normalize(torch.randn(shape[-1], dim, **draw), dim=-1)
    return embeddings @ prototypes.T


def reference_sinkhorn(scores, epsilon, iterations):
    """What the official code computes on one GPU, one number at a time."""
    images, prototypes = scores.shape
    q = [[math.exp(scores[b, k] / epsilon) for b in range(images)] for k in range(prototypes)]
    total = sum(map(sum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(iterations):
        q = [[value / sum(row) / prototypes for value in row] for row in q]
        sums = [sum(column) for column in zip(*q, strict=True)]
        q = [[value / s / images for value, s in zip(row, sums, strict=True)] for row in q]
    sums = [sum(column) for column in zip(*q, strict=True)]
    return torch.tensor(
        [[q[k][b] / sums[b] for k in range(prototypes)] for b in range(images)],
        dtype=torch.float64,
    )


def reference_loss(scores, num_assigned, temperature, epsilon, iterations):
    """The official averaging, one pair of crops and one image at a time."""
    crops, images, _ = scores.shape
    total = 0.0
    for assigned in range(num_assigned):
        code = reference_sinkhorn(scores[assigned], epsilon, iterations)
        part = 0.0
        for crop in set(range(crops)) - {assigned}:
            for image in range(images):
                exponents = [math.exp(s / temperature) for s in scores[crop, image].tolist()]
                for q, exponent in zip(code[image].tolist(), exponents, strict=True):
                    part -= q * math.log(exponent / sum(exponents)) / images
        total += part / (crops - 1)
    return total / num_assigned


# Sinkhorn


def test_two_images_and_two_prototypes_by_hand():
    scores = 0.05 * torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64).log()
    # Columns [1, 3] / 4 and [2, 4] / 6, then rows [3, 4] / 7 and [9, 8] / 17.
    expected = torch.tensor([[3 / 7, 4 / 7], [9 / 17, 8 / 17]], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, iterations=1), expected)
    # Scaling keeps the ratio of the diagonals' products, 4 : 6, and sums of 1 make it p : 1 - p
    # squared.
    p = 2 / (2 + math.sqrt(6))
    converged = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, iterations=100), converged)


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.05, 1), (0.3, 7)])
@pytest.mark.parametrize("shape", [(7, 4), (3, 5), (1, 3), (4, 1)])
def test_assignments_are_those_of_the_official_code(shape, epsilon, iterations):
    scores = random_scores(*shape)
    assignments = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(assignments, reference_sinkhorn(scores, epsilon, iterations))


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)], ids=["more images", "more prototypes"])
def test_rows_sum_to_one_at_once_and_columns_to_their_share_in_the_end(shape):
    scores, share = random_scores(*shape), torch.full(shape[1:], shape[0] / shape[1]).double()
    few, many = sinkhorn(scores), sinkhorn(scores, iterations=500)
    one = torch.ones(shape[0], dtype=torch.float64)
    for assignments in (few, many):
        assert (assignments.sum(dim=1) - one).abs().max() < 1e-12
    assert (many.sum(dim=0) - share).abs().max() < 1e-6
    before = scores.div(0.05).softmax(dim=1)
    assert (few.sum(dim=0) - share).abs().max() < 0.5 * (before.sum(dim=0) - share).abs().max()


def test_a_prototype_that_is_nearest_to_all_images_still_gets_only_its_share():
    scores = random_scores(8, 4) / 2
    scores[:, 2] = scores.amax(dim=1) + 0.3
    assert count_usage(scores).tolist() == [0, 0, 8, 0]
    assert sinkhorn(scores, iterations=100).sum(dim=0).tolist() == pytest.approx([2.0] * 4)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-2])
def test_a_low_epsilon_neither_overflows_nor_loses_an_image_or_a_prototype(epsilon):
    assignments = sinkhorn(random_scores(6, 6).float(), epsilon=epsilon, iterations=50)
    assert assignments.isfinite().all()
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(6))
    assert (assignments.sum(dim=0) > 0.1).all()


def test_identical_images_are_assigned_to_all_prototypes_alike():
    assignments = sinkhorn(random_scores(1, 4).expand(3, 4))
    torch.testing.assert_close(assignments, torch.full((3, 4), 0.25).double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_assignments_are_in_float32_and_without_gradient(dtype):
    scores = random_scores(6, 4).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        assignments = sinkhorn(scores)
    assert assignments.dtype == torch.float32 and not assignments.requires_grad
    assert torch.equal(assignments, sinkhorn(scores.detach().float()))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4), (4, 0)])
def test_sinkhorn_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"scores have shape .*; give \(B, K\)"):
        sinkhorn(torch.zeros(shape))


# The loss


@pytest.mark.parametrize(
    "settings",
    [
        {"num_assigned": 2, "temperature": 0.1, "epsilon": 0.05, "iterations": 3},
        {"num_assigned": 1, "temperature": 0.4, "epsilon": 0.2, "iterations": 1},
        {"num_assigned": 3, "temperature": 0.1, "epsilon": 0.05, "iterations": 3},
    ],
    ids=["defaults", "one crop assigned", "three crops assigned"],
)
@pytest.mark.parametrize("crops", [3, 5])
def test_matches_the_official_averaging_pair_by_pair(crops, settings):
    scores = random_scores(crops, 6, 4)
    loss = SwAVLoss(**settings)(scores)
    assert loss.item() == pytest.approx(reference_loss(scores, **settings))


def test_the_defaults_are_those_of_the_official_code():
    expected = {"num_assigned": 2, "temperature": 0.1, "epsilon": 0.05, "iterations": 3}
    assert hyperparameters(SwAVLoss()) == expected


def test_two_images_on_a_prototype_each_by_hand():
    # The code of an image is its own prototype, predicted with e^10 : 1.
    scores = torch.eye(2).expand(2, 2, 2)
    loss = SwAVLoss(epsilon=0.01)(scores)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-10)), rel=1e-3)
    # Where the second crop sees the other image's prototype, that costs 10 more.
    wrong = torch.stack([torch.eye(2), torch.eye(2).flip(0)])
    assert SwAVLoss(epsilon=0.01)(wrong).item() == pytest.approx(10, rel=1e-4)


def test_a_network_that_maps_every_image_to_one_point_is_at_ln_k():
    scores = torch.full((4, 8, 5), 0.3)
    assert SwAVLoss()(scores).item() == pytest.approx(math.log(5))


def test_codes_have_no_gradient_and_no_crop_predicts_its_own():
    scores = random_scores(3, 6, 4).requires_grad_()
    SwAVLoss(num_assigned=1)(scores).backward()
    assert (scores.grad[0] == 0).all()
    code = sinkhorn(scores[0])
    for crop in (1, 2):
        # Of soft-max cross-entropy: (p - q) / temperature, a mean over 2 crops and 6 images.
        expected = ((scores[crop] / 0.1).softmax(dim=1) - code) / 0.1 / 12
        torch.testing.assert_close(scores.grad[crop], expected.detach())


def test_only_the_order_of_crops_with_codes_matters_and_none_of_images_or_prototypes():
    scores, loss_fn = random_scores(5, 6, 4), SwAVLoss()
    loss = loss_fn(scores)
    torch.testing.assert_close(loss_fn(scores[:, [3, 5, 0, 1, 4, 2]]), loss)
    torch.testing.assert_close(loss_fn(scores[..., [2, 0, 3, 1]]), loss)
    torch.testing.assert_close(loss_fn(scores[[1, 0, 4, 2, 3]]), loss)
    assert loss_fn(scores[[2, 1, 0, 3, 4]]) != pytest.approx(loss.item(), rel=1e-3)


def test_queued_images_are_assigned_with_the_batch_and_predicted_by_none():
    scores, queued = random_scores(3, 4, 6), random_scores(2, 9, 6, seed=1).requires_grad_()
    expected = []
    for crop in range(2):
        code = sinkhorn(torch.cat([queued[crop], scores[crop]]))[-4:]
        for other in {0, 1, 2} - {crop}:
            expected.append(F.cross_entropy(scores[other] / 0.1, code))
    loss = SwAVLoss()(scores, queued)
    assert loss.item() == pytest.approx(sum(expected).item() / 4)
    assert loss.item() != pytest.approx(SwAVLoss()(scores).item(), rel=1e-3)
    assert not loss.requires_grad


def test_an_empty_queue_changes_nothing():
    scores = random_scores(3, 4, 6)
    assert torch.equal(SwAVLoss()(scores, scores[:2, :0]), SwAVLoss()(scores))


def test_descent_brings_crops_of_an_image_to_one_prototype_and_spreads_the_images():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(4, 12, 8, generator=generator).requires_grad_()
    prototypes = torch.randn(6, 8, generator=generator).requires_grad_()
    loss_fn, optimizer = SwAVLoss(), torch.optim.Adam([raw, prototypes], lr=0.05)
    for _ in range(100):
        scores = F.normalize(raw, dim=2) @ F.normalize(prototypes, dim=1).T
        loss = loss_fn(scores)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nearest = scores.argmax(dim=2)  # (4, 12)
    assert (nearest == nearest[0]).all()
    found = diagnose(loss.item(), count_usage(scores))
    assert found["relative_loss"] < 0.5
    assert found["prototypes_used"] == 1 and found["usage_entropy"] > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_coarsen_the_loss(dtype):
    scores, loss_fn = random_scores(3, 6, 4).to(dtype), SwAVLoss()
    with torch.autocast("cpu", dtype=dtype):
        inside = loss_fn(scores, scores[:2])
    assert inside.dtype == torch.float32
    assert torch.equal(inside, loss_fn(scores.float(), scores[:2].float()))


def test_a_nan_shows():
    scores = random_scores(3, 6, 4)
    scores[2, 3, 0] = torch.nan
    assert SwAVLoss()(scores).isnan()


@pytest.mark.parametrize("shape", [(6, 4), (1, 6, 4), (3, 0, 4), (3, 6, 0)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"scores have shape .* of at least 2 crops"):
        SwAVLoss()(torch.zeros(shape))


def test_fewer_crops_than_get_codes_are_refused():
    with pytest.raises(ValueError, match="at least 3 crops"):
        SwAVLoss(num_assigned=3)(torch.zeros(2, 6, 4))


@pytest.mark.parametrize("shape", [(9, 4), (1, 9, 4), (2, 9, 5)])
def test_other_shapes_of_queued_scores_are_refused(shape):
    with pytest.raises(ValueError, match=r"queued_scores have shape .*; give \(2, Q, 4\)"):
        SwAVLoss()(torch.zeros(3, 6, 4), torch.zeros(shape))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_assigned": 0}, "num_assigned=0 leaves nothing to predict"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": math.nan}, "temperature=nan must be above 0"),
        ({"epsilon": 0.0}, "epsilon=0.0 must be above 0"),
        ({"epsilon": math.inf}, "epsilon=inf must be above 0"),
        ({"iterations": 0}, "iterations=0 assign nothing evenly"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        SwAVLoss(**setting)


# The queue


def numbered(*numbers):
    """Return (2, B, 3) embeddings, those of the second crop 100 higher."""
    rows = torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 3)
    return torch.stack([rows, rows + 100])


def test_the_queue_holds_the_latest_and_drops_the_oldest_first():
    queue = EmbeddingQueue(5, 3)
    held = []
    for pushed in ([1, 2], [3, 4], [5, 6], [7], [8, 9, 10, 11, 12, 13]):
        queue.push(numbered(*pushed))
        held.append((queue.embeddings[0, :, 0].tolist(), queue.is_full))
        assert torch.equal(queue.embeddings[1], queue.embeddings[0] + 100)
    assert held == [
        ([1, 2], False),
        ([1, 2, 3, 4], False),
        ([2, 3, 4, 5, 6], True),
        ([3, 4, 5, 6, 7], True),
        ([9, 10, 11, 12, 13], True),
    ]


def test_the_queue_keeps_values_and_no_graph():
    queue, embeddings = EmbeddingQueue(2, 3), numbered(1, 2).requires_grad_()
    queue.push(embeddings)
    with torch.no_grad():
        embeddings += 1
    assert not queue.embeddings.requires_grad
    assert torch.equal(queue.embeddings, numbered(1, 2))


@pytest.mark.parametrize("shape", [(4, 3), (1, 4, 3), (2, 4, 5)])
def test_the_queue_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"embeddings have shape .*; give \(2, B, 3\)"):
        EmbeddingQueue(5, 3).push(torch.zeros(shape))


def test_a_queue_that_holds_nothing_is_refused():
    with pytest.raises(ValueError, match="a queue of 0 embeddings"):
        EmbeddingQueue(0, 3)


# The diagnosis


def test_usage_counts_the_nearest_prototype_of_every_crop():
    scores = torch.tensor([[[0.1, 0.9, 0.0], [0.3, 0.2, 0.1]], [[0.0, 0.5, 0.4], [-1, -0.3, -0.6]]])
    assert count_usage(scores).tolist() == [1, 3, 0]


def test_a_diagnosis_by_hand():
    found = diagnose(math.log(4) / 2, torch.tensor([2, 0, 1, 1]))
    # Entropy of 1/2, 1/4, 1/4 is 1.5 ln 2, of at most 2 ln 2.
    assert found == pytest.approx(
        {"relative_loss": 0.5, "prototypes_used": 0.75, "usage_entropy": 0.75}
    )


def test_the_diagnosis_of_a_collapse_and_of_even_usage():
    scores = random_scores(1, 1, 5).expand(2, 8, 5) / 1000
    collapsed = diagnose(SwAVLoss()(scores).item(), count_usage(scores))
    assert collapsed == pytest.approx(
        {"relative_loss": 1.0, "prototypes_used": 0.2, "usage_entropy": 0.0}, abs=1e-3
    )
    even = diagnose(0.0, torch.full((5,), 3))
    assert even == pytest.approx(
        {"relative_loss": 0.0, "prototypes_used": 1.0, "usage_entropy": 1.0}
    )


@pytest.mark.parametrize("usage", [[0, 0, 0], [4], [[1, 2], [3, 4]]], ids=str)
def test_a_diagnosis_of_nothing_is_refused(usage):
    with pytest.raises(ValueError, match="count at least one crop over at least two prototypes"):
        diagnose(1.0, torch.tensor(usage))
