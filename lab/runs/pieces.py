"""Where PyTorch's distributed checkpoints (DCP) put the pieces of sharded tensors, in place of DCP's own storage.

DCP says which process writes what, and who reads what where their number has changed. Its own storage pickles that plan;
this one writes pieces as the checkpoint itself is written, and leaves the plan to it, as plain types.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from utils import load_tensors, save_tensors, sync_folder, writing

Places = dict[str, Any]  # of a tensor: {"shape", "dtype", "pieces": [(offsets, sizes, file)]}


def write(tensors: dict[str, Tensor], directory: Path, stem: str) -> dict[str, Places]:
    """Writes this process's pieces of tensors (DTensors) as <stem>-<rank>.pt below a directory; all must call it.

    Gives the main process the places of all. All raise what one raises.
    """
    writer = Writer(directory, stem)
    with one_error():
        dcp.save(tensors, storage_writer=writer)
    return writer.places


def read(tensors: dict[str, Tensor], directory: Path, places: Mapping[str, Places]) -> None:
    """Fills tensors, or this process's part of them, from the pieces in those places; needs no other process."""
    with one_error(), warnings.catch_warnings(action="ignore"):  # that it does not
        dcp.load(tensors, storage_reader=Reader(directory, places), no_dist=True)


@contextmanager
def one_error() -> Iterator[None]:
    """Raises, in place of DCP's collection of errors from all processes, the first of them."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


class Writer(dcp.StorageWriter):
    """Writes this process's pieces as one file, <stem>-<rank>.pt; `places` says in the main process where all lie."""

    def __init__(self, directory: Path, stem: str) -> None:
        self.directory, self.stem = directory, stem
        self.file = f"{stem}-{torch.distributed.get_rank()}.pt"
        self.places: dict[str, dict[str, Any]] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        path = self.directory / self.file
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        pieces = {}
        for item in plan.items:
            piece = planner.resolve_data(item).detach().cpu()  # type: ignore[union-attr]
            is_part = piece.untyped_storage().nbytes() > piece.nbytes  # of what would all be written
            pieces[key_of(item.index)] = piece.clone() if is_part else piece
        save_tensors(path, pieces)
        sync_folder(path.parent.parent)
        return done([WriteResult(item.index, 0, self.file) for item in plan.items])

    def finish(self, metadata: dcp_metadata.Metadata, results: list[list[WriteResult]]) -> None:
        files = {result.index: result.storage_data for written in results for result in written}
        for name, tensor in metadata.state_dict_metadata.items():
            chunks = [(chunk, files[dcp_metadata.MetadataIndex(name, chunk.offsets)]) for chunk in tensor.chunks]  # type: ignore[union-attr]
            self.places[name] = {
                "shape": list(tensor.size),  # type: ignore[union-attr]
                "dtype": tensor.properties.dtype,  # type: ignore[union-attr]
                "pieces": [(list(chunk.offsets), list(chunk.sizes), file) for chunk, file in chunks],
            }

    def reset(self, checkpoint_id: Any = None) -> None: ...
    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class Reader(dcp.StorageReader):
    """Reads what `Writer` wrote, of tensors that lie in those places; one file after the other is in memory."""

    def __init__(self, directory: Path, places: Mapping[str, dict[str, Any]]) -> None:
        self.directory, self.places = directory, places
        self.files = {
            dcp_metadata.MetadataIndex(name, offsets): file
            for name, tensor in places.items()
            for offsets, _, file in tensor["pieces"]
        }

    def read_metadata(self, *_: Any, **__: Any) -> dcp_metadata.Metadata:
        return dcp_metadata.Metadata(
            {
                name: dcp_metadata.TensorStorageMetadata(
                    dcp_metadata.TensorProperties(tensor["dtype"]),
                    torch.Size(tensor["shape"]),
                    [
                        dcp_metadata.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
                        for offsets, sizes, _ in tensor["pieces"]
                    ],
                )
                for name, tensor in self.places.items()
            }
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for file in sorted({self.files[item.storage_index] for item in plan.items}):
            pieces = load_tensors(self.directory / file)
            for item in plan.items:
                if self.files[item.storage_index] == file:
                    piece = pieces[key_of(item.storage_index)]
                    for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                        piece = piece.narrow(dimension, start, length)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(piece)
                    planner.commit_tensor(item, target)
        return done(None)

    def reset(self, checkpoint_id: Any = None) -> None: ...
    def set_up_storage_reader(self, metadata: Any, is_coordinator: bool, *_: Any, **__: Any) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def key_of(index: dcp_metadata.MetadataIndex) -> str:
    """Under which a piece stands in its file."""
    return f"{index.fqn}@{','.join(map(str, index.offset or ()))}"


def done(value: Any) -> Future[Any]:
    """What DCP takes from a storage that has done its work already."""
    future: Future[Any] = Future()
    future.set_result(value)
    return future
