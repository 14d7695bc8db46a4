"""The evaluation loop, and the command that evaluates a run from its directory alone.

python evaluate.py run=experiments/digits_mlp/2026-01-31_12-00-00
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # until all is imported, as in train.py

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from lab.config.builders import build_loss, build_metrics, build_model, load_examples, make_eval_loader
from lab.config.command import command
from lab.config.schema import EvaluateConfig
from lab.devices.device import autocast, choose_device, choose_precision, full_precision
from lab.devices.distributed import ALONE, World, is_sharded
from lab.plots.evaluation import draw_evaluation, project
from lab.runs.checkpoint import save_tensors
from lab.runs.evaluations import evaluate_each, format_report, metrics_line, named_runs, note_opening
from lab.runs.export import export_run
from lab.runs.loading import find_run, load_config, load_model, load_run
from lab.runs.lock import held, refuse_links
from lab.runs.meter import Meter
from lab.runs.reading import printable
from model.batching import Batch
from model.losses import Loss, of_own_loss, per_example
from model.metrics import class_report, count_confusions
from model.net import class_probabilities, output_of
from model.trees import num_examples
from utils import UserError, seed_everything, write_json

__all__ = ["evaluate_run", "load_run", "measure", "predict"]

# ---------------------------------------------------------------------------------------------------------- the loop


class Objective(nn.Module):
    """A network and its loss as one forward pass, the same in training and in evaluation.

    (inputs, targets) -> (loss values [n], or several by name of which "loss" is minimised; the network's outputs). The
    network computes in `precision`, the loss in float32. loss None: the network's own, its method loss(inputs, targets).
    """

    def __init__(self, model: nn.Module, loss: Loss | None, device: torch.device, precision: str = "fp32") -> None:
        super().__init__()
        self.model, self.loss, self.autocast = model, loss, autocast(device, precision)

    def forward(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        if self.loss is None:
            with self.autocast:
                return of_own_loss(self.model.loss(inputs, targets), num_examples(inputs))  # type: ignore[operator]
        with self.autocast:
            outputs = full_precision(self.model(inputs))
        losses = self.loss(outputs, targets)
        return losses if losses.dim() == 1 else per_example(losses, num_examples(inputs)), outputs


def predict(objective: Objective, batches: Iterable[Batch]) -> Iterator[tuple[Any, Any, Any]]:
    """(losses, outputs, targets) of each batch, in evaluation mode, without gradients; the mode is put back at the end."""
    was_training = objective.training
    objective.eval()
    # FSDP2 would keep tensors of the inference mode, and then train with them.
    without_gradients = torch.no_grad if any(map(is_sharded, objective.parameters())) else torch.inference_mode
    try:
        for batch in batches:
            with without_gradients():
                losses, outputs = objective(batch.inputs, batch.targets)
            yield losses, outputs, batch.targets
    finally:
        objective.train(was_training)


def keeping_losses(predictions: Iterable[tuple[Any, Any, Any]], kept: list[Tensor]) -> Iterator[tuple[Any, Any, Any]]:
    """The same predictions, of which the loss values [n] that are minimised are put into a list on their way."""
    for losses, outputs, targets in predictions:
        kept.append(losses["loss"] if isinstance(losses, Mapping) else losses)
        yield losses, outputs, targets


def measure(
    predictions: Iterable[tuple[Any, Any, Any]], metrics: Mapping[str, Any], world: World = ALONE
) -> dict[str, float]:
    """{"loss": ..., and each metric by name}, over all examples of the (losses, outputs, targets), in all processes."""
    meter = Meter(metrics, world)
    for losses, outputs, targets in predictions:
        meter.add(losses, outputs, targets)
    return meter.result()


# ------------------------------------------------------------------------------------------------------- one run


def evaluate_run(
    directory: Path,
    *,
    checkpoint: str = "best",
    split: str = "test",
    root: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Evaluates a run with its own configuration; writes the result and pictures into its directory, and returns it.

    root, device: where the data is and what computes, if not as in the run. Raises UserError or DataError.
    """
    refuse_links(directory)
    with held(directory, "evaluation"):
        cfg = load_config(directory)
        cfg.data.root = root or cfg.data.root
        chosen = choose_device(device or cfg.trainer.device, key="device")
        return evaluate(directory, cfg, checkpoint, split, chosen)


def evaluate(directory: Path, cfg: DictConfig, checkpoint: str, split: str, device: torch.device) -> dict[str, Any]:
    """As `evaluate_run`, in a directory that this process holds."""
    model, spec, state = load_model(cfg, directory / f"{checkpoint}.pt", device)
    epoch = state["progress"]["epoch"]
    if split == "test":
        note_opening(directory, checkpoint=checkpoint, epoch=epoch)
    examples = load_examples(cfg, split)
    if tuple(examples.classes) != tuple(spec.classes):
        raise UserError(
            f"the classes of the {split} split in {cfg.data.root} are not those that {directory} was trained on"
        )
    precision = choose_precision(cfg.trainer.precision, device, model, task=spec.task, batch_size=cfg.data.batch_size)
    objective = Objective(model, build_loss(cfg, spec, model), device, precision).eval()  # in which it is also drawn
    has_classes, losses = spec.task == "classification", list[Tensor]()
    with closing(make_eval_loader(cfg, examples, spec, device)) as loader:
        predictions: Any = keeping_losses(predict(objective, loader), losses)
        if has_classes:  # which are asked for more than means
            predictions = list(predictions)
        metrics = measure(predictions, build_metrics(cfg, spec))
    result: dict[str, Any] = {"split": split, "checkpoint": checkpoint, "epoch": epoch}
    result |= {"data_notes": list(examples.notes)} if examples.notes else {}
    result |= {"num_examples": loader.num_examples} | {f"{split}/{name}": value for name, value in metrics.items()}
    # Only the test split with the best weights is what tables read; other questions get files of their own.
    suffix = f"_{split}" * (split != "test") + f"_{checkpoint}" * (checkpoint != "best")
    outcomes, shown = torch.cat(losses).float().cpu(), dict[str, Tensor]()
    if has_classes:
        _, outputs, targets = (torch.cat(parts).cpu() for parts in zip(*predictions, strict=True))
        probabilities = class_probabilities(outputs, output_of(model))
        predicted = probabilities.argmax(dim=1)
        confusions, outcomes = count_confusions(predicted, targets, spec.output_size), (predicted == targets).byte()
        result |= {"first_predictions": predicted[:10].tolist(), "first_targets": targets[:10].tolist()}
        result |= {"classes": class_report(confusions, spec.classes), "confusion_matrix": confusions.tolist()}
        shown = {"probabilities": probabilities, "targets": targets, "confusions": confusions}
    # Of each example, in the order of the split: 1 where it was classified rightly; where there are no classes, its loss.
    kind = "right" if has_classes else "loss"
    save_tensors(directory / f"outcomes{suffix}.pt", {"epoch": epoch, "kind": kind, "values": outcomes})
    write_json(directory / f"evaluation{suffix}.json", result)
    if cfg.trainer.images and shown:
        seed_everything(cfg.seed)  # the weights that training started from come from the seed, as they did there
        untrained = build_model(cfg, spec).to(device).eval()
        evaluated = examples.subset(torch.arange(loader.num_examples))
        with torch.inference_mode():
            draw_evaluation(
                directory, suffix, spec=spec, examples=evaluated, untrained=untrained, trained=model, **shown
            )
            project(directory, suffix, model=model, spec=spec, examples=examples, device=device)
    return result | {"file": directory / f"evaluation{suffix}.json"}


# --------------------------------------------------------------------------------------------------------- the command


@command("evaluate", EvaluateConfig)
def main(ask: DictConfig) -> None:
    """Evaluates a run, or several, and prints what came out."""
    how = {"checkpoint": ask.checkpoint, "split": ask.split, "root": ask.data.root, "device": ask.device}
    if several := named_runs(ask.run):
        if ask.export:
            raise UserError(f"export={ask.export} takes one run, and run names {len(several)}")
        for line in evaluate_each(several, partial(evaluate_run, **how), split=ask.split):
            print(line)
        return
    directory = find_run(ask.run)
    result = evaluate_run(directory, **how)
    print(f"{ask.checkpoint} weights (epoch {result['epoch']}) on {result['num_examples']:,} {ask.split} examples")
    print(*result.get("data_notes", ()), metrics_line(result, ask.split), sep="\n")
    if "classes" in result:
        names = [printable(name) for name in result["classes"]]
        print(format_report(dict(zip(names, result["classes"].values(), strict=True))))
        for what in ("predictions", "targets"):
            print(f"first {what:<11} " + " ".join(names[label] for label in result[f"first_{what}"]))
    print(f"written: {result['file']}")
    if ask.export:
        print("written: " + export_run(directory, ask.checkpoint, ask.split, form=ask.export, root=ask.data.root))


if __name__ == "__main__":
    main()
