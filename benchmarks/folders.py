"""Folders of images: how fast they stream, against what the processors can decode at all, and what a decoded cache gives.

python benchmarks/folders.py data.root=path/to/images
Expect: streaming at 0.9 of bare decoding or more; memory that does not grow from epoch to epoch.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from model.cache import decode_once
from model.data_loader import Loader, make_loader
from model.datasets import image_folder
from model.examples import Folder, read_image
from model.splits import describe

NUM_IMAGES = 50_000
NUM_ROUNDS = 3
BATCH_SIZE = 128


def decode(files: list[str]) -> None:
    """What cannot be avoided: each file read, decoded and resized."""
    torch.set_num_threads(1)
    for file in files:
        read_image(Path(file), 32)


def decode_bare(folder: Folder, num_processes: int) -> float:
    """Images a second, by so many processes that do nothing else."""
    files = [str(file) for file in folder.files]
    chunks = [files[i : i + 100] for i in range(0, len(files), 100)]
    with multiprocessing.get_context("fork").Pool(num_processes) as pool:
        started = time.perf_counter()
        for _ in pool.imap_unordered(decode, chunks):
            pass
        return len(files) / (time.perf_counter() - started)


def stream(loader: Loader) -> Iterator[float]:
    """Images a second in each epoch; the first one also starts the workers."""
    for epoch in range(1, NUM_ROUNDS + 2):
        loader.set_epoch(epoch)
        started = time.perf_counter()
        num_images = sum(len(targets) for _, targets, _ in loader)
        yield num_images / (time.perf_counter() - started)
    loader.close()


def megabytes(who: int = resource.RUSAGE_SELF) -> float:
    """The most memory that this process has had; for RUSAGE_CHILDREN, the largest of those that have ended."""
    return resource.getrusage(who).ru_maxrss / 1024


def main() -> None:
    root = next((argument.partition("=")[2] for argument in sys.argv[1:] if argument.startswith("data.root=")), "")
    if not root:
        sys.exit("folders.py: data.root is missing; name a folder with train/<class>/*.png or *.jpg")
    found = image_folder("train", root, image_size=32)
    assert found is not None
    folder = found.subset(torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:NUM_IMAGES])
    spec = describe(folder, None, None)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    torch.set_num_threads(1)  # of this process, which only hands the batches on: the workers need the processors

    def loader_for(examples: Folder) -> Loader:
        options = {"shuffle": True, "num_workers": cpus}
        return make_loader(examples, spec, batch_size=BATCH_SIZE, device=torch.device("cpu"), **options)

    bare, streamed, memory = [], [], []
    streaming = stream(loader_for(folder))
    next(streaming)
    for rate in streaming:  # alternating, so that what else the machine does touches both
        streamed.append(rate)
        memory.append(megabytes())
        bare.append(decode_bare(folder, cpus))
    ratios = [one / other for one, other in zip(streamed, bare, strict=True)]
    middle: Callable[[list[float]], float] = statistics.median
    print(f"{len(folder):,} images of 32x32, {cpus} processors, batches of {BATCH_SIZE}")
    print(f"bare decoding  {middle(bare):8,.0f} images/s")
    print(
        f"streaming      {middle(streamed):8,.0f} images/s, {middle(ratios):.2f} of bare decoding (median of {NUM_ROUNDS})"
    )
    peaks = ", ".join(f"{peak:,.0f}" for peak in memory)
    print(f"peak memory    {peaks} MiB after each epoch, of a worker {megabytes(resource.RUSAGE_CHILDREN):,.0f} MiB")
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        decoded = decode_once(folder, Path(cache))
        assert len(decoded.pixels) == len(folder)
        print(f"decoded once in {time.perf_counter() - started:7.1f} s")
        mapped, in_memory = (list(stream(loader_for(examples)))[1:] for examples in (decoded, folder.in_memory()))  # type: ignore
    print(f"from the cache {middle(mapped):8,.0f} images/s; from memory {middle(in_memory):,.0f} images/s")


if __name__ == "__main__":
    main()
