"""The pictures of a run while it trains: takes the numbers out of network and run, and hands them to the drawing functions.

Those, and their matplotlib, are imported where something is drawn.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab.plots.probes import choose_probe, draw_animation
from lab.runs.logger import RunLogger, read_records
from lab.runs.progress import Progress
from lab.runs.run import Run
from model.augment import Normalize
from model.net import class_probabilities, is_image, output_of
from utils import RandomState, UserError, seed_everything, write_file, writing

NUM_SAMPLES = 12  # validation images whose predictions are shown in TensorBoard


class Pictures:
    """The pictures of a run, and what is kept for them: the part of a checkpoint that becomes a GIF.

    images: sample predictions for TensorBoard, what the learner shows, learning curves and first filters. animate: what a
    probe sees of the network before training and after each epoch; UserError where no process has the whole network.
    What cannot be drawn is left out, with a line that says why: no picture ends a run.
    """

    def __init__(self, learner: Any, data: Any, *, images: bool, animate: bool) -> None:
        self.model: nn.Module | None = learner.world.whole(learner.average.network)
        if animate and self.model is None:
            raise UserError(
                "trainer.animate=true looks into a whole network, and trainer.parallel=fsdp has none; set but one"
            )
        self.learner, self.data, self.images = learner, data, images
        learner.first_batch = functools.cache(lambda: next(iter(data.val)))
        self.kind, self.probe, self.fixed = choose_probe(data) if animate else ("", None, {})
        self.taken: list[dict[str, Any]] = []

    def begin(self, run: Run) -> None:
        """TensorBoard's graph of the network, and what the probe sees of the untrained one."""
        if run.progress.step:
            return
        self.take_snapshot(run.progress)
        if self.model is not None and run.world.is_main:
            inputs = self.learner.first_batch().inputs
            if isinstance(inputs, torch.Tensor):
                run.logger.graph(self.model, inputs[:1])

    def after_epoch(self, run: Run) -> None:
        """What the probe sees; after the epochs 1, 2, 4, ... and the last, a dozen images and what the learner shows.

        Ever more rarely, so that a long run does not spend its time on pictures.
        """
        epoch, trainer = run.progress.epoch, run.record.cfg.trainer
        is_last = run.progress.is_over(epochs=trainer.epochs, patience=trainer.patience)
        self.take_snapshot(run.progress)
        if self.images and self.model is not None and run.world.is_main and (is_last or epoch & (epoch - 1) == 0):
            with spared("predictions", run.logger):
                self.draw_samples(self.model, run.logger, epoch)
            with spared("what the learner shows", run.logger):
                for name, shown in self.ask_learner(epoch, seed=run.record.cfg.seed).items():
                    keep_shown(name, shown, run, epoch)

    def finish(self, run: Run) -> None:
        """learning_curves.png, first_filters.png of a convolutional network, and the GIF of what the probe saw."""
        if not self.images or not run.world.is_main:
            return
        with spared("learning_curves.png", run.logger):
            draw_curves(run.directory, run.progress)
        with spared("first_filters.png", run.logger):
            draw_filters(run.directory, self.model, run.logger, epoch=run.progress.epoch)
        with spared(f"the animation of {self.kind}", run.logger):
            draw_animation(self.state_dict(), self.data.spec.classes, run.directory)

    @torch.no_grad()
    def take_snapshot(self, progress: Progress) -> None:
        """Records what the probe sees of the network as it is; the mode is put back as it was."""
        if self.probe is None or self.model is None:
            return
        was_training = self.model.training
        self.taken.append({"epoch": progress.epoch, "step": progress.step, **self.probe(self.model.eval())})
        self.model.train(was_training)

    @torch.no_grad()
    def draw_samples(self, model: nn.Module, logger: RunLogger, epoch: int) -> None:
        """A dozen validation images with their class probabilities; nothing where there are no images, or no classes."""
        spec = self.data.spec
        if not is_image(spec) or spec.task != "classification":
            return
        from lab.plots.figures import to_image
        from lab.plots.sheets import draw_predictions

        inputs, targets = (part[:NUM_SAMPLES] for part in self.learner.first_batch()[:2])
        images = Normalize(spec.mean, spec.std, inputs.device).inverse(inputs).clamp(0, 1).cpu().numpy()
        was_training = model.training
        probabilities = class_probabilities(model.eval()(inputs), output_of(model)).cpu().numpy()
        model.train(was_training)
        figure = draw_predictions(images, probabilities, targets.cpu().numpy(), spec.classes)
        logger.writer.add_image("pictures/predictions", to_image(figure), epoch, dataformats="HWC")

    @torch.no_grad()
    def ask_learner(self, epoch: int, *, seed: int) -> dict[str, Tensor | str]:
        """What the learner shows, in evaluation mode, from the same random numbers each time; all is put back after it."""
        random_state, objectives = RandomState().state_dict(), (self.learner.objective, self.learner.evaluated)
        modes = [objective.training for objective in objectives]
        try:
            for objective in objectives:
                objective.eval()
            seed_everything(seed)
            return dict(self.learner.show(epoch))
        finally:
            RandomState().load_state_dict(random_state)
            for objective, was_training in zip(objectives, modes, strict=True):
                objective.train(was_training)

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "fixed": self.fixed, "taken": list(self.taken)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = list(state["taken"])


@contextlib.contextmanager
def spared(what: str, logger: RunLogger) -> Iterator[None]:
    """Leaves out a picture that cannot be drawn, and says why; what a user is to be told otherwise goes on its way."""
    try:
        yield
    except Exception as error:
        if getattr(error, "for_user", False):
            raise
        logger.warn(f"{what} cannot be drawn ({type(error).__name__}: {' '.join(str(error).split())[:150]})")


def keep_shown(name: str, shown: Tensor | str, run: Run, epoch: int) -> None:
    """Writes what a learner shows as <name>.txt, .png or .gif, in place of the one before, and for TensorBoard.

    shown: text, an image [1 or 3, height, width] in 0..1, or frames [n, 1 or 3, height, width].
    """
    from lab.plots.figures import save_gif, save_png
    from lab.plots.sheets import to_bytes

    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"the name {name!r} is none for a file; it holds letters, digits, . _ -")
    path = run.directory / name
    if isinstance(shown, str):
        write_file(path.with_name(f"{name}.txt"), shown.encode())
        run.logger.writer.add_text(name, f"```\n{shown}\n```", epoch)
        return
    frames = [to_bytes(image) for image in shown.detach().cpu().view(-1, *shown.shape[-3:])]
    if shown.dim() == 4:
        save_gif(frames, path.with_name(f"{name}.gif"))
    else:
        save_png(frames[-1], path.with_name(f"{name}.png"))
    run.logger.writer.add_image(name, frames[-1], epoch, dataformats="HWC")


def draw_curves(directory: Path, progress: Progress) -> None:
    """learning_curves.png, from metrics.jsonl."""
    from lab.plots.figures import save_png
    from lab.plots.training import draw_learning_curves

    if records := read_records(directory):  # else metrics.jsonl is not what was written
        with writing(directory / "learning_curves.png"):
            figure = draw_learning_curves(records, best_epoch=progress.best_epoch)
            save_png(figure, directory / "learning_curves.png")


def draw_filters(directory: Path, model: nn.Module | None, logger: RunLogger, *, epoch: int) -> None:
    """first_filters.png of a convolutional network, which TensorBoard shows too."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)] if model else []
    if not convolutions:
        return
    from lab.plots.figures import save_png, to_image
    from lab.plots.training import draw_first_filters

    figure = draw_first_filters(convolutions[0].weight.detach().cpu().numpy())
    save_png(figure, directory / "first_filters.png")
    logger.writer.add_image("pictures/first_filters", to_image(figure), epoch, dataformats="HWC")
