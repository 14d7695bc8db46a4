"""The evaluation loop, and the command that evaluates a run from its directory alone.

python evaluate.py run=experiments/digits_mlp/2026-01-31_12-00-00
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

if __name__ == "__main__":
    gc.disable()  # until all is imported, as in train.py

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from yaml import YAMLError

from lab.config.command import CONF, checked, command
from lab.config.schema import EvaluateConfig, TrainConfig, UnknownKey, check_keys
from lab.config.targets import SLOTS, build, check_foreign, own_keys, resolve_target
from lab.devices.device import autocast, choose_device, choose_precision, full_precision
from lab.devices.distributed import ALONE, World
from lab.plots import pictures
from lab.runs.reading import printable, read_yaml
from lab.runs.sharding import Shards, is_sharded
from model.data_loader import Loader, make_loader, whole
from model.examples import Examples, Folder
from model.export import FORMATS, export, export_weights
from model.layers import initialize
from model.net import (
    DataSpec,
    Loss,
    Metric,
    choose_loss,
    class_probabilities,
    is_image,
    metrics_for,
    output_of,
)
from model.splits import Dataset, Split, load_split
from utils import PROJECT, UserError, load_part, load_tensors, refuse_links, seed_everything, write_json

FOLD_AT = 2**18  # numbers of outputs that are held back before they are added up, all at once


class Means:
    """Exact means of the loss and the metrics over examples, wherever the batches end.

    Nothing is read from the device before `result`, and adding up is left for many examples at once.
    """

    def __init__(self, loss: Loss, metrics: dict[str, Metric], world: World = ALONE) -> None:
        self.loss, self.metrics, self.world = loss, metrics, world
        self.clear()

    def clear(self) -> None:
        """Forgets all that was added."""
        self.waiting: list[tuple[Tensor, ...]] = []
        self.num_waiting = self.num_folded = 0
        self.sums: list[Tensor] = []  # the loss first, then each metric's quantities

    @property
    def num_added(self) -> int:
        """How many examples were added."""
        return self.num_folded + self.num_waiting

    def add(self, losses: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """A batch: its loss values [batch], the network's outputs [batch, ...] (detached) and the targets [batch, ...]."""
        self.waiting.append((losses, outputs, targets))
        self.num_waiting += len(losses)
        if self.num_waiting * outputs.numel() >= FOLD_AT * len(outputs):
            self._fold()

    def result(self) -> dict[str, float]:
        """{"loss": ..., and each metric by name}, over all that was added, in all processes."""
        self._fold()
        num_examples = int(self.world.sum(torch.tensor(self.num_folded)))
        means = [self.world.sum(total).cpu().double() / num_examples for total in self.sums]
        named = zip(self.metrics.items(), means[1:], strict=True)
        return {"loss": float(means[0])} | {name: metric.result(mean) for (name, metric), mean in named}

    def state_dict(self) -> dict[str, Any]:
        """What was added so far; what waits goes on waiting, so that sums are the same to the last bit."""
        waiting = [torch.cat(parts).cpu() for parts in zip(*self.waiting, strict=True)]
        return {"waiting": waiting, "sums": [total.cpu() for total in self.sums], "num_folded": self.num_folded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clear()
        if state["waiting"]:
            self.waiting = [tuple(part.to(self.world.device) for part in state["waiting"])]
            self.num_waiting = len(state["waiting"][0])
        self.sums = [total.to(self.world.device) for total in state["sums"]]
        self.num_folded = state["num_folded"]

    def _fold(self) -> None:
        if not self.waiting:
            return
        losses, outputs, targets = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        values = [losses, *(metric.values(outputs, targets) for metric in self.metrics.values())]
        exact = torch.float32 if losses.device.type == "mps" else torch.float64  # mps has no float64
        sums = [value.sum(dim=0, dtype=exact) for value in values]
        self.sums = [old + new for old, new in zip(self.sums, sums, strict=True)] if self.sums else sums
        self.num_folded += self.num_waiting
        self.waiting, self.num_waiting = [], 0


def predict(model: nn.Module, batches: Iterable[Any], precision: str) -> Iterator[tuple[Tensor, Tensor]]:
    """(outputs, targets) of each batch, in evaluation mode and without gradients; the mode is put back at the end."""
    was_training = model.training
    model.eval()
    # FSDP2 would keep tensors of the inference mode, and then train with them.
    without_gradients = torch.no_grad if any(map(is_sharded, model.parameters())) else torch.inference_mode
    try:
        for inputs, targets, *_ in batches:
            with without_gradients(), autocast(inputs.device, precision):
                outputs = full_precision(model(inputs))
            yield outputs, targets
    finally:
        model.train(was_training)


def measure(
    predictions: Iterable[tuple[Tensor, Tensor]], loss: Loss, metrics: dict[str, Metric], world: World = ALONE
) -> dict[str, float]:
    """{"loss": ..., and each metric by name}, over all examples of the (outputs, targets) given, in all processes."""
    means = Means(loss, metrics, world)
    for outputs, targets in predictions:
        means.add(loss.values(outputs, targets), outputs, targets)
    return means.result()


# ------------------------------------------------------------------------------------------- from a configuration


def build_dataset(cfg: DictConfig) -> Dataset:
    """The dataset function of a configuration, with its keys filled in: it takes a split's name."""
    function, keys = resolve_target("data", cfg.data), own_keys("data", cfg.data)

    def dataset(split: str) -> Examples | Folder | None:
        try:
            return function(split, cfg.data.root, **keys)
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
            if getattr(error, "for_user", False):
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"data: {cfg.data._target_} cannot make its {split} split with {keys}: {reason}") from error

    return dataset


def load_examples(cfg: DictConfig, split: str) -> Split:
    """One split of the dataset of a configuration; DataError where there is none."""
    options = {key: cfg.data[key] for key in ("val_fraction", "split_seed")}
    limit = cfg.data["limit" if split == "train" else f"limit_{split}"]
    return load_split(build_dataset(cfg), split, limit=limit, **options)


def build_model(cfg: DictConfig, spec: DataSpec) -> nn.Module:
    """The network of a configuration, for data of that spec, with its initial weights."""
    model = build("model", cfg.model, spec)
    initialize(model, cfg.model.init)
    # Convolutions are faster with the channels last in memory, also on a CPU; the numbers and their order stay the same.
    return model.to(memory_format=torch.channels_last) if is_image(spec) else model


def precision_of(cfg: DictConfig, device: torch.device, model: nn.Module, spec: DataSpec) -> str:
    """The precision of a configuration: training and the command's evaluation compute in the same one."""
    return choose_precision(cfg.trainer.precision, device, model, task=spec.task, batch_size=cfg.data.batch_size)


def make_eval_loader(
    cfg: DictConfig,
    examples: Split,
    spec: DataSpec,
    device: torch.device,
    part: Callable[[int], slice] = whole,
) -> Loader:
    """The loader that measures: training's validation and the command's evaluation go through the same batches."""
    options = {"num_workers": cfg.data.num_workers, "max_batches": cfg.data.max_batches, "part": part}
    return make_loader(examples, spec, batch_size=cfg.data.eval_batch_size, device=device, **options)


def load_run(run: str | Path, checkpoint: str = "best", device: str = "cpu") -> tuple[nn.Module, DictConfig]:
    """(the trained network, in evaluation mode, and the run's configuration) from a run directory alone.

    The network takes normalised inputs: `Normalize(model.spec.mean, model.spec.std)(images)` makes them of uint8 images.
    checkpoint: "best" or "last". Raises UserError where the run or the checkpoint is missing or damaged.
    """
    cfg = load_config(find_run(run))
    model, spec, _ = load_model(cfg, find_run(run) / f"{checkpoint}.pt", choose_device(device))
    model.spec = spec  # type: ignore[assignment]
    return model, cfg


def find_run(run: str | Path) -> Path:
    """The run directory of that name, from here or from the project's folder; UserError where there is none."""
    for directory in (Path(run), PROJECT / run):
        if (directory / "config.yaml").is_file():
            return directory
    if not str(run):
        raise UserError(f"run is empty; name a run directory, one of those in {PROJECT / 'experiments'}")
    what = "is not a run directory: it holds no config.yaml" if Path(run).exists() else "does not exist"
    raise UserError(f"{run} {what}; runs are in {PROJECT / 'experiments'}")


def load_config(directory: Path) -> DictConfig:
    """The configuration that a run directory records, checked like a new one; whatever it holds, nothing is executed.

    It may come from someone else. No run records a ${...}, which would be filled in with a secret of the environment, say,
    and be written into the run again; nor is code imported from beside it.
    """
    path = directory / "config.yaml"
    try:
        plain = read_yaml(path)
        if "${" in repr(plain):
            raise ValueError("it holds ${...}, which no run records")
        for slot in SLOTS:
            check_foreign(slot, plain.get(slot), directory)
        recorded = OmegaConf.load(path)
        assert isinstance(recorded, DictConfig)
        for group, options in default_options().items():  # a run from before there was such an option did as by default
            if isinstance(plain.get(group), dict):
                new = {key: value for key, value in options.items() if key not in plain[group]}
                OmegaConf.update(recorded, group, new, merge=True)
        return checked(recorded, TrainConfig)
    except UnknownKey as error:
        raise UserError(f"{path} holds {error}, which is no key of this version of the project") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AssertionError, OSError, ValueError, RecursionError, OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:300]})") from error


def default_options() -> dict[str, dict[str, Any]]:
    """The options of trainer and data that every run has, with their defaults; not where the data is."""
    data = read_yaml(CONF / "train.yaml")["data"]
    return {
        "trainer": read_yaml(CONF / "trainer" / "default.yaml"),
        "data": {key: value for key, value in data.items() if key != "root"},
    }


def load_model(cfg: DictConfig, path: Path, device: torch.device) -> tuple[nn.Module, DataSpec, dict[str, Any]]:
    """(the network with the weights of a checkpoint, in evaluation mode; its data's spec; what else the file holds)."""
    state = load_tensors(path, device)
    try:
        check_keys(
            state["spec"], get_type_hints(DataSpec), where="spec.", required=("input_shape", "output_size", "task")
        )
        spec, weights, _ = DataSpec(**state["spec"]), state["model"], int(state["progress"]["epoch"])
        if spec.task not in ("classification", "regression") or len(spec.classes) not in (0, spec.output_size):
            raise ValueError(f"{spec.task} of {spec.output_size} outputs, {len(spec.classes)} classes")
    except (AttributeError, KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(f"{path} holds no network of this project ({error})") from error
    model = build_model(cfg, spec).to(device)
    load_part("model", Shards("model", model, model.state_dict, path.parent), weights, path)
    return model.eval(), spec, state


# --------------------------------------------------------------------------------------------------------- the command


def count_confusions(predicted: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """The confusion matrix [true class, predicted class] of class numbers [n]."""
    return torch.bincount(targets * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def class_report(confusions: Tensor, classes: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """Precision, recall, F1 and support of each class; None where a ratio has nothing to divide by."""
    right, predicted, support = (t.tolist() for t in (confusions.diag(), confusions.sum(0), confusions.sum(1)))

    def ratio(part: float, whole: float) -> float | None:
        return part / whole if whole else None

    return {
        name: {
            "precision": ratio(right[i], predicted[i]),
            "recall": ratio(right[i], support[i]),
            "f1": ratio(2 * right[i], predicted[i] + support[i]),
            "support": support[i],
        }
        for i, name in enumerate(classes)
    }


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
    cfg = load_config(directory)
    cfg.data.root = root or cfg.data.root
    chosen_device = choose_device(device or cfg.trainer.device, key="device")
    model, spec, state = load_model(cfg, directory / f"{checkpoint}.pt", chosen_device)
    output = output_of(model)
    examples = load_examples(cfg, split)
    if spec.task == "classification" and tuple(examples.classes) != tuple(spec.classes):
        raise UserError(
            f"the classes of the {split} split in {cfg.data.root} are not those that {directory} was trained on"
        )
    loader = make_eval_loader(cfg, examples, spec, chosen_device)
    precision = precision_of(cfg, chosen_device, model, spec)
    predictions = list(predict(model, loader, precision))
    metrics = measure(predictions, choose_loss(cfg.trainer.loss, spec, output), metrics_for(spec.task))

    result: dict[str, Any] = {"split": split, "checkpoint": checkpoint, "epoch": state["progress"]["epoch"]}
    result |= {"num_examples": loader.num_examples} | {f"{split}/{name}": value for name, value in metrics.items()}
    # Only the test split with the best weights is what tables read; other questions get files of their own.
    suffix = f"_{split}" * (split != "test") + f"_{checkpoint}" * (checkpoint != "best")
    if spec.task == "classification":
        outputs, targets = (torch.cat(parts).cpu() for parts in zip(*predictions, strict=True))
        probabilities = class_probabilities(outputs, output)
        predicted = probabilities.argmax(dim=1)
        confusions = count_confusions(predicted, targets, spec.output_size)
        result |= {"first_predictions": predicted[:10].tolist(), "first_targets": targets[:10].tolist()}
        result |= {"classes": class_report(confusions, spec.classes), "confusion_matrix": confusions.tolist()}
    write_json(directory / f"evaluation{suffix}.json", result)
    if spec.task == "classification":
        seed_everything(cfg.seed)  # the weights that training started from come from the seed, as they did there
        untrained = build_model(cfg, spec).to(chosen_device).eval()
        shown = {"probabilities": probabilities, "targets": targets, "confusions": confusions}
        evaluated = examples.subset(torch.arange(loader.num_examples))
        with torch.inference_mode():
            pictures.draw_evaluation(
                directory, suffix, spec=spec, examples=evaluated, untrained=untrained, trained=model, **shown
            )
            pictures.project(directory, suffix, model=model, spec=spec, examples=examples, device=chosen_device)
    return result | {"file": directory / f"evaluation{suffix}.json"}


def export_run(directory: Path, checkpoint: str, split: str, *, form: str, root: str | None = None) -> str:
    """Writes a run's network as model.onnx, model.pt2 or model.safetensors; says which file, and how it was checked."""
    refuse_links(directory)
    cfg = load_config(directory)
    cfg.data.root = root or cfg.data.root
    model, spec, _ = load_model(cfg, directory / f"{checkpoint}.pt", torch.device("cpu"))
    path = directory / FORMATS[form]
    if form == "safetensors":
        sha256 = hashlib.sha256((directory / "config.yaml").read_bytes()).hexdigest()
        export_weights(model, spec, path, {"checkpoint": checkpoint, "config_sha256": sha256})
        return f"{path} (the weights alone; read again, they are equal)"
    examples = load_examples(cfg, split)
    some = examples.subset(torch.arange(100) % len(examples)).in_memory()
    inputs = some.inputs.float() / 255 if some.inputs.dtype == torch.uint8 else some.inputs
    difference = export(model, spec, inputs, path, form=form)
    return f"{path} (checked on {split} examples: at most {difference:.1g} from the network)"


@command("evaluate", EvaluateConfig)
def main(ask: DictConfig) -> None:
    """Evaluates a run, and prints what came out."""
    directory = find_run(ask.run)
    result = evaluate_run(directory, checkpoint=ask.checkpoint, split=ask.split, root=ask.data.root, device=ask.device)
    print(f"{ask.checkpoint} weights (epoch {result['epoch']}) on {result['num_examples']:,} {ask.split} examples")
    print("  ".join(f"{name} {value:.4f}" for name, value in result.items() if name.startswith(f"{ask.split}/")))
    if "classes" in result:
        names = [printable(name) for name in result["classes"]]
        print(format_report(dict(zip(names, result["classes"].values(), strict=True))))
        for what in ("predictions", "targets"):
            print(f"first {what:<11} " + " ".join(names[label] for label in result[f"first_{what}"]))
    print(f"written: {result['file']}")
    if ask.export:
        print("written: " + export_run(directory, ask.checkpoint, ask.split, form=ask.export, root=ask.data.root))


def format_report(report: dict[str, dict[str, float | None]]) -> str:
    """The class report as lines of text."""
    width = max(len(name) for name in [*report, "class"])
    lines = [f"{'class':<{width}}  precision  recall      f1  support"]
    for name, row in report.items():
        cells = [f"{row[key]:.4f}" if row[key] is not None else "-" for key in ("precision", "recall", "f1")]
        lines.append(f"{name:<{width}}  {cells[0]:>9}  {cells[1]:>6}  {cells[2]:>6}  {row['support']:>7}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
