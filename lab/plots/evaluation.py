"""The pictures of an evaluation: what a classifier took for what, and its last hidden layer in TensorBoard's projector."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.augment import Normalize
from model.layers import last_hidden
from model.net import DataSpec, class_probabilities, is_image, output_of
from model.splits import Split

NUM_PROJECTED = 1000  # points in TensorBoard's projector, whose thumbnails fit in one sheet


def draw_evaluation(
    directory: Path,
    suffix: str,
    *,
    spec: DataSpec,
    examples: Split,
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
    from lab.plots import classification
    from lab.plots.figures import save_png, to_image
    from lab.plots.sheets import draw_mistakes

    figures = {
        f"confusion_matrix{suffix}": classification.draw_confusion_matrix(confusions.numpy(), spec.classes),
        f"reliability{suffix}": classification.draw_reliability(probabilities, targets),
    }
    if len(spec.classes) == 2:
        curve = classification.draw_precision_recall(probabilities[:, 1], targets, spec.classes[1])
        figures[f"precision_recall{suffix}"] = curve
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
        figures[f"class_probabilities{suffix}"] = classification.draw_class_probabilities(
            first[0].float() / 255, before, after, int(targets[0]), spec.classes
        )
    for name, figure in figures.items():
        save_png(figure, directory / f"{name}.png")
    with evaluation_writer(directory, suffix) as writer:
        for name, figure in figures.items():
            writer.add_image(f"pictures/{name}", to_image(figure), dataformats="HWC")


def project(
    directory: Path, suffix: str, *, model: nn.Module, spec: DataSpec, examples: Split, device: torch.device
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
    from lab.runs.events import EventWriter

    with EventWriter(directory, suffix=ending) as writer:
        yield writer


def pixels_of(examples: Split) -> Tensor:
    """Images as float32 in [0, 1], [n, channels, height, width]."""
    return examples.in_memory().inputs.float() / 255
