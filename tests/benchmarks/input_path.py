"""How fast images come in, as ratios of one run: ``python -m tests.benchmarks.input_path``.

Writes ``results/benchmarks/input_path.md``. PyTorch has one thread; a second one prepares batches.
On a machine with a GPU the ResNet-50 of the papers is trained there instead.
"""

import argparse
import io
import os
import platform
import statistics
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_metric_learning.samplers import MPerClassSampler as PeerSampler
from torchvision import transforms as v1

from dmlkit.batches import image_batches
from dmlkit.datasets import ImageSet, load
from dmlkit.datasets.cache import cached_arrays
from dmlkit.datasets.decoding import decode
from dmlkit.datasets.drawings.aviary import draw_image
from dmlkit.datasets.readers.listing import Listing
from dmlkit.losses import NormSoftmaxLoss
from dmlkit.models import EmbeddingHead, EmbeddingModel, make_trunk
from dmlkit.paths import PROJECT_ROOT, write_atomically
from dmlkit.samplers import MPerClassSampler
from dmlkit.training import fit
from dmlkit.transforms import RandomResizedCropFlip
from tests.official_trees import make_tree

ROUNDS = 7  # of which the median counts; the two sides of a ratio take turns


def main() -> None:
    """Run all measurements and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="results/benchmarks/input_path.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DMLKIT_CACHE"] = folder
        rows = [decoding(Path(folder)), gathering(), sampling(), *training(), memory(Path(folder))]
    lines = ["| what | measured | against | ratio | goal |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    lines += [
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {device};",
    ]
    lines += [
        f"torch {torch.__version__}, one thread and one that prepares batches. "
        f"Medians of {ROUNDS} rounds in turns."
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    with write_atomically(PROJECT_ROOT / options.output) as path:
        path.write_text(text)


def decoding(folder: Path) -> list[str]:
    """Decode JPEGs of 500 x 375 px into squares of 256, against Pillow with torchvision v1."""
    for number in range(64):
        bird = draw_image(0, number, 0, image_size=192)[0].transpose(1, 2, 0)
        image = Image.fromarray(bird).resize((500, 375), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.jpg", quality=90)
    files = [f"{number}.jpg" for number in range(64)]
    listing = Listing(folder, files, np.zeros(64, dtype=np.int64), ("bird",), 1)
    per_image = v1.Compose([v1.Resize((256, 256)), v1.PILToTensor()])
    store = np.empty((64, 3, 256, 256), dtype=np.uint8)

    def ours() -> None:
        for row in range(64):
            store[row] = decode(listing, row, 256)[0]

    def theirs() -> None:
        for row in range(64):
            data = (folder / files[row]).read_bytes()
            store[row] = per_image(Image.open(io.BytesIO(data)).convert("RGB"))

    ours, theirs = (64 / seconds for seconds in compare(ours, theirs))
    return row(
        "cache building, 500 x 375 JPEG to 256 px", ours, theirs, "Pillow, v1 transforms", 1.5
    )


def gathering() -> list[str]:
    """Gather random batches of 128 images of 256 px from the memory-mapped cache."""
    count = 4000

    def fill(arrays: dict[str, np.ndarray]) -> None:
        arrays["images"][:] = np.random.default_rng(0).integers(0, 256, (1, 3, 256, 256))

    shapes = {"images": ((count, 3, 256, 256), np.uint8)}
    images = cached_arrays("images/benchmark", shapes, fill)["images"]
    image_set = ImageSet(images, torch.zeros(count).long(), ("a",), "", torch.arange(count))
    batches = torch.randint(count, (16, 128))

    def ours() -> None:
        for positions in batches:
            image_set.gather(positions)

    ours()  # the first time reads the disk
    seconds = statistics.median(timed(ours) for _ in range(ROUNDS))
    rate = batches.numel() / seconds
    goal = 15000
    return ["gathering batches, 256 px", f"{rate:,.0f} images/s", "goal", f"{rate / goal:.1f}", "1"]


def sampling() -> list[str]:
    """Draw one epoch of batches over labels like those of Stanford Online Products."""
    sizes = np.random.default_rng(0).multinomial(59551 - 2 * 11318, np.ones(11318) / 11318) + 2
    labels = np.repeat(np.arange(11318), sizes)
    batches = len(labels) // 112
    ours = MPerClassSampler(labels, batch_size=112, images_per_class=4, seed=0)
    theirs = PeerSampler(labels, m=4, batch_size=112, length_before_new_iter=len(labels))
    ours, theirs = compare(lambda: list(islice(ours, batches)), lambda: list(theirs))
    what = "m per class, one epoch of 59,551 labels"
    return row(what, batches / ours, batches / theirs, "pytorch-metric-learning", 5, "batches/s")


def training() -> list[list[str]]:
    """Train on images from the cache, against the same trunk on one fixed batch."""
    if torch.cuda.is_available():
        return [train("resnet50", 224, 256, 112, 60, "cuda", "bfloat16")]
    return [
        train("small_convnet", 48, 48, 64, 12, "cpu", "float32"),
        train("mobilenet_v2", 129, 144, 32, 4, "cpu", "float32"),
    ]


def train(
    trunk: str, image_size: int, stored: int, batch: int, steps: int, name: str, precision: str
) -> list[str]:
    """Return one comparison of training with input against training without."""
    device, count = torch.device(name), 2000
    arrays = cached_arrays(
        f"images/{trunk}",
        {"images": ((count, 3, stored, stored), np.uint8)},
        lambda arrays: arrays["images"].fill(127),
    )
    labels = torch.arange(count) % 100
    names = tuple(map(str, range(100)))
    image_set = ImageSet(arrays["images"], labels, names, "", torch.arange(count))
    body = make_trunk(trunk, weights="none", convention="torchvision", freeze_batch_norm=False)
    model = EmbeddingModel(body, EmbeddingHead(body.out_features, 128)).to(device)
    loss = NormSoftmaxLoss(100, 128).to(device)
    sampler = MPerClassSampler(labels, batch_size=batch, images_per_class=4, seed=0)
    augment = RandomResizedCropFlip(image_size, seed=0)
    batches = image_batches(image_set, sampler, augment, device)
    fixed = torch.rand(batch, 3, image_size, image_size, device=device), labels[:batch].to(device)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=1e-5)

    def compute_loss(pair) -> torch.Tensor:
        return loss(model(pair[0]), pair[1])

    def run(source) -> None:
        with redirect_stdout(io.StringIO()):  # no progress bars
            fit([model, loss], source, compute_loss, optimizer, steps, precision=precision)

    run(fixed for _ in range(steps))  # warm
    ours, floor = compare(lambda: run(batches), lambda: run(fixed for _ in range(steps)))
    images = batch * steps
    what = f"training, {trunk} at {image_size} px, {name} {precision}"
    return row(what, images / ours, images / floor, "trunk on a fixed batch", 0.9)


def memory(folder: Path) -> list[str]:
    """Return the comparison of a tree of the size of SOP with one a hundredth of it."""
    found = []
    for full in (False, True):  # a process each, or the second would find room that the first left
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found.append(pool.submit(most_anonymous_mib, folder, full).result())
    what = "most anonymous memory while decoding and sampling 120,053 images of 64 px (1.5 GB)"
    return [what, f"{found[1]:.0f} MiB", f"{found[0]:.0f} MiB (1,130 images)", "", "flat"]


def most_anonymous_mib(folder: Path, full: bool) -> float:
    """Return how much memory listing, decoding and sampling a tree takes at most."""
    classes = {} if full else {"num_classes": 226, "images_per_class": 5}
    tree = make_tree("stanford_online_products", folder / f"tree{full}", full=full, **classes)
    done, samples = threading.Event(), [anonymous_mib()]

    def watch() -> None:
        while not done.wait(0.05):
            samples.append(anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    splits = load("stanford_online_products", tree, image_size=64)
    sampler = MPerClassSampler(splits.train.labels, batch_size=64, images_per_class=4, seed=0)
    augment = RandomResizedCropFlip(48, seed=0)
    for _ in islice(image_batches(splits.train, sampler, augment, torch.device("cpu")), 200):
        pass
    done.set()
    watcher.join()
    return max(samples) - samples[0]


def anonymous_mib() -> float:
    """Return the memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not say RssAnon")


def compare(ours, theirs) -> tuple[float, float]:
    """Return the median seconds of two functions that take turns."""
    seconds = [(timed(ours), timed(theirs)) for _ in range(ROUNDS)]
    return tuple(map(statistics.median, zip(*seconds, strict=True)))


def timed(do) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def row(
    what: str, ours: float, theirs: float, against: str, goal: float, unit: str = "images/s"
) -> list[str]:
    """Return a line of the table."""
    compared = f"{theirs:,.0f} {unit} ({against})"
    return [what, f"{ours:,.0f} {unit}", compared, f"{ours / theirs:.2f}", f"{goal}"]


if __name__ == "__main__":
    main()
