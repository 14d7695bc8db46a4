"""What presets of several runs do when all of them have ended: one picture over those that finished (`hydra.callbacks`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lab.runs.checkpoint import load_tensors
from lab.runs.files import read_json


class DrawLosses(Callback):
    """losses.png: the training loss of each run against the step, as logged for TensorBoard."""

    def __init__(self, y_limits: Sequence[float] | None = None) -> None:
        self.y_limits = (y_limits[0], y_limits[1]) if y_limits else None

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        from lab.plots.training import draw_losses

        directories = run_directories(config)
        series = {label: losses_of(one) for one, label in zip(directories, labels_of(directories), strict=True)}
        if series:
            save(draw_losses(series, y_limits=self.y_limits, smoothing=15), config, "losses.png")


class DrawRestoredCurves(Callback):
    """restored_curves.png: what three networks predict that should be one, for each width of the hidden layer.

    The trained network, as its run recorded it; the network restored whole, from its run directory alone; and a new
    network of the recorded configuration that was given the parameters. Says whether they agree bit for bit. (A pickled
    network would be restored whole too, but loading one runs whatever code it holds.)
    """

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        from lab.config.builders import build_model
        from lab.plots.regression import draw_restored_curves
        from lab.runs.loading import load_run
        from model.net import DataSpec

        curves, fixed = {}, None
        for directory in run_directories(config):
            state = load_tensors(directory / "last.pt")
            fixed = state["snapshots"]["fixed"]
            restored, cfg = load_run(directory, checkpoint="last")
            rebuilt = build_model(cfg, DataSpec(**state["spec"])).eval()
            with torch.no_grad():
                for name, parameter in rebuilt.named_parameters():
                    parameter.copy_(state["model"][name])
                grid = fixed["grid"][:, None]
                predictions = {
                    "trained": state["snapshots"]["taken"][-1]["curve"],
                    "restored whole": restored(grid)[:, 0],
                    "rebuilt from parameters": rebuilt(grid)[:, 0],
                }
            width = sum(cfg.model.hidden_sizes)
            curves[width] = predictions
            same = all(torch.equal(predictions["trained"], curve) for curve in predictions.values())
            print(f"width {width}: the three predictions are {'identical, bit for bit' if same else 'NOT identical'}")
        if fixed is not None:
            figure = draw_restored_curves(fixed["x"], fixed["y"], grid=fixed["grid"], curves=curves)
            save(figure, config, "restored_curves.png")


class DrawSurvival(Callback):
    """survival.png and .gif: a run that was killed again and again, upon the same run that was never stopped.

    Both as they were logged for TensorBoard, to the last bit; says whether they end with the same weights. A version of
    each for pages that are dark stands beside it.
    """

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        from lab.plots.figures import save_gif
        from lab.plots.survival import animate_survival, draw_survival

        runs = sorted(run_directories(config), key=lambda directory: len(kills_of(directory)))
        if len(runs) < 2:
            return
        undisturbed, survivor = runs[0], runs[-1]
        one, other = (load_tensors(directory / "last.pt")["model"] for directory in (undisturbed, survivor))
        same = all(torch.equal(weight, other[name]) for name, weight in one.items())
        print(f"weights at the end: {'identical, bit for bit' if same else 'NOT identical'}")
        (steps, before), after = losses_of(undisturbed), losses_of(survivor)[1]
        kills, metric = kills_of(survivor), "training loss of each step"
        for ending, dark in (("", False), ("_dark", True)):
            given: Any = {"kills": kills, "metric": metric, "dark": dark}
            save(draw_survival(steps, before, after, **given), config, f"survival{ending}.png")
            path = Path(config.experiments_dir, config.name) / f"survival{ending}.gif"
            save_gif(animate_survival(steps, before, after, **given), path, frames_per_second=12)
            print(f"written: {path}")


def losses_of(directory: Path) -> tuple[list[int], list[float]]:
    """The steps of a run and their training losses, as they were logged for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload().Scalars("loss/step")
    return [event.step for event in events], [event.value for event in events]


def kills_of(directory: Path) -> list[int]:
    """The steps after which a run was killed, as its log tells."""
    log = (directory / "train.log").read_text(errors="replace")
    return [int(step) for step in re.findall(r"^killed \(SIGKILL\) after step (\d+)$", log, re.MULTILINE)]


def run_directories(config: DictConfig) -> list[Path]:
    """The finished runs of a sweep, one for each variant: that of the lowest seed."""
    variants = sorted(path for path in Path(config.experiments_dir, config.name).iterdir() if path.is_dir())
    runs = [sorted(filter(has_finished, variant.glob("seed-*")), key=seed_of) for variant in variants]
    return [directories[0] for directories in runs if directories]


def has_finished(directory: Path) -> bool:
    """Whether a run came to its end, and not to a bad one."""
    status = directory / "status.json"
    return status.exists() and read_json(status)["state"] == "finished"


def seed_of(directory: Path) -> int:
    """The seed of a sweep's run directory."""
    return int(directory.name.removeprefix("seed-"))


def labels_of(directories: Sequence[Path]) -> list[str]:
    """The runs of a sweep by the values in which their variants differ: "optimizer-sgd_epochs-12" is "sgd"."""
    variants = [directory.parent.name.split("_") for directory in directories]
    common = set.intersection(*map(set, variants)) if len(variants) > 1 else set()
    return [" ".join(part.partition("-")[2] for part in parts if part not in common) for parts in variants]


def save(figure: Any, config: DictConfig, name: str) -> None:
    """Writes a picture of a sweep beside its runs, and says where."""
    from lab.plots.figures import save_png

    path = Path(config.experiments_dir, config.name) / name
    save_png(figure, path)
    print(f"written: {path}")
