"""The training loop, and the command that trains.

python train.py model=cnn data=mnist optimizer.lr=3e-3
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import pictures
from conf.command import checked, command, run_directory, typed_overrides
from conf.schema import TrainConfig, TrainRequest, build, is_share, nearest_name
from evaluate import Means, build_model, find_run, load_config, load_examples, make_eval_loader, measure, predict
from model.data_loader import Loader, describe, make_loader
from model.net import DataSpec, Loss, Metric, choose_loss, higher_is_better, metrics_for, output_of
from utils import (
    PROJECT,
    Checkpoint,
    Diverged,
    RandomState,
    RunLogger,
    Stateful,
    Unmet,
    UserError,
    autocast,
    choose_device,
    code_state,
    flatten,
    full_precision,
    last_record,
    locked,
    provenance,
    read_json,
    recorded_status,
    seed_everything,
    write_file,
    write_json,
    write_status,
)

# ----------------------------------------------------------------------------------------------------------- one step


class Learner:
    """The network and all that a training step changes."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        device: torch.device,
        precision: str = "fp32",
        max_grad_norm: float = math.inf,
        compiled: bool = False,
    ) -> None:
        self.model, self.loss, self.optimizer, self.schedule = model, loss, optimizer, schedule
        self.device, self.precision = device, precision
        self.forward = torch.compile(model) if compiled else model  # checkpoints hold the bare model, not the wrapper
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.clip: Callable[[Any], Any] = nothing
        if max_grad_norm < math.inf:
            self.clip = partial(nn.utils.clip_grad_norm_, max_norm=max_grad_norm)

    def step(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One gradient step on a batch -> (loss values [batch], outputs [batch, ...]), both from before the step."""
        with autocast(self.device, self.precision):
            outputs = full_precision(self.forward(inputs))
        losses = self.loss.values(outputs, targets)
        self.scaler.scale(self.loss.reduce(losses)).backward()
        self.scaler.unscale_(self.optimizer)  # so that clipping sees the true gradients
        self.clip(self.model.parameters())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.learning_rate = self.optimizer.param_groups[0]["lr"]  # of this step; the schedule may change it now
        self.schedule.after_step()
        return losses.detach(), outputs.detach()


class Schedule:
    """A learning-rate scheduler of PyTorch, stepped where its interval says: after each step, or after each epoch."""

    def __init__(self, scheduler: Any, interval: str) -> None:
        self.scheduler = scheduler
        needs_value = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        self.after_step: Callable[[], None] = scheduler.step if interval == "step" else nothing
        self.after_epoch: Callable[[float], None] = nothing
        if interval == "epoch":
            self.after_epoch = scheduler.step if needs_value else lambda value: scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


def nothing(*_: Any) -> None:
    """The neutral element where something may be done: does nothing."""


# ---------------------------------------------------------------------------------------------------------- one epoch


@dataclass
class Progress:
    """How far a run has come: the part of its state that is no tensor."""

    epoch: int = 0  # the last whole one
    step: int = 0
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)

    def end_epoch(self, metrics: dict[str, float], monitor: str) -> None:
        """Takes in the metrics of the next epoch, which is the best one if it is better than all before it."""
        value = metrics[monitor]
        best = self.best.get(monitor, math.nan)  # of no epoch yet, or one that could not be measured
        if math.isnan(best) or (value > best if higher_is_better(monitor) else value < best):
            self.best_epoch, self.best = self.epoch + 1, metrics
        self.epoch, self.final = self.epoch + 1, metrics

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def train_epoch(
    learner: Learner,
    loader: Loader,
    metrics: dict[str, Metric],
    logger: RunLogger,
    progress: Progress,
    *,
    log_every: int,
) -> dict[str, float]:
    """One pass over the training data; {"loss": ..., and each metric by name}, each from before its example's step."""
    learner.model.train()
    loader.set_epoch(progress.epoch + 1)
    means = Means(learner.loss, metrics)
    recent: list[Tensor] = []
    with logger.bar(loader.num_examples, f"epoch {progress.epoch + 1}") as bar:
        for inputs, targets in loader:
            losses, outputs = learner.step(inputs, targets)
            means.add(losses, outputs, targets)
            recent.append(losses)
            progress.step += 1
            bar.update(len(targets))
            if progress.step % log_every == 0:  # the only place in an epoch where the host waits for the device
                values = {"step/loss": mean_loss(recent, progress), "step/lr": learner.learning_rate}
                logger.step(values, progress.step, bar)
                recent = []
    mean_loss(recent, progress)
    return means.result()


def mean_loss(recent: Sequence[Tensor], progress: Progress) -> float:
    """The mean loss of the latest batches, given as values [batch] each; Diverged names the first that is not finite."""
    losses = torch.stack([values.mean() for values in recent]).tolist() if recent else []
    for step, loss in enumerate(losses, start=progress.step - len(losses) + 1):
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss is {loss} at epoch {progress.epoch + 1}, step {step}; "
                f"turn down optimizer.lr, or set trainer.max_grad_norm=1"
            )
    return sum(losses) / max(1, len(losses))


# ------------------------------------------------------------------------------------------------------------ one run


@dataclass
class Setup:
    """What a configuration builds, before anything is written."""

    learner: Learner
    train_loader: Loader
    val_loader: Loader
    spec: DataSpec
    metrics: dict[str, Metric]
    monitor: str
    snapshots: pictures.Snapshots
    data_sha256: str


def set_up(cfg: DictConfig) -> Setup:
    """Builds data, network, optimiser and schedule; whatever is wrong with them is a UserError, DataError or TaskError."""
    device = choose_device(cfg.trainer.device)
    seed_everything(cfg.seed)
    data = cfg.data
    training, validation = (load_examples(cfg, split) for split in ("train", "val"))
    spec = describe(training, data.mean, data.std)
    model = build_model(cfg, spec).to(device)
    loss = choose_loss(cfg.trainer.loss, spec, output_of(model))
    metrics = metrics_for(spec.task)
    monitor = choose_monitor(cfg.trainer.monitor, metrics)
    train_loader = make_loader(
        training,
        spec,
        shuffle=True,
        seed=cfg.seed,
        device=device,
        **{
            key: data[key]
            for key in ("batch_size", "drop_last", "crop_padding", "flip", "passes", "num_workers", "max_batches")
        },
    )
    val_loader = make_eval_loader(cfg, validation, spec, device)
    optimizer = build("optimizer", cfg.optimizer, model.parameters())
    learner = Learner(
        model,
        loss,
        optimizer,
        build_schedule(cfg, optimizer, num_steps_per_epoch=len(train_loader), monitor=monitor),
        device=device,
        precision=cfg.trainer.precision,
        max_grad_norm=cfg.trainer.max_grad_norm,
        compiled=cfg.trainer.compile,
    )
    snapshots = pictures.Snapshots()
    if cfg.trainer.animate:
        snapshots = pictures.snapshots_for(spec, training, val_loader, device)
    return Setup(learner, train_loader, val_loader, spec, metrics, monitor, snapshots, training.fingerprint())


def choose_monitor(name: str | None, metrics: Mapping[str, Metric]) -> str:
    """The validation metric that says which epoch is best; None: accuracy where there is one, else the loss."""
    names = ["val/loss", *(f"val/{metric}" for metric in metrics)]
    if name is None:
        return "val/accuracy" if "val/accuracy" in names else "val/loss"
    if name not in names:
        near = nearest_name(name, names)
        raise UserError(
            f"trainer.monitor is {name!r}; this run measures {', '.join(names)}"
            + f"; did you mean {near}?" * bool(near)
        )
    return name


def build_schedule(
    cfg: DictConfig, optimizer: torch.optim.Optimizer, *, num_steps_per_epoch: int, monitor: str
) -> Schedule:
    """The schedule of a configuration; a length such as "100%" is that share of the whole run, in the interval's unit."""
    node = dict(cfg.scheduler)
    total = cfg.trainer.epochs * (num_steps_per_epoch if node["interval"] == "step" else 1)
    for key, value in node.items():
        if is_share(value):
            node[key] = max(1, round(float(value[:-1]) / 100 * total)) if float(value[:-1]) > 0 else 0
        if key in ("T_max", "step_size", "total_steps") and node[key] < 1:
            raise UserError(f"scheduler.{key} is {value}; it takes a whole number at least 1, or a share such as 100%")
        if key == "total_steps" and node[key] < total:
            raise UserError(
                f"scheduler.total_steps is {value}, less than the run's {total} {node['interval']}s; take 100%"
            )
    if node["_target_"].endswith("ReduceLROnPlateau"):
        node.setdefault("mode", "max" if higher_is_better(monitor) else "min")
        if node["interval"] == "step":
            raise UserError(
                f"scheduler.interval is step; a plateau is one of {monitor}, which is measured once an epoch"
            )
    return Schedule(build("scheduler", node, optimizer), node["interval"])


def train(cfg: DictConfig, directory: Path, overrides: Sequence[str] = (), *, anew: bool = False) -> dict[str, float]:
    """Trains as `cfg` says in `directory`, from where a run there stopped (or `anew`); the metrics of its best epoch.

    Raises UserError for what cannot be built (before anything is written), Diverged for a loss that is not finite, Unmet
    where the training loss ends above `trainer.fail_above`.
    """
    setup, progress = set_up(cfg), Progress()
    learner, trainer = setup.learner, cfg.trainer
    with open_run(directory, cfg, overrides, setup, progress, anew=anew) as (logger, save):
        while not is_over(progress, epochs=trainer.epochs, patience=trainer.patience):
            started = time.perf_counter()
            trained = train_epoch(
                learner, setup.train_loader, setup.metrics, logger, progress, log_every=trainer.log_every
            )
            seconds = time.perf_counter() - started
            metrics = {f"train/{name}": value for name, value in trained.items()} | validate(setup)
            learner.schedule.after_epoch(metrics[setup.monitor])
            progress.end_epoch(metrics, setup.monitor)
            timing = {
                "seconds": round(time.perf_counter() - started, 4),
                "examples_per_second": round(setup.train_loader.num_examples / seconds, 1),
            }
            position = {"epoch": progress.epoch, "step": progress.step}
            logger.epoch(position | timing | {"lr": learner.learning_rate} | metrics, num_epochs=trainer.epochs)
            save()
        if progress.final["train/loss"] > trainer.fail_above:
            raise Unmet(
                f"the training loss ended at {progress.final['train/loss']:.4g}, above trainer.fail_above="
                f"{trainer.fail_above:g}: the network cannot learn this; look for a mistake in it, or train for longer"
            )
    return progress.best


def is_over(progress: Progress, *, epochs: int, patience: int | None) -> bool:
    """Whether all epochs are done, or `patience` of them have passed without a better one."""
    return progress.epoch >= epochs or progress.epoch - progress.best_epoch >= (patience or math.inf)


def validate(setup: Setup) -> dict[str, float]:
    """The validation metrics, by full name; Diverged where the loss is not finite."""
    learner = setup.learner
    predictions = predict(learner.model, setup.val_loader, learner.precision)
    values = measure(predictions, learner.loss, setup.metrics)
    if not math.isfinite(values["loss"]):
        raise Diverged(
            f"the validation loss is {values['loss']}; turn down optimizer.lr, or set trainer.max_grad_norm=1"
        )
    return {f"val/{name}": value for name, value in values.items()}


# --------------------------------------------------------------------------------------------------- the run directory


@contextlib.contextmanager
def open_run(
    directory: Path, cfg: DictConfig, overrides: Sequence[str], setup: Setup, progress: Progress, *, anew: bool
) -> Iterator[tuple[RunLogger, Callable[[], None]]]:
    """The run directory while a run writes it: (its logger, what to call after each epoch).

    Restores what last.pt holds, if it is there; `anew` removes everything first. Keeps status.json true; says at the
    start what the run is about, and at the end what came out.
    """
    learner = setup.learner
    with locked(directory), contextlib.closing(RunLogger(directory)) as logger:
        if anew:
            clear(directory)
        parts: dict[str, Stateful] = {"model": learner.model, "progress": progress}
        rest: dict[str, Stateful] = {
            "optimizer": learner.optimizer,
            "schedule": learner.schedule,
            "scaler": learner.scaler,
        }
        best = Checkpoint(parts, spec=asdict(setup.spec))
        last = Checkpoint(
            parts | rest | {"random": RandomState(), "snapshots": setup.snapshots, "log": logger},
            spec=asdict(setup.spec),
        )
        is_new = not (directory / "last.pt").exists()
        if not is_new:
            check_continuation(directory, cfg, setup)
        elif (directory / "metrics.json").exists() and read_json(directory / "metrics.json")["final"]["epoch"] > 1:
            raise UserError(
                f"{here(directory)} lacks last.pt, and cannot go on without it; start a new run, or rerun=true"
            )
        if is_new:
            logger.load_state_dict({})  # removes what a run left here that ended before its first checkpoint
        else:
            last.restore(directory / "last.pt")  # on the CPU, where random states live; each part moves its own
        write_record(directory, cfg, overrides, setup, is_new=is_new)
        draw_samples: Callable[[int], None] = nothing
        if cfg.trainer.images:
            draw_samples = pictures.sample_pictures(
                learner.model, setup.spec, setup.val_loader, logger, last_epoch=cfg.trainer.epochs
            )
        if is_new:
            setup.snapshots.take(learner.model, epoch=0, step=0)

        def end_epoch() -> None:
            write_status(directory, "running", epoch=progress.epoch, step=progress.step)
            draw_samples(progress.epoch)
            setup.snapshots.take(learner.model, epoch=progress.epoch, step=progress.step)
            write_json(directory / "metrics.json", summary(setup, progress))
            if progress.best_epoch == progress.epoch:
                best.save(directory / "best.pt")
            last.save(directory / "last.pt")

        try:
            with recorded_status(directory, progress):
                introduce(logger, cfg, directory, setup, progress)
                with profiled(directory, logger) if cfg.trainer.profile else contextlib.nullcontext():
                    yield logger, end_epoch
                if cfg.trainer.images:
                    pictures.draw_run(directory, learner.model, logger, best_epoch=progress.best_epoch)
                    pictures.draw_animation(setup.snapshots.state_dict(), setup.spec.classes, directory)
        except KeyboardInterrupt:
            logger.say(
                f"interrupted after epoch {progress.epoch}; go on with: {hint('train.py')} resume={here(directory)}"
            )
            raise
        logger.end_session()
        logger.say(farewell(cfg, directory, progress))


def clear(directory: Path) -> None:
    """Empties a run directory that this process holds."""
    for name in (
        "status.json",
        "last.pt",
    ):  # first, so that nothing half empty passes for a run should this be cut short
        (directory / name).unlink(missing_ok=True)
    for path in directory.iterdir():
        if path.name == "train.log":
            os.truncate(path, 0)  # whoever writes it goes on writing it
        elif path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith(".lock"):
            path.unlink()


def summary(setup: Setup, progress: Progress) -> dict[str, Any]:
    """What metrics.json holds."""
    return {
        "monitor": setup.monitor,
        "best": {"epoch": progress.best_epoch, **progress.best},
        "final": {"epoch": progress.epoch, **progress.final},
    }


def write_record(directory: Path, cfg: DictConfig, overrides: Sequence[str], setup: Setup, *, is_new: bool) -> None:
    """config.yaml, overrides.yaml, provenance.json and the patch: of the start, with each resumption noted."""
    write_file(directory / "config.yaml", OmegaConf.to_yaml(cfg).encode())
    record, patch = provenance(setup.learner.device, setup.data_sha256)
    if is_new:
        write_file(directory / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(overrides))).encode())
        (directory / "uncommitted.patch").unlink(missing_ok=True)
        if patch:
            write_file(directory / "uncommitted.patch", patch.encode())
    else:
        first = read_json(directory / "provenance.json")
        again = {key: record[key] for key in ("command", "started", "git_commit", "git_patch_sha256", "device")}
        record = first | {"resumed": [*first.get("resumed", []), again | {"overrides": list(overrides)}]}
    write_json(directory / "provenance.json", record)


def check_continuation(directory: Path, cfg: DictConfig, setup: Setup) -> None:
    """UserError where a run cannot go on as asked: with other training data, or with a schedule made for fewer epochs."""
    epochs = load_config(directory).trainer.epochs
    shares = [f"scheduler.{key}={value}" for key, value in cfg.scheduler.items() if is_share(value)]
    if shares and cfg.trainer.epochs != epochs:
        raise UserError(
            f"{here(directory)} was started for {epochs} epochs, and its schedule is a share of them ({shares[0]}): "
            f"{cfg.trainer.epochs} epochs would be another run; start a new one"
        )
    if read_json(directory / "provenance.json").get("data_sha256") != setup.data_sha256:
        raise UserError(
            f"the training data is not what {here(directory)} was started with (its fingerprint differs); "
            f"bring that data back, or start a new run"
        )


def introduce(logger: RunLogger, cfg: DictConfig, directory: Path, setup: Setup, progress: Progress) -> None:
    """Says what the run is about, on the console and in TensorBoard."""
    learner, spec = setup.learner, setup.spec
    shape, kind = "x".join(map(str, spec.input_shape)), f"{spec.output_size} outputs"
    if spec.task == "classification":
        kind = f"{spec.output_size} classes"
    num_parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    sizes = f"{setup.train_loader.num_examples:,} training and {setup.val_loader.num_examples:,} validation examples"
    logger.say(f"data    {cfg.data._target_.split('.')[-1]}: {sizes}, {shape}, {kind}")
    logger.say(f"model   {cfg.model._target_.split('.')[-1]}: {num_parameters:,} parameters")
    logger.say(f"device  {learner.device}, {torch.get_num_threads()} threads, {learner.precision}, seed {cfg.seed}")
    logger.say(f"run     {here(directory)}" + f", going on after epoch {progress.epoch}" * (progress.epoch > 0))
    logger.start_session(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    if progress.epoch == 0:
        logger.writer.add_text("config", "```yaml\n" + OmegaConf.to_yaml(cfg) + "```")
        inputs = next(iter(setup.val_loader))[0][:1]
        logger.graph(learner.model, inputs)


def farewell(cfg: DictConfig, directory: Path, progress: Progress) -> str:
    """The result, the directory, and the commands to go on with."""
    experiment = Path(cfg.experiments_dir, cfg.name)
    folder = experiment if directory.absolute().is_relative_to(experiment.absolute()) else directory.parent
    values = "  ".join(f"{name} {value:.4f}" for name, value in progress.best.items() if name.startswith("val/"))
    return (
        f"best    epoch {progress.best_epoch}: {values}\n"
        f"run     {here(directory)}\n"
        f"next    {hint('evaluate.py')} run={here(directory)}\n"
        f"        tensorboard --logdir {here(folder)}"
    )


def here(path: Path) -> str:
    """A path as one types it from the current directory."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


def hint(script: str) -> str:
    """The start of a command that runs one of the project's scripts from the current directory."""
    return f"python {here(PROJECT / script)}"


@contextlib.contextmanager
def profiled(directory: Path, logger: RunLogger) -> Iterator[None]:
    """Profiles what runs inside: trace.json (for chrome://tracing or ui.perfetto.dev) and a table, profile.txt."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        yield
    profiler.export_chrome_trace(str(directory / "trace.json"))
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20)
    write_file(directory / "profile.txt", table.encode())
    logger.say(f"{table}\nwritten: {here(directory / 'trace.json')} and profile.txt")


# -------------------------------------------------------------------------------------------------------- the command


def plan(ask: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, Path]:
    """(the configuration, the directory) of the run that a checked request is for."""
    if ask.resume is not None:
        return resumed(ask.resume, overrides)
    cfg = recorded_part(ask)
    return cfg, run_directory(cfg, overrides)


def recorded_part(ask: DictConfig) -> DictConfig:
    """The configuration of a run, without what a request says about how to go about it."""
    return OmegaConf.masked_copy(ask, [key for key in ask if key in get_type_hints(TrainConfig)])


def resumed(resume: str, overrides: Sequence[str]) -> tuple[DictConfig, Path]:
    """(the recorded configuration, the directory) of a run to go on with.

    Of the keys typed beside `resume`, only the number of epochs, the place of the data (which must be the same data) and
    the device may differ from the record: UserError for any other.
    """
    directory = find_run(resume)
    cfg = load_config(directory)
    for override in overrides:
        key, _, text = override.lstrip("+").partition("=")
        value = OmegaConf.from_dotlist([f"value={text}"]).value
        if key in ("resume", "rerun", "dry_run") or OmegaConf.select(cfg, key) == value:
            continue
        if key not in ("trainer.epochs", "data.root", "trainer.device"):
            recorded = OmegaConf.select(cfg, key)
            shown = recorded._target_ if OmegaConf.is_dict(recorded) else recorded
            raise UserError(
                f"{key} is {shown} in {resume}, but {text} was given; a run goes on with its own "
                f"configuration: leave {key} out, or start a new run"
            )
        OmegaConf.update(cfg, key, value)
    return checked(cfg, TrainConfig), directory


def finished_result(cfg: DictConfig, directory: Path) -> dict[str, float] | None:
    """The best metrics of a run that has finished as configured, or None where there is work left.

    UserError where the directory holds a run of another configuration.
    """
    if not (directory / "config.yaml").exists():
        return None
    recorded = load_config(directory)
    asked, there = flatten(OmegaConf.to_container(cfg)), flatten(OmegaConf.to_container(recorded))  # type: ignore[arg-type]
    free = ("trainer.epochs", "resume", "experiments_dir", "data.root")  # more epochs are more work; places may change
    if different := [key for key in asked | there if key not in free and asked.get(key) != there.get(key)]:
        raise UserError(
            f"{here(directory)} holds a run of another configuration ({', '.join(different)} differ); "
            f"choose another name, or remove it"
        )
    record = directory / "provenance.json"
    has_moved = asked["data.root"] != there["data.root"] and record.exists()
    if has_moved and load_examples(cfg, "train").fingerprint() != read_json(record).get("data_sha256"):
        raise UserError(
            f"{here(directory)} holds a run on other data: that of {there['data.root']}, not of {asked['data.root']}; "
            f"choose another name"
        )
    status = read_json(directory / "status.json") if (directory / "status.json").exists() else {}
    if status.get("state") != "finished" or recorded.trainer.epochs < cfg.trainer.epochs:
        return None
    return read_json(directory / "metrics.json")["best"]


def is_of_other_code(directory: Path, code: Mapping[str, str | None]) -> bool:
    """Whether a run was started with other code than that, which `code_state` describes."""
    recorded = read_json(directory / "provenance.json")
    return any(recorded.get(key) != value for key, value in code.items())


def what_is_left(directory: Path) -> str:
    """What is to be done with a run that has not finished, in words."""
    status = read_json(directory / "status.json") if (directory / "status.json").exists() else {}
    state = status.get("state", "").replace("running", "interrupted")  # its process was killed, or else holds the lock
    if (directory / "last.pt").exists():
        return f"goes on ({state} after epoch {last_record(directory).get('epoch', 0)})"
    return f"starts again ({state} in its first epoch)" if state else "starts"


@command("train", TrainRequest)
def main(ask: DictConfig) -> dict[str, float] | None:
    """Trains a run, or goes on with one; the metrics of its best epoch."""
    overrides = typed_overrides()
    cfg, directory = plan(ask, overrides)
    best = finished_result(cfg, directory)
    if best is not None and not ask.rerun:
        print(f"{here(directory)} has finished already; for more epochs: resume={here(directory)} trainer.epochs=...")
        if is_of_other_code(directory, code_state()[0]):
            print("  it was made with other code than there is now; rerun=true starts it anew")
    elif ask.dry_run:
        print(f"{here(directory)} {'starts anew' if ask.rerun else what_is_left(directory)}")
    else:
        best = train(cfg, directory, overrides, anew=ask.rerun)
    return best


if __name__ == "__main__":
    main()
