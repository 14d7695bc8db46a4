"""Batches of examples that are read when they are needed, by worker processes: image files, someone's own dataset."""

from __future__ import annotations

import atexit
import math
import signal
from collections.abc import Iterator
from typing import Any

import torch

from model.batching import Batch, Batching
from model.examples import Folder
from model.streamed import Streamed, Transform
from model.transforms import transform_each
from model.trees import DataError, Tree, tree_map

Request = tuple[int, list[int]]  # an epoch, and the indices of a batch of its examples


class Reader:
    """What a worker process does: makes a batch of the examples asked for. `DataLoader` calls it a dataset."""

    def __init__(self, examples: Folder | Streamed, seed: int, transform: Transform | None) -> None:
        self.examples, self.seed, self.transform = examples, seed, transform

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, request: Request) -> tuple[Tree, Tree]:
        """(inputs, targets), on the CPU."""
        epoch, indices = request
        options: dict[str, Any] = {"seed": self.seed, "epoch": epoch}
        if isinstance(self.examples, Streamed):
            return self.examples.read(indices, transform=self.transform, **options)
        images, targets = self.examples.__getitems__(indices), self.examples.targets[indices]
        return transform_each(self.transform, images, targets, indices, **options)


class StreamLoader:
    """Batches that `num_workers` processes read (0: this one); what is done to a whole batch happens on the device."""

    def __init__(self, examples: Folder | Streamed, batching: Batching, *, num_workers: int) -> None:
        self.examples, self.batching, self.epoch, self.start = examples, batching, 0, 0
        self.num_examples, self.batch_size = batching.examples_per_epoch(len(examples)), batching.batch_size
        self.device = batching.device
        self.dataloader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
            Reader(examples, batching.seed, batching.transform),  # type: ignore[arg-type]
            batch_sampler=_Upcoming(self),  # type: ignore[arg-type]
            collate_fn=whole_batch,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=batching.device.type == "cuda",
            generator=torch.Generator(),  # its own: iterating must not draw from the global one
            worker_init_fn=_leave_stopping_to_the_parent if num_workers else None,
        )

    def __len__(self) -> int:
        return math.ceil(self.num_examples / self.batching.batch_size)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        self.epoch, self.start = epoch, start
        self.batching.set_epoch(epoch)

    def close(self) -> None:
        """Ends the worker processes. Left to the garbage collector, each would be waited for, in vain, for seconds."""
        atexit.unregister(self.close)
        if (iterator := self.dataloader._iterator) is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            self.dataloader._iterator = None

    def __iter__(self) -> Iterator[Batch]:
        batches = self.batching.batches(len(self.examples), self.epoch, self.start)
        for (own, size), read in zip(batches, self._read(), strict=True):
            inputs, targets = (tree_map(self.batching.to_device, tree) for tree in read)
            wanted = self.batching.mixing.wanted(own)
            pair = self.batching.finish(inputs, targets, wanted, wanted, self.batching.normalize)
            yield self.batching.transformed(Batch(*pair, size), own)

    def _read(self) -> Iterator[tuple[Tree, Tree]]:
        try:
            batches = iter(self.dataloader)
            if self.dataloader.num_workers:  # before PyTorch's own end of the workers, which can fail
                atexit.unregister(self.close)
                atexit.register(self.close)
            yield from batches
        except DataError as error:  # from a worker process it comes with that process's traceback as its text
            raise DataError(str(error).strip().splitlines()[-1].split("DataError: ")[-1]) from None
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            reason = " ".join(str(error).split())[:150]
            raise DataError(
                f"a process that reads the data has ended ({reason}); where memory is short, turn down data.num_workers "
                f"(it is {self.dataloader.num_workers}) or data.batch_size"
            ) from error


def whole_batch(batch: Any) -> Any:
    """What a `DataLoader` is to make of a batch that `Reader` gives: nothing, for it is whole already."""
    return batch


def _leave_stopping_to_the_parent(_: int) -> None:
    """In a worker: ignores the signals that ask a run to stop, for the step that is still to finish needs the worker.

    SIGTERM ends it, whatever handler was inherited: that is how `DataLoader` gets rid of a worker.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Upcoming:
    """The batches of the loader's current epoch, as `Reader` takes them: what `DataLoader` calls a batch sampler."""

    def __init__(self, loader: StreamLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Request]:
        loader = self.loader
        for own, _ in loader.batching.batches(len(loader.examples), loader.epoch, loader.start):
            yield loader.epoch, loader.batching.mixing.wanted(own).tolist()
