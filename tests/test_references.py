"""Reference embeddings: against scikit-learn, by the covariances they promise, and by hand."""

from dataclasses import replace

import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn.functional import normalize

from dmlkit.datasets import load
from dmlkit.evaluation import evaluate_embeddings
from dmlkit.references import (
    OF_FEATURES,
    OF_PIXELS,
    colour_histogram,
    evaluate_reference,
    pca,
    raw_pixels,
    within_class_whitening,
)


def features(count, seed, dim=7):
    """Correlated features of unequal variance, away from the origin."""
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return noise * torch.arange(1, dim + 1) @ mixing + 5


def gram(rows):
    return rows @ rows.T


def covariance(rows):
    centred = rows - rows.mean(0)
    return centred.T @ centred / len(rows)


@pytest.mark.parametrize("dim", [1, 3, 7])
def test_pca_projects_as_scikit_learn_does_up_to_the_signs_of_the_axes(dim):
    train, test = features(60, seed=1), features(20, seed=2)
    expected = torch.from_numpy(PCA(dim).fit(train.double()).transform(test.double()))
    ours = pca(train, test, dim)
    assert ours.shape == (20, dim) and ours.dtype == torch.float32
    torch.testing.assert_close(gram(ours.double()), gram(expected), rtol=1e-5, atol=1e-3)


def test_whitened_pca_is_scikit_learns_up_to_its_divisor():
    train, test = features(60, seed=1), features(20, seed=2)
    model = PCA(3, whiten=True).fit(train.double())
    expected = torch.from_numpy(model.transform(test.double()))
    ours = pca(train, test, 3, whiten=1.0)
    # scikit-learn divides by the variance with 59 in its denominator, we by the one with 60.
    torch.testing.assert_close(gram(ours.double()) * 59 / 60, gram(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_the_variance_of_each_component_falls_to_the_promised_power(whiten):
    train = features(60, seed=1)
    variances = torch.linalg.eigvalsh(covariance(train.double()))[-4:]
    mapped = pca(train, train, 4, whiten=whiten).double()
    # Divided by deviation ** whiten, i.e. variance ** (whiten / 2), the variance is V ** (1 - w).
    expected = variances ** (1 - whiten)
    torch.testing.assert_close(covariance(mapped), expected.diag(), rtol=1e-4, atol=1e-3)


def test_whitening_a_direction_without_variance_stays_finite():
    train = features(60, seed=1)
    train[:, 0] = 3.0
    assert pca(train, train, 7, whiten=1.0).isfinite().all()


def labelled(count=80):
    labels = torch.randint(5, (count,), generator=torch.Generator().manual_seed(3))
    return features(count, seed=4) + 20 * torch.eye(7)[labels], labels


def within_class_covariance(rows, labels):
    residuals = [rows[labels == c] - rows[labels == c].mean(0) for c in labels.unique()]
    residuals = torch.cat(residuals)
    return residuals.T @ residuals / len(rows)


def test_without_shrinkage_the_training_classes_become_round():
    train, labels = labelled()
    mapped = within_class_whitening(train, labels, train, shrinkage=0.0).double()
    within = within_class_covariance(mapped, labels)
    torch.testing.assert_close(within, torch.eye(7).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(mapped.mean(0), torch.zeros(7).double(), rtol=0, atol=1e-4)


def test_shrinkage_mixes_the_mean_variance_into_each_direction():
    train, labels = labelled()
    mapped = within_class_whitening(train, labels, train, shrinkage=0.25).double()
    variances = torch.linalg.eigvalsh(within_class_covariance(train.double(), labels))
    expected = variances / (0.75 * variances + 0.25 * variances.mean())
    torch.testing.assert_close(
        within_class_covariance(mapped, labels), expected.diag(), rtol=1e-4, atol=1e-4
    )


def test_full_shrinkage_only_turns_and_scales():
    train, labels = labelled()
    test = features(10, seed=5)
    mapped = within_class_whitening(train, labels, test, shrinkage=1.0)
    scale = within_class_covariance(train.double(), labels).diag().mean()
    centred = test.double() - train.double().mean(0)
    torch.testing.assert_close(gram(mapped.double()), gram(centred) / scale, rtol=1e-4, atol=1e-4)


def image(*pixels):
    """One image of a single row from its RGB pixels: (1, 3, 1, W)."""
    return torch.tensor(pixels, dtype=torch.uint8).T[None, :, None]


def test_a_colour_histogram_by_hand():
    # Cells of 64 grey levels: (0,0,0), twice (3,3,3) and (1,0,2), numbered 16 r + 4 g + b.
    histogram = colour_histogram(image((0, 63, 5), (255, 192, 200), (193, 255, 255), (64, 0, 191)))
    expected = torch.zeros(1, 64)
    expected[0, 0], expected[0, 63], expected[0, 18] = 0.25**0.5, 0.5**0.5, 0.25**0.5
    torch.testing.assert_close(histogram, expected)


def test_the_place_of_a_pixel_does_not_matter_to_the_histogram_and_images_do_not_mix():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 3, 5, 4), dtype=torch.uint8, generator=generator)
    together = colour_histogram(images, bins=3)
    assert together.shape == (3, 27)
    torch.testing.assert_close(together.square().sum(1), torch.ones(3))
    torch.testing.assert_close(together, colour_histogram(images.flip(2, 3), bins=3))
    torch.testing.assert_close(together[1:2], colour_histogram(images[1:2], bins=3))


def test_raw_pixels_by_hand_without_the_mean_of_each_channel():
    # Red 0, 255; green 51, 51; blue 255, 204 (1.0 and 0.8).
    pixels = raw_pixels(image((0, 51, 255), (255, 51, 204)))
    expected = torch.tensor([[-0.5, 0.5, 0.0, 0.0, 0.1, -0.1]])
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OF_PIXELS + OF_FEATURES)
def test_a_reference_is_measured_on_the_test_images_or_their_features(name):
    images = load("aviary", image_size=16, max_classes=8, max_images_per_class=4)
    test = images.test.all_images()

    def with_features(part):
        features = part.images.float().flatten(1)[:, None, :40]  # one view
        return part.with_images(features)

    features = replace(images, train=with_features(images.train), test=with_features(images.test))
    of_train, of_test = (
        normalize(part.all_images()[:, 0]) for part in (features.train, features.test)
    )
    expected = {
        "colour_histogram": lambda: colour_histogram(test),
        "raw_pixels": lambda: raw_pixels(test),
        "frozen_trunk": lambda: of_test,
        "pca": lambda: pca(of_train, of_test, 5),
        "half_whitened_pca": lambda: pca(of_train, of_test, 512, whiten=0.5),
        "within_class_whitening": lambda: within_class_whitening(
            of_train, images.train.labels, of_test
        ),
    }[name]()
    found = evaluate_reference(name, images, features, embedding_dim=5, ks=(1, 2))
    wanted = evaluate_embeddings(expected, images.test.labels, ks=(1, 2))
    assert found.metrics == wanted.metrics


def test_an_unknown_reference_is_refused():
    images = load("aviary", image_size=16, max_classes=8, max_images_per_class=4)
    with pytest.raises(ValueError, match="no reference 'luck'; choose from colour_histogram"):
        evaluate_reference("luck", images, images, embedding_dim=5, ks=(1,))
