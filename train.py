"""The training loop, and the command that trains: python train.py model=cnn data=mnist optimizer.lr=3e-3"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # until all is imported, of which looking for garbage takes a quarter of the time

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from evaluate import Objective, measure, predict
from lab.config import builders
from lab.config.command import command, typed_overrides
from lab.config.schema import TrainRequest
from lab.devices import device, distributed
from lab.plots.pictures import Pictures
from lab.runs.directory import is_due, plan
from lab.runs.progress import Progress, TrainingMeter, check_outcome
from lab.runs.run import Record, Run, begin_from, explain_lost, memory_explained
from model.batching import Batch
from model.trees import tree_cat, tree_map
from utils import RandomState, nothing, seed_everything


class Learner:
    """The network and all that a training step changes. A subclass may do in `step` what it likes.

    loss: None for the network's own. make_optimizer(model), make_schedule(optimizer): make what the configuration says, for
    the network or a part of it. average: the moving one of the weights. computing: precision, threads, compiled or not.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        make_schedule: Callable[[torch.optim.Optimizer], Any],
        *,
        world: distributed.World,
        computing: device.Computing,
        average: Any,
        accumulate: int = 1,
        max_grad_norm: float = math.inf,
    ) -> None:
        self.model, self.average, self.world = model, average, world
        self.computing, self.accumulate = computing, accumulate
        self.first_batch: Callable[[], Batch]  # of the validation, for what is shown
        self.optimizer = make_optimizer(model)
        self.schedule = make_schedule(self.optimizer)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=computing.precision == "fp16")
        given = {"loss": loss, "device": world.device, "precision": computing.precision}
        self.objective, self.evaluated = Objective(model, **given), Objective(average.network, **given)
        # DistributedDataParallel, around it, averages gradients over processes; checkpoints hold the bare network.
        self.forward: Any = world.wrap(torch.compile(self.objective) if computing.compiled else self.objective)
        self.weights = list(model.parameters())
        self.sums_losses = getattr(loss, "summed", False)  # the gradient is that of a batch's sum, not of its mean
        self.clip = partial(nn.utils.clip_grad_norm_, max_norm=max_grad_norm) if max_grad_norm < math.inf else nothing

    def step(self, batch: Batch) -> tuple[Any, Any]:
        """One gradient step -> (loss values [n], or several by name; outputs) of each example, from before it."""
        for weight in self.weights:  # what optimizer.zero_grad() does, in a tenth of the time
            weight.grad = None
        # batch.size counts the examples of all processes; their gradients are averaged, so each weighs 1 / size in the end.
        weight_of_each = float(self.world.size) if self.sums_losses else self.world.size / batch.size
        parts = batch.parts(min(self.accumulate, batch.size // self.world.size))
        results = []
        for part in parts:
            self.forward.require_backward_grad_sync = part is parts[-1]  # DDP: exchanged once, when it is whole
            losses, outputs = self.forward(part.inputs, part.targets)
            minimized = losses["loss"] if isinstance(losses, Mapping) else losses
            self.scaler.scale(minimized).backward(torch.full_like(minimized, weight_of_each))  # of the weighted sum
            results.append(tree_map(Tensor.detach, (losses, outputs)))
        self.scaler.unscale_(self.optimizer)  # so that clipping sees the true gradients
        self.norm = self.clip(self.weights)  # of the gradient, where it is clipped
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.learning_rate = self.optimizer.param_groups[0]["lr"]  # of this step; the schedule may change it now
        self.was_skipped = self.scaler.get_scale() < scale  # in fp16, after a gradient that was not finite
        if not self.was_skipped:
            self.schedule.after_step()
        self.average.update()
        return tree_cat(results)

    def after_epoch(self, monitored: float) -> None:
        """What is to be done between two epochs; monitored: the validation metric that says which epoch is best."""
        self.schedule.after_epoch(monitored)

    def show(self, epoch: int) -> Mapping[str, Tensor | str]:
        """What there is to see after some epochs, by name: text, images [3, height, width] in 0..1, or frames of a GIF."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a subclass has beside network, optimizer, schedule and scaler, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def train_epoch(learner: Learner, data: builders.Data, meter: TrainingMeter, run: Run) -> dict[str, float]:
    """One pass over the training data, or the rest of it -> {"train/loss": ..., and each metric}, from before the steps."""
    progress, log_every = run.progress, run.record.cfg.trainer.log_every
    learner.objective.train()
    data.train.set_epoch(progress.epoch + 1, start=progress.batch)
    with run.epoch_under_way(data.train) as bar, device.threads(learner.computing.num_threads):
        for batch in data.train:
            losses, outputs = learner.step(batch)
            meter.add_step(losses, outputs, batch.targets, size=batch.size)
            progress.end_step(learner.learning_rate, was_skipped=learner.was_skipped)
            bar.update(batch.size)
            del batch  # the next one takes its memory, which is in the processor's cache
            if progress.step % log_every == 0:  # here alone, and at checkpoints, the host waits for the device
                run.log_step(meter.recent_loss(progress), learner, bar)  # Diverged for a loss that is not finite
            run.after_step()  # writes a checkpoint where one is due, or a signal asks to stop
    return {f"train/{name}": value for name, value in meter.end_epoch(progress).items()}


def validate(learner: Learner, data: builders.Data, metrics: Mapping[str, Any]) -> dict[str, float]:
    """{"val/loss": ..., and each metric}, with the moving average of the weights where there is one."""
    learner.world.share_buffers(learner.average.network)
    values = measure(predict(learner.evaluated, data.val), metrics, learner.world)
    return {f"val/{name}": value for name, value in values.items()}


def build(cfg: DictConfig, world: distributed.World) -> tuple[builders.Data, Learner, dict[str, Any], Progress]:
    """(data, learner, metrics, progress) of a new run; whatever is wrong with its configuration comes out here."""
    seed_everything(cfg.seed)
    data = builders.load_data(cfg, world.device, part=world.part, num_processes=world.size)
    model = begin_from(builders.build_model(cfg, data.spec), cfg.model.init_from)
    builders.check_smallest_part(model, data, num_processes=world.size, accumulate=cfg.trainer.accumulate)
    model = world.place(model, sync_batchnorm=cfg.trainer.sync_batchnorm)
    loss, metrics = builders.build_loss(cfg, data.spec, model), builders.build_metrics(cfg, data.spec)
    progress = Progress.judged_by(cfg.trainer.monitor, metrics)
    computing = device.choose_computing(world.device, model, **builders.computing_options(cfg, data))
    learner = builders.build_learner(cfg, model, loss, data, progress, world=world, computing=computing)
    seed_everything((cfg.seed + 1_000_003 * world.rank) % 2**32)  # each process draws dropout of its own
    return data, learner, metrics, progress


@partial(distributed.in_world, on_lost=explain_lost)
def train(world: Any, cfg: DictConfig, directory: Path, overrides: Any = (), *, anew: bool = False) -> dict[str, float]:
    """train(cfg, directory): trains there, from where a run there stopped (or `anew`) -> the metrics of its best epoch.

    `world`, from the decorator: this process, or the `trainer.devices` that it starts. Raises UserError for what cannot be
    built (before anything is written), Diverged for a loss that is not finite, Unmet above `trainer.fail_above`.
    """
    with memory_explained(cfg):
        data, learner, metrics, progress = build(cfg, world)
    meter = TrainingMeter(metrics, world)
    pictures = Pictures(learner, data, images=cfg.trainer.images, animate=cfg.trainer.animate)
    parts = {  # of last.pt
        "model": learner.model,
        "average": learner.average,
        "optimizer": learner.optimizer,
        "schedule": learner.schedule,
        "scaler": learner.scaler,
        "learner": learner,  # what a subclass has beside these
        "progress": progress,
        "meter": meter,
        "random": RandomState(),  # of each process
        "snapshots": pictures,
    }
    run = Run(directory, Record(cfg, overrides, data.fingerprint), world, anew=anew)
    with run, memory_explained(cfg), distributed.explained():
        run.restore(parts, best={"model": learner.average.network, "progress": progress}, spec=asdict(data.spec))
        run.begin(data, learner)
        pictures.begin(run)
        while not progress.is_over(epochs=cfg.trainer.epochs, patience=cfg.trainer.patience):
            measured = train_epoch(learner, data, meter, run) | validate(learner, data, metrics)
            progress.end_epoch(measured)
            learner.after_epoch(measured[progress.monitor])
            pictures.after_epoch(run)
            run.after_epoch()
        check_outcome(progress, cfg.trainer.fail_above)
        pictures.finish(run)
    return progress.best


@command("train", TrainRequest)
def main(ask: DictConfig) -> dict[str, float] | None:
    """Trains a run, or goes on with one -> the metrics of its best epoch."""
    planned = plan(ask, overrides := typed_overrides())
    if not is_due(planned, ask):
        return planned.best
    return train(planned.cfg, planned.directory, overrides, anew=ask.rerun)


if __name__ == "__main__":
    from train import main  # this module by the name that a learner subclasses it by, train.Learner: one copy of it

    main()
