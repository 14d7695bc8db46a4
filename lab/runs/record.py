"""What a run directory records of its run's origin: configuration, what was typed, code, packages, data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lab.runs.files import read_json
from lab.runs.provenance import provenance
from utils import UserError, here, write_file, write_json


@dataclass(frozen=True)
class Record:
    """Where the numbers of a run come from: its configuration, what its user typed, and the fingerprint of its data."""

    cfg: DictConfig
    overrides: Sequence[str]
    data_sha256: str

    @property
    def values(self) -> dict[str, Any]:
        """The configuration as plain data."""
        return OmegaConf.to_container(self.cfg)  # type: ignore[return-value]

    def check(self, directory: Path, *, is_new: bool) -> None:
        """UserError where a run cannot go on there: without its checkpoint, or with other training data."""
        if is_new:
            metrics = directory / "metrics.json"
            if metrics.exists() and read_json(metrics, final=dict)["final"].get("epoch") not in (0, 1):
                raise UserError(
                    f"{here(directory)} lacks last.pt, and cannot go on without it; start a new run, or rerun=true"
                )
            return
        try:
            recorded = read_json(directory / "provenance.json", data_sha256=str)["data_sha256"]
        except UserError as error:
            raise UserError(
                f"{error}, and it alone says which data the run was on; start a new run, or rerun=true"
            ) from error
        if recorded != self.data_sha256:
            raise UserError(
                f"the training data is not what {here(directory)} was started with (its fingerprint differs); "
                f"bring that data back, or start a new run"
            )

    def write(self, directory: Path, device: torch.device, notes: Sequence[str] = (), *, is_new: bool) -> None:
        """config.yaml, overrides.yaml, provenance.json and the patch: of the start, with each resumption noted.

        notes: on what of the data was left out.
        """
        write_file(directory / "config.yaml", OmegaConf.to_yaml(self.cfg).encode())
        record, patch = provenance(device, self.values, self.data_sha256)
        record |= {"data_notes": list(notes)} if notes else {}
        if is_new:
            write_file(directory / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(self.overrides))).encode())
            (directory / "uncommitted.patch").unlink(missing_ok=True)
            if patch:
                write_file(directory / "uncommitted.patch", patch.encode())
        else:
            first = read_json(directory / "provenance.json", data_sha256=str)
            again = {key: record[key] for key in ("command", "started", "git_commit", "git_patch_sha256", "device")}
            before = first["resumed"] if isinstance(first.get("resumed"), list) else []
            record = first | {"resumed": [*before, again | {"overrides": list(self.overrides)}]}
        write_json(directory / "provenance.json", record)
