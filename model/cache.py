"""Folders of images that are decoded once: their pixels lie in one file, mapped into memory, from which batches are cut."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO

import torch
from filelock import FileLock
from torch import Tensor

from model.examples import Examples, Folder
from model.images import shown_name
from model.streaming import whole_batch
from model.trees import DataError

DECODED_AT_ONCE = 256  # images
HASHED_AT_ONCE = 2**24  # bytes


class Pixels:
    """The pixels of a folder's images, from a file in `cache`, which is written first where it is not there yet.

    The file's name says which images it was made of (their names, sizes and times) and how large they are in it; behind the
    pixels is their SHA-256, and a file that it does not fit is made anew.
    """

    def __init__(self, folder: Folder, cache: Path) -> None:
        self.folder, self.cache = folder, cache

    @functools.cached_property
    def tensor(self) -> Tensor:
        """uint8 [all images, channels, image_size, image_size], mapped; DataError where they cannot be written."""
        folder, cache = self.folder, self.cache
        found = [path.stat() for path in folder.files]
        content = f"{folder.fingerprint()} {[(file.st_size, file.st_mtime_ns) for file in found]}"
        path = cache / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}-{folder.image_size}.pixels"
        shape = (len(folder), *folder.shape)
        num_bytes = torch.Size(shape).numel()
        try:
            cache.mkdir(parents=True, exist_ok=True)
            refuse_link(lock := cache / f"{path.name}.lock")
            with FileLock(lock):  # several jobs of a sweep may want it at once
                if not is_as_written(path, num_bytes):
                    write_pixels(folder, path, shape)
        except OSError as error:
            reason = what_is_wrong(cache, error, num_bytes)
            raise DataError(f"data.cache is {cache}, {reason}; choose another folder, or null") from error
        return torch.from_file(str(path), shared=False, size=num_bytes, dtype=torch.uint8).view(shape)


def cache_folder(name: str) -> Path:
    """The folder that `data.cache` names; DataError where what is written there would land elsewhere."""
    folder = Path(name)
    if name.startswith("~"):
        raise DataError(f"data.cache is {name}; give the whole path, for no ~ is filled in")
    refuse_link(folder)
    return folder


def refuse_link(path: Path) -> None:
    """DataError where a path is a link, through which a file elsewhere would be written."""
    if path.is_symlink():
        raise DataError(f"data.cache writes into {shown_name(path)}, which is a link; give what it points to")


def is_as_written(path: Path, num_bytes: int) -> bool:
    """Whether a file holds so many bytes of pixels and, behind them, their SHA-256."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != num_bytes + 32:
        return False
    with path.open("rb") as file:
        return digest_of(file, num_bytes) == file.read(32)


def digest_of(file: BinaryIO, num_bytes: int) -> bytes:
    """SHA-256 of the first bytes of a file, which is then read up to there."""
    digest = hashlib.sha256()
    for start in range(0, num_bytes, HASHED_AT_ONCE):
        digest.update(file.read(min(HASHED_AT_ONCE, num_bytes - start)))
    return digest.digest()


def what_is_wrong(cache: Path, error: OSError, num_bytes: int) -> str:
    """Why a folder could not take so many bytes, in words."""
    for path in (cache, *cache.parents):
        if path.exists() and not path.is_dir():
            return f"{'which' if path == cache else f'but {path}'} is a file and no folder"
    if error.errno not in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"where nothing can be written ({error.strerror or error})"
    free = shutil.disk_usage(cache).free / 2**20 if cache.is_dir() else 0
    return (
        f"which cannot hold the decoded images ({error.strerror or error}; "
        f"{num_bytes / 2**20:,.0f} MiB are needed, {free:,.0f} are free)"
    )


@dataclass(frozen=True)
class Decoded(Folder):
    """A folder of images whose pixels lie decoded in a file: reading one costs a copy, and memory only while it is used.

    They are decoded when the first is asked for, if they have not been. rows: which of the file's images are these, [n].
    """

    store: Pixels
    rows: Tensor

    @property
    def pixels(self) -> Tensor:
        """uint8 [all images of the file, channels, image_size, image_size], mapped."""
        return self.store.tensor

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.pixels[self.rows[index]], self.targets[index], index

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return self.pixels[self.rows[torch.tensor(indices)]]

    def subset(self, indices: Tensor) -> Decoded:
        """Only the examples at `indices` [m]; their pixels stay where they are."""
        files = [self.files[i] for i in indices.tolist()]
        return replace(self, files=files, targets=self.targets[indices], rows=self.rows[indices])

    def in_memory(self) -> Examples:
        """All images, copied out of the file."""
        return Examples(self.pixels[self.rows], self.targets, self.classes)


def decode_once(folder: Folder, cache: Path) -> Decoded:
    """The images of a folder, whose pixels a file in `cache` keeps."""
    own = {field.name: getattr(folder, field.name) for field in fields(folder)}
    return Decoded(**own, store=Pixels(folder, cache), rows=torch.arange(len(folder)))


def write_pixels(folder: Folder, path: Path, shape: tuple[int, ...]) -> None:
    """Decodes all images into a file, on all processors; whole or not at all."""
    num_bytes = torch.Size(shape).numel()
    if shutil.disk_usage(path.parent).free < num_bytes:
        raise OSError("the disk is too small")  # said now, for a mapped file that grows too large ends the process
    print(f"decoding {len(folder):,} images once, into {path} ({num_bytes / 2**20:,.0f} MiB)", flush=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # it may be a link, through which a file elsewhere would be written
        pixels = torch.from_file(str(temporary), shared=True, size=num_bytes, dtype=torch.uint8).view(shape)
        loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
            folder,  # type: ignore[arg-type]
            batch_size=DECODED_AT_ONCE,
            num_workers=os.cpu_count() or 1,
            collate_fn=whole_batch,
            generator=torch.Generator(),  # its own: iterating must not draw from the global one
        )
        batches = iter(loader)
        try:
            for start, images in zip(range(0, len(folder), DECODED_AT_ONCE), batches, strict=True):
                pixels[start : start + DECODED_AT_ONCE] = images
        finally:
            batches._shutdown_workers()  # type: ignore[attr-defined]  # as in FolderLoader.close
        del pixels
        with temporary.open("r+b") as file:
            digest = digest_of(file, num_bytes)
            file.seek(num_bytes)
            file.write(digest)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
