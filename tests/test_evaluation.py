"""Embedding a set in evaluation mode, and retrieval on what comes out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmlkit.datasets import ImageSet
from dmlkit.evaluation import embed, evaluate, evaluate_embeddings
from dmlkit.metrics import retrieval_metrics
from dmlkit.transforms import centre_crop

CPU = torch.device("cpu")


def photographs(count=24, num_classes=4, size=6):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    names = tuple(f"class {c}" for c in range(num_classes))
    return ImageSet(images, torch.arange(count) % num_classes, names, "0a", torch.arange(count))


def crop(images, sizes=None):
    return centre_crop(images, image_size=4)


def test_a_trivial_model_is_retrieval_among_the_raw_pixels():
    image_set = photographs()
    pixels = image_set.images[..., 1:5, 1:5].float().flatten(1) / 255

    result = evaluate(nn.Flatten(), image_set, crop, device=CPU, ks=(1, 3))

    expected = retrieval_metrics(F.normalize(pixels, dim=1), image_set.labels, ks=(1, 3))
    assert result.metrics == expected.means()
    assert torch.equal(result.embeddings, F.normalize(pixels, dim=1))
    assert torch.equal(result.retrieval.neighbours, expected.neighbours)


def test_a_part_of_a_set_is_embedded_from_its_own_rows_of_the_store():
    part = photographs().keep_classes(torch.tensor([1, 3]))
    rows = torch.arange(24)[torch.arange(24) % 2 == 1]
    embeddings = embed(nn.Flatten(), part, crop, device=CPU)
    assert torch.equal(embeddings, crop(photographs().images[rows]).flatten(1))


@pytest.fixture
def network():
    """A network whose batch norm and dropout would show if it were left in training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    for _ in range(3):
        model(torch.rand(16, 3, 4, 4))
    return model.train()


@pytest.mark.parametrize("batch_size", [1, 7, 24, 1000])
def test_images_are_embedded_in_evaluation_mode_whatever_the_batch_size(network, batch_size):
    image_set = photographs()
    statistics = network[2].running_mean.clone()

    embeddings = embed(network, image_set, crop, device=CPU, batch_size=batch_size)

    assert torch.equal(network[2].running_mean, statistics)
    with torch.no_grad():
        expected = network.eval()(crop(image_set.images))
    torch.testing.assert_close(embeddings, expected)


def test_embeddings_are_float32_on_the_cpu_and_hold_no_graph(network):
    embeddings = embed(
        network.bfloat16(), photographs(), lambda x, sizes: crop(x).bfloat16(), device=CPU
    )
    assert embeddings.dtype == torch.float32
    assert embeddings.device == CPU
    assert not embeddings.requires_grad


def test_embeddings_are_brought_to_unit_length_before_retrieval():
    # At 10, 0, 0 and 20 degrees; by inner product instead, the last, longest row would win.
    embeddings = torch.tensor([[98.5, 17.4], [1.0, 0.0], [2.0, 0.0], [940.0, 342.0]])
    result = evaluate_embeddings(embeddings.double(), torch.tensor([0, 1, 1, 0]), ks=(1,))
    torch.testing.assert_close(result.embeddings.norm(dim=1), torch.ones(4))
    assert result.retrieval.neighbours[1:3, 0].tolist() == [2, 1]
    assert result.embeddings.dtype == torch.float32


def test_queries_with_a_gallery_are_compared_with_it_alone():
    embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    gallery = torch.tensor([[2.0, 0.1], [0.1, 3.0]]), torch.tensor([0, 1])
    result = evaluate_embeddings(embeddings, torch.tensor([0, 1, 1]), ks=(1,), gallery=gallery)
    # The second query's nearest item is of class 0; among the queries it would be the first one.
    assert result.retrieval.per_query["recall_at_1"].tolist() == [1, 0, 1]
    assert result.embeddings.shape == (3, 2)


def test_a_gallery_is_embedded_by_the_model_too():
    queries, gallery = photographs(8), photographs(24)
    result = evaluate(nn.Flatten(), queries, crop, device=CPU, ks=(1,), gallery=gallery)
    # The gallery holds each query, which no self-match hides.
    assert result.metrics["recall_at_1"] == 1
    assert len(result.retrieval.queries) == 8
