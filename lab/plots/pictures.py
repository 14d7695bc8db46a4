"""Which pictures a run gets: takes the numbers out of networks and runs, and hands them to `plots`.

Training only stores numbers (`Snapshots`, metrics.jsonl); what is drawn is drawn after it, or ever more rarely.
`plots` and its matplotlib are imported where something is drawn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.runs.logger import RunLogger, open_events, read_records
from model.augment import Normalize
from model.data_loader import Loader
from model.examples import Examples, Folder
from model.layers import last_hidden
from model.net import DataSpec, class_probabilities, is_image, output_of

NUM_EMBEDDED = 500  # points of the t-SNE animation
NUM_PROJECTED = 1000  # points in TensorBoard's projector, whose thumbnails fit in one sheet
GRID = 200  # positions along an axis where a fitted curve or a map of classes is computed

Snapshot = dict[str, Tensor]
Probe = Callable[[nn.Module], Snapshot]  # what a picture needs of a network as it is now, on the CPU


# ------------------------------------------------------------------------------------- through training: snapshots


class Snapshots:
    """What a probe saw of the network, before training and after each epoch: the part of a checkpoint that becomes a GIF.

    kind: "curve", "regions", "embedding", or "" where nothing is recorded; fixed: what does not change on the way.
    """

    def __init__(self, kind: str = "", probe: Probe | None = None, fixed: Snapshot | None = None) -> None:
        self.kind, self.probe, self.fixed = kind, probe, fixed or {}
        self.taken: list[dict[str, Any]] = []

    @torch.no_grad()
    def take(self, model: nn.Module, *, epoch: int, step: int) -> None:
        """Records the network as it is; the mode is put back as it was."""
        if self.probe is None:
            return
        was_training = model.training
        self.taken.append({"epoch": epoch, "step": step, **self.probe(model.eval())})
        model.train(was_training)

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "fixed": self.fixed, "taken": list(self.taken)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = list(state["taken"])


def snapshots_for(spec: DataSpec, training: Examples | Folder, val_loader: Loader, device: torch.device) -> Snapshots:
    """What is worth recording: a fitted curve (a number in, a number out), class regions (two numbers in), hidden layer."""
    normalize = Normalize(spec.mean, spec.std, device)
    if (
        isinstance(training, Examples)
        and spec.input_shape == (1,)
        and spec.output_size == 1
        and spec.task == "regression"
    ):
        return curve_snapshots(training, normalize, device)
    if isinstance(training, Examples) and spec.input_shape == (2,) and spec.task == "classification":
        return region_snapshots(training, normalize, device)
    if spec.task == "classification":
        return embedding_snapshots(val_loader)
    return Snapshots()


def curve_snapshots(training: Examples, normalize: Normalize, device: torch.device) -> Snapshots:
    """The predictions on a grid over the training inputs, and the mean squared error on the training examples."""
    x, y = training.inputs[:, 0], training.targets[:, 0]
    grid = torch.linspace(float(x.min()), float(x.max()), GRID)

    def probe(model: nn.Module) -> Snapshot:
        curve = model(normalize(grid[:, None].to(device)))[:, 0]
        fitted = model(normalize(training.inputs.to(device)))[:, 0]
        return {"curve": curve.cpu(), "loss": (fitted.cpu() - y).square().mean()}

    return Snapshots("curve", probe, {"x": x, "y": y, "grid": grid})


def region_snapshots(training: Examples, normalize: Normalize, device: torch.device) -> Snapshots:
    """The predicted class all over the plane, and of each training point."""
    low, high = training.inputs.min(dim=0).values - 1, training.inputs.max(dim=0).values + 1
    xs, ys = (torch.linspace(float(low[i]), float(high[i]), GRID) for i in range(2))
    plane = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).view(-1, 2)  # row 0 of the map is the lowest y

    def probe(model: nn.Module) -> Snapshot:
        regions = model(normalize(plane.to(device))).argmax(dim=1).view(GRID, GRID)
        predicted = model(normalize(training.inputs.to(device))).argmax(dim=1)
        return {"regions": regions.to(torch.uint8).cpu(), "predicted": predicted.cpu()}

    extent = torch.stack([low[0], high[0], low[1], high[1]])
    return Snapshots("regions", probe, {"points": training.inputs, "targets": training.targets, "extent": extent})


def embedding_snapshots(val_loader: Loader) -> Snapshots:
    """The last hidden layer of some validation examples, and how many of them are classified right."""
    parts: list[tuple[Tensor, Tensor]] = []
    for batch in val_loader:
        parts.append(batch)
        if sum(len(targets) for _, targets in parts) >= NUM_EMBEDDED:
            break
    inputs, targets = (torch.cat(tensors)[:NUM_EMBEDDED] for tensors in zip(*parts, strict=True))

    def probe(model: nn.Module) -> Snapshot:
        features, outputs = last_hidden(model, inputs)
        accuracy = (outputs.argmax(dim=1) == targets).float().mean()
        return {"features": features.half().cpu(), "accuracy": accuracy.cpu()}  # half: a picture needs no more

    return Snapshots("embedding", probe, {"targets": targets.cpu()})


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


# ------------------------------------------------------------------------------------------------- in and after training


def sample_pictures(
    model: nn.Module, spec: DataSpec, val_loader: Loader, logger: RunLogger, *, last_epoch: int
) -> Callable[[int], None]:
    """What draws a dozen validation images with their class probabilities for TensorBoard, after the epochs 1, 2, 4, ...

    Ever more rarely, so that a long run does not spend its time on pictures. Draws nothing where there are no images.
    """
    if not is_image(spec) or spec.task != "classification":
        return lambda epoch: None
    inputs, targets = (batch[:12] for batch in next(iter(val_loader)))
    images = Normalize(spec.mean, spec.std, inputs.device).inverse(inputs).clamp(0, 1).cpu().numpy()

    @torch.no_grad()
    def draw(epoch: int) -> None:
        if epoch & (epoch - 1) and epoch != last_epoch:
            return
        from lab.plots.figures import to_image
        from lab.plots.sheets import draw_predictions

        was_training = model.training
        probabilities = class_probabilities(model.eval()(inputs), output_of(model)).cpu().numpy()
        model.train(was_training)
        figure = draw_predictions(images, probabilities, targets.cpu().numpy(), spec.classes)
        logger.writer.add_image("predictions", to_image(figure), epoch, dataformats="HWC")

    return draw


def draw_run(directory: Path, model: nn.Module | None, logger: RunLogger, *, best_epoch: int) -> None:
    """learning_curves.png, and first_filters.png of a convolutional network, which TensorBoard shows too.

    model: None where no process has the whole of it.
    """
    from lab.plots.figures import save_png, to_image
    from lab.plots.training import draw_first_filters, draw_learning_curves

    records = read_records(directory)
    if not records:  # metrics.jsonl is not what was written
        return
    save_png(draw_learning_curves(records, best_epoch=best_epoch), directory / "learning_curves.png")
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)] if model else []
    if convolutions:
        filters = convolutions[0].weight.detach().cpu().numpy()
        figure = draw_first_filters(filters)
        save_png(figure, directory / "first_filters.png")
        logger.writer.add_image("first_filters", to_image(figure), records[-1]["epoch"], dataformats="HWC")


# --------------------------------------------------------------------------------------------------- of an evaluation


def draw_evaluation(
    directory: Path,
    suffix: str,
    *,
    spec: DataSpec,
    examples: Examples | Folder,
    probabilities: Tensor,
    targets: Tensor,
    confusions: Tensor,
    untrained: nn.Module,
    trained: nn.Module,
) -> None:
    """The pictures of a classifier's evaluation, as files and in TensorBoard; `suffix` as in the evaluation's file.

    probabilities [n, classes] and targets [n] on the CPU, in the order of `examples`; untrained, trained: the network
    before and after training.
    """
    from lab.plots.classification import draw_class_probabilities, draw_confusion_matrix
    from lab.plots.figures import save_png, to_image
    from lab.plots.sheets import draw_mistakes

    figures = {f"confusion_matrix{suffix}": draw_confusion_matrix(confusions.numpy(), spec.classes)}
    if is_image(spec):
        confidence, predicted = probabilities.max(dim=1)
        confidence[predicted == targets] = -1
        worst = confidence.argsort(descending=True, stable=True)[: min(25, int((predicted != targets).sum()))]
        mistakes = pixels_of(examples.subset(worst))
        figures[f"mistakes{suffix}"] = draw_mistakes(mistakes, probabilities[worst], targets[worst], spec.classes)
        first = examples.subset(torch.tensor([0])).in_memory().inputs
        device = next(trained.parameters()).device
        inputs = Normalize(spec.mean, spec.std, device)(first.to(device))
        before, after = (class_probabilities(net(inputs), output_of(net))[0].cpu() for net in (untrained, trained))
        figures[f"class_probabilities{suffix}"] = draw_class_probabilities(
            first[0].float() / 255, before, after, int(targets[0]), spec.classes
        )
    for name, figure in figures.items():
        save_png(figure, directory / f"{name}.png")
    with evaluation_writer(directory, suffix) as writer:
        for name, figure in figures.items():
            writer.add_image(f"evaluation/{name}", to_image(figure), dataformats="HWC")


def project(
    directory: Path, suffix: str, *, model: nn.Module, spec: DataSpec, examples: Examples | Folder, device: torch.device
) -> None:
    """The last hidden layer of the first 1,000 examples, with labels and thumbnails, for TensorBoard's projector."""
    some = examples.subset(torch.arange(min(NUM_PROJECTED, len(examples))))
    stored = some.in_memory()
    features, _ = last_hidden(model, Normalize(spec.mean, spec.std, device)(stored.inputs.to(device)))
    labels = [spec.classes[label] for label in stored.targets.tolist()]
    thumbnails = None
    if is_image(spec):
        thumbnails = nn.functional.interpolate(stored.inputs.float() / 255, size=(32, 32))
        thumbnails = thumbnails.expand(-1, 3, -1, -1) if thumbnails.shape[1] == 1 else thumbnails
    with evaluation_writer(directory, f"{suffix}.embedding") as writer, contextlib.redirect_stdout(None):
        writer.add_embedding(features.cpu(), metadata=labels, label_img=thumbnails, tag=f"last_hidden{suffix}")


@contextlib.contextmanager
def evaluation_writer(directory: Path, suffix: str) -> Iterator[Any]:
    """A TensorBoard writer in the run directory, in place of what the same evaluation wrote there before."""
    ending = f".evaluation{suffix}"
    for old in directory.glob(f"events.out.tfevents.*{ending}"):
        old.unlink()
    with open_events(directory, suffix=ending) as writer:
        yield writer


def pixels_of(examples: Examples | Folder) -> Tensor:
    """Images as float32 in [0, 1], [n, channels, height, width]."""
    return examples.in_memory().inputs.float() / 255
