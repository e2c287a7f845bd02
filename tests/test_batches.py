"""Batches of images: what they hold, and that the next one is prepared meanwhile."""

import threading

import pytest
import torch

from dmlkit.batches import ahead, image_batches
from dmlkit.datasets import ImageSet
from dmlkit.transforms import RandomResizedCropFlip

CPU = torch.device("cpu")


def three_images(sizes=None):
    """Three images on rows 5, 1 and 3 of a store whose row r is filled with r."""
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 2, 2)
    index = torch.tensor([5, 1, 3])
    return ImageSet(images, torch.tensor([0, 1, 2]), ("a", "b", "c"), "0a", index, sizes)


def test_image_batches_are_the_transformed_images_and_their_labels():
    sampler = [torch.tensor([2, 0]), torch.tensor([1, 1])]
    batches = image_batches(three_images(), sampler, lambda x, sizes: 10 * x.float(), CPU)
    pixels, labels = zip(*batches, strict=True)
    assert [p[:, 0, 0, 0].tolist() for p in pixels] == [[30, 50], [10, 10]]
    assert [y.tolist() for y in labels] == [[2, 0], [1, 1]]


def test_the_transform_gets_the_sizes_of_the_images_where_the_set_has_them():
    seen = []

    def transform(images, sizes):
        seen.append(sizes)
        return images

    sizes = torch.arange(12).view(6, 2)
    for image_set in (three_images(), three_images(sizes)):
        list(image_batches(image_set, [torch.tensor([0, 2])], transform, CPU))
    assert seen[0] is None
    assert seen[1].tolist() == [[10, 11], [6, 7]]


def test_the_next_item_is_prepared_while_one_is_worked_on():
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    for item in ahead(items()):
        # Without a thread of its own the second item would start only after this one.
        assert second.wait(timeout=60), item


def test_items_come_in_order_and_end():
    assert list(ahead(iter(range(5)))) == list(range(5))
    assert list(ahead(iter(()))) == []


def test_no_item_is_prepared_more_than_one_ahead():
    prepared, threads = [], threading.active_count()

    def items():
        for number in range(10):
            prepared.append(number)
            yield number

    source = ahead(items())
    for number in range(5):
        assert next(source) == number
        assert len(prepared) <= number + 2
    source.close()
    assert threading.active_count() == threads


def test_an_error_on_the_way_reaches_the_caller():
    def items():
        yield 1
        raise ValueError("broken image")

    source = ahead(items())
    assert next(source) == 1
    with pytest.raises(ValueError, match="broken image"):
        next(source)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_on_the_cpu_while_the_gpu_is_busy():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, 48, 48), dtype=torch.uint8, generator=generator)
    image_set = ImageSet(images, torch.arange(64), tuple(map(str, range(64))), "", torch.arange(64))
    positions = [torch.randint(64, (32,), generator=generator) for _ in range(20)]

    def batches(device):
        crop = RandomResizedCropFlip(40, seed=0)
        return image_batches(image_set, positions, crop, torch.device(device))

    busy = torch.rand(4096, 4096, device="cuda")
    for ours, theirs in zip(batches("cuda"), batches("cpu"), strict=True):
        for _ in range(5):
            busy = busy @ busy / 4096  # what a late copy or an early reuse would run beside
        assert torch.allclose(ours[0].cpu(), theirs[0], atol=1e-5)
        assert torch.equal(ours[1].cpu(), theirs[1])
