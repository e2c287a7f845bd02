"""SelfSupervisedRankingLoss against its formula, by hand and view by view, and its limits."""

import math

import pytest
import torch
import torch.nn.functional as F

from dmlkit.losses import SelfSupervisedRankingLoss, hyperparameters

ORDER = {"order_weight": 1.0, "floor_weight": 0.0}
FLOOR = {"order_weight": 0.0, "floor_weight": 1.0}
both_terms = pytest.mark.parametrize("settings", [ORDER, FLOOR], ids=["order", "floor"])


def views_at(*similarities):
    """Return (1, 1 + N, 2) unit views that have these cosines with the first."""
    cosine = torch.tensor([1.0, *similarities], dtype=torch.float64)
    return torch.stack([cosine, (1 - cosine**2).sqrt()], dim=1)[None]


def random_views(images=6, views=4, dim=5):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(images, 1 + views, dim, generator=generator, dtype=torch.float64)
    return F.normalize(rows, dim=2)


def reference_loss(views, margin, floor, scale, order_weight, floor_weight):
    """The formula, one image and one view at a time."""
    total = 0.0
    for image, *others in views:
        similarity = [torch.dot(other, image).item() for other in others]
        disorder = sum(
            math.exp(scale * (stronger - weaker + margin))
            for weaker, stronger in zip(similarity, similarity[1:], strict=False)
        )
        depth = sum(math.exp(-scale * (value - floor)) for value in similarity)
        total += order_weight * math.log(1 + disorder) / scale
        total += floor_weight * math.log(1 + depth) / scale
    return total / len(views)


def test_four_views_at_even_distances_by_hand():
    views = views_at(0.9, 0.8, 0.7, 0.6)
    # log(1 + 3 exp(12 (-0.1 + 0.05))) / 12, and
    # log(1 + exp(-4.8) + exp(-3.6) + exp(-2.4) + exp(-1.2)) / 12.
    assert SelfSupervisedRankingLoss(**ORDER)(views).item() == pytest.approx(0.081101, abs=5e-7)
    assert SelfSupervisedRankingLoss(**FLOOR)(views).item() == pytest.approx(0.029658, abs=5e-7)
    assert SelfSupervisedRankingLoss()(views).item() == pytest.approx(0.110759, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"margin": 0.05, "floor": 0.5, "scale": 12.0, "order_weight": 1.0, "floor_weight": 1.0},
        {"margin": 0.2, "floor": -0.3, "scale": 3.0, "order_weight": 0.7, "floor_weight": 2.5},
    ],
    ids=["defaults", "others"],
)
@pytest.mark.parametrize("views", [1, 2, 4])
def test_matches_the_formula_view_by_view(views, settings):
    rows = random_views(views=views)
    loss = SelfSupervisedRankingLoss(**settings)(rows)
    assert loss.item() == pytest.approx(reference_loss(rows, **settings))


def test_the_defaults_are_those_of_the_paper():
    expected = {"margin": 0.05, "floor": 0.5, "scale": 12.0}
    expected |= {"order_weight": 1.0, "floor_weight": 1.0}
    assert hyperparameters(SelfSupervisedRankingLoss()) == expected


def test_gradients_are_those_of_the_value():
    views = random_views(images=3).requires_grad_()
    assert torch.autograd.gradcheck(SelfSupervisedRankingLoss(), views)


@both_terms
def test_each_term_alone_moves_every_view_and_the_image(settings):
    views = random_views().requires_grad_()
    SelfSupervisedRankingLoss(**settings)(views).backward()
    assert (views.grad.norm(dim=2) > 0).all()


def test_a_single_view_has_no_order_but_a_floor():
    views = views_at(0.3).requires_grad_()
    order = SelfSupervisedRankingLoss(**ORDER)(views)
    order.backward()
    assert order.item() == 0
    assert (views.grad == 0).all()
    loss = SelfSupervisedRankingLoss()(views)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(2.4)) / 12)


def test_the_order_of_the_images_does_not_matter_and_that_of_the_views_does():
    views = torch.cat([views_at(0.95, 0.85, 0.75, 0.65), views_at(0.9, 0.8, 0.7, 0.6)])
    loss_fn = SelfSupervisedRankingLoss()
    loss = loss_fn(views)
    torch.testing.assert_close(loss_fn(views.flip(0)), loss)
    for order in ([0, 2, 1, 3, 4], [0, 4, 3, 2, 1], [0, 3, 4, 1, 2]):
        assert loss_fn(views[:, order]) > loss + 0.02


def test_descent_brings_views_into_their_order_and_above_the_floor():
    raw, loss_fn = random_views(images=8, dim=16).requires_grad_(), SelfSupervisedRankingLoss()
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss_fn(F.normalize(raw, dim=2)).backward()
        optimizer.step()
    views = F.normalize(raw.detach(), dim=2)
    similarity = (views[:, 1:] * views[:, :1]).sum(dim=2)
    assert (similarity.diff(dim=1) < -0.05).all()
    assert (similarity > 0.5).all()


@both_terms
def test_a_high_scale_leaves_the_worst_violation_and_no_overflow(settings):
    views = views_at(0.2, 0.1, 0.6).float().requires_grad_()
    loss = SelfSupervisedRankingLoss(scale=1e6, **settings)(views)
    loss.backward()
    # In order 0.6 - 0.1 + 0.05, below the floor 0.5 - 0.1.
    assert loss.item() == pytest.approx(0.55 if settings == ORDER else 0.4, abs=1e-5)
    assert views.grad.isfinite().all()


@both_terms
def test_identical_views_have_a_finite_gradient(settings):
    views = views_at(1.0, 1.0, 1.0).requires_grad_()
    SelfSupervisedRankingLoss(**settings)(views).backward()
    assert views.grad.isfinite().all()


def test_a_nan_shows():
    views = random_views()
    views[2, 3, 0] = torch.nan
    assert SelfSupervisedRankingLoss()(views).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_coarsen_the_loss(dtype):
    views, loss_fn = random_views().to(dtype), SelfSupervisedRankingLoss()
    with torch.autocast("cpu", dtype=dtype):
        inside = loss_fn(views)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, loss_fn(views.float()))


@pytest.mark.parametrize(
    "shape", [(5, 8), (0, 5, 8), (3, 1, 8), (3, 0, 8)], ids=["flat", "no image", "no view", "none"]
)
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=rf"views have shape \({shape[0]}, .*give \(M, 1 \+ N, D"):
        SelfSupervisedRankingLoss()(torch.ones(shape))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"margin": -0.1}, "margin=-0.1 .* use 0 to 2"),
        ({"margin": 2.5}, "margin=2.5 .* use 0 to 2"),
        ({"floor": 1.5}, "floor=1.5 is no cosine"),
        ({"floor": math.nan}, "floor=nan is no cosine"),
        ({"scale": 0.0}, "scale=0.0 must be above 0"),
        ({"scale": -12.0}, "scale=-12.0 must be above 0"),
        ({"scale": math.inf}, "scale=inf must be above 0"),
        ({"order_weight": -1.0}, "order_weight=-1.0 is no weight"),
        ({"floor_weight": math.inf}, "floor_weight=inf is no weight"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        SelfSupervisedRankingLoss(**setting)
