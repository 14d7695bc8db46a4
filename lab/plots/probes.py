"""What is kept of a network while it trains, and the GIF that it becomes: a fitted curve, class regions, a hidden layer.

Training only stores numbers; what is drawn is drawn after it. The drawing functions and their matplotlib are imported where
something is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from model.augment import Normalize
from model.batching import Loader
from model.examples import Examples
from model.layers import last_hidden

NUM_EMBEDDED = 500  # points of the t-SNE animation
GRID = 200  # positions along an axis where a fitted curve or a map of classes is computed

Snapshot = dict[str, torch.Tensor]
Probe = Callable[[nn.Module], Snapshot]  # what a picture needs of a network as it is now, on the CPU


def choose_probe(data: Any) -> tuple[str, Probe | None, Snapshot]:
    """(what is worth recording, the probe for it, what does not change on the way) for the data of a run.

    "curve" for a number in and a number out, "regions" for two numbers in and classes, "embedding" for other classes; ""
    and None for any other data.
    """
    spec, device = data.spec, data.train.device
    normalize = Normalize(spec.mean, spec.std, device)
    in_memory = isinstance(data.examples, Examples)
    if in_memory and spec.input_shape == (1,) and spec.output_size == 1 and spec.task == "regression":
        return "curve", *probe_curve(data.examples, normalize, device)
    if in_memory and spec.input_shape == (2,) and spec.task == "classification":
        return "regions", *probe_regions(data.examples, normalize, device)
    if spec.task == "classification":
        return "embedding", *probe_hidden(data.val)
    return "", None, {}


def probe_curve(training: Examples, normalize: Normalize, device: torch.device) -> tuple[Probe, Snapshot]:
    """The predictions on a grid over the training inputs, and the mean squared error on the training examples."""
    x, y = training.inputs[:, 0], training.targets[:, 0]
    grid = torch.linspace(float(x.min()), float(x.max()), GRID)

    def probe(model: nn.Module) -> Snapshot:
        curve = model(normalize(grid[:, None].to(device)))[:, 0]
        fitted = model(normalize(training.inputs.to(device)))[:, 0]
        return {"curve": curve.cpu(), "loss": (fitted.cpu() - y).square().mean()}

    return probe, {"x": x, "y": y, "grid": grid}


def probe_regions(training: Examples, normalize: Normalize, device: torch.device) -> tuple[Probe, Snapshot]:
    """The predicted class all over the plane, and of each training point."""
    low, high = training.inputs.min(dim=0).values - 1, training.inputs.max(dim=0).values + 1
    xs, ys = (torch.linspace(float(low[i]), float(high[i]), GRID) for i in range(2))
    plane = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).view(-1, 2)  # row 0 of the map is the lowest y

    def probe(model: nn.Module) -> Snapshot:
        regions = model(normalize(plane.to(device))).argmax(dim=1).view(GRID, GRID)
        predicted = model(normalize(training.inputs.to(device))).argmax(dim=1)
        return {"regions": regions.to(torch.uint8).cpu(), "predicted": predicted.cpu()}

    extent = torch.stack([low[0], high[0], low[1], high[1]])
    return probe, {"points": training.inputs, "targets": training.targets, "extent": extent}


def probe_hidden(val_loader: Loader) -> tuple[Probe, Snapshot]:
    """The last hidden layer of some validation examples, and how many of them are classified right."""
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for inputs, targets, _ in val_loader:
        parts.append((inputs, targets))
        if sum(len(targets) for _, targets in parts) >= NUM_EMBEDDED:
            break
    inputs, targets = (torch.cat(tensors)[:NUM_EMBEDDED] for tensors in zip(*parts, strict=True))

    def probe(model: nn.Module) -> Snapshot:
        features, outputs = last_hidden(model, inputs)
        accuracy = (outputs.argmax(dim=1) == targets).float().mean()
        return {"features": features.half().cpu(), "accuracy": accuracy.cpu()}  # half: a picture needs no more

    return probe, {"targets": targets.cpu()}


def draw_animation(state: dict[str, Any], classes: Sequence[str], directory: Path) -> None:
    """fitted_curve.gif, class_regions.gif or embedding.gif, from the state of `Snapshots`."""
    from lab.plots.animations import animate_embedding, animate_regions, animate_regression
    from lab.plots.figures import save_gif

    fixed, taken = state["fixed"], state["taken"]
    if state["kind"] == "curve":
        frames = animate_regression(
            fixed["x"],
            fixed["y"],
            torch.stack([snapshot["curve"] for snapshot in taken]),
            grid=fixed["grid"],
            steps=[snapshot["step"] for snapshot in taken],
            losses=[float(snapshot["loss"]) for snapshot in taken],
        )
        save_gif(frames, directory / "fitted_curve.gif")
    elif state["kind"] == "regions":
        predicted = torch.stack([snapshot["predicted"] for snapshot in taken])
        frames = animate_regions(
            fixed["points"],
            fixed["targets"],
            torch.stack([snapshot["regions"] for snapshot in taken]),
            extent=tuple(fixed["extent"].tolist()),
            predictions=predicted,
            steps=[snapshot["step"] for snapshot in taken],
            accuracies=(predicted == fixed["targets"]).float().mean(dim=1).tolist(),
        )
        save_gif(frames, directory / "class_regions.gif")
    elif (
        state["kind"] == "embedding" and min(taken[0]["features"].shape) >= 4
    ):  # fewer points or features embed nowhere
        frames = animate_embedding(
            embed([snapshot["features"].float().numpy() for snapshot in taken]),
            fixed["targets"],
            classes,
            [snapshot["epoch"] for snapshot in taken],
            accuracies=[float(snapshot["accuracy"]) for snapshot in taken],
        )
        save_gif(frames, directory / "embedding.gif")


def embed(features: Sequence[np.ndarray]) -> np.ndarray:
    """t-SNE of each snapshot's features [n, size] -> [snapshots, n, 2].

    The first starts from the principal components, each next from the one before it: so that points can be followed.
    """
    from sklearn.manifold import TSNE

    embedded: list[np.ndarray] = []
    for snapshot in features:
        start = embedded[-1] / embedded[-1][:, 0].std() * 1e-4 if embedded else "pca"
        perplexity = min(30, (len(snapshot) - 1) / 3)
        embedded.append(TSNE(perplexity=perplexity, init=start, random_state=0).fit_transform(snapshot))
    return np.stack(embedded)
