"""Mean curves for TensorBoard, each row as a run of its own."""

from __future__ import annotations

import contextlib
from pathlib import Path

from lab.config.command import variant_name
from lab.runs.reading import read_curve
from lab.tables.curves import mean_curve, runs_of
from lab.tables.summary import Summary
from utils import UserError


def write_mean_curves(summary: Summary) -> Path:
    """Writes each row's mean curves as a run below <root>/mean, instead of older ones; UserError where that is a link."""
    from torch.utils.tensorboard import SummaryWriter

    folder = summary.root / "mean"
    for path in (folder, *folder.glob("*")):
        if path.is_symlink():
            raise UserError(f"{path} is a link, and what is written there would land elsewhere; remove it")
    for file in folder.glob("*/events.out.tfevents.*"):
        if not (file.parent / "config.yaml").exists():  # an experiment may be called "mean", too
            file.unlink()
    for rank, row in enumerate((row for row in summary.rows if row.result), start=1):
        curves = [read_curve(run) for run in runs_of(row)]
        steps = mean_curve(curves, "step")
        pairs = [f"{name}={value}" for name, value in zip(summary.names, row.values, strict=True)]
        names = {name for curve in curves for metrics in curve.values() for name in metrics} - {"step", "seconds"}
        with contextlib.closing(SummaryWriter(str(folder / f"{rank:03}_{variant_name(pairs, '')}"[:120]))) as writer:
            for name in sorted(names):
                for epoch, value in mean_curve(curves, name).items():
                    writer.add_scalar(name, value.mean, round(steps[epoch].mean))
    return folder
