"""What one would train with instead of this project: a bare loop, the loop of PyTorch's examples, Lightning.

python benchmarks/references.py bare mlp 64 fp32
Each trains one epoch of MNIST (in data/ or DATA_ROOT) with the networks of model/net.py and nothing else of the project.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.net import CNN, LSTM, MLP, DataSpec

ROOT = os.environ.get("DATA_ROOT", "data")
MEAN, STD = 0.1307, 0.3081
NETWORKS = {"mlp": MLP, "cnn": CNN, "lstm": LSTM}
EPOCH = 54_000  # examples: as many as the project trains on, where it holds back the rest for validation


@dataclass(frozen=True)
class Case:
    """What is trained: a network on MNIST, with Adam."""

    network: str
    batch_size: int
    precision: str

    def __str__(self) -> str:
        return f"{self.network}, batch {self.batch_size}, {self.precision}"

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return NETWORKS[self.network](DataSpec((1, 28, 28), 10, "classification"))

    def autocast(self, device: torch.device) -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


def mnist() -> Any:
    """torchvision's dataset, with the transforms of PyTorch's example."""
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    return datasets.MNIST(ROOT, train=True, transform=transform)


class Bare:
    """The limit: tensors on the device, normalised beforehand; a batch is gathered and trained on, and no more."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.model = case.build().to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.model.parameters(), fused=True)
        dataset = mnist()
        images = dataset.data[:, None].to(device).float().sub_(255 * MEAN).div_(255 * STD)
        self.images, self.labels = images, dataset.targets.to(device)
        self.indices = self.endless_indices()

    def endless_indices(self) -> Iterator[Tensor]:
        size = self.case.batch_size
        while True:
            order = torch.randperm(len(self.labels), device=self.device)
            yield from order[: len(order) // size * size].split(size)

    def run(self, num_steps: int) -> None:
        for indices in itertools.islice(self.indices, num_steps):
            self.step(self.images.index_select(0, indices), self.labels.index_select(0, indices))

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        if self.case.precision == "fp32":
            loss = F.cross_entropy(self.model(inputs), targets)
        else:
            with self.case.autocast(self.device):
                outputs = self.model(inputs)
            loss = F.cross_entropy(outputs.float(), targets)
        loss.backward()
        self.optimizer.step()
        return loss


def loader(batch_size: int, device: torch.device) -> Any:
    """As in PyTorch's example: where there is a GPU one worker makes the batches, else the process itself."""
    options: dict[str, Any] = {"shuffle": True, "drop_last": True}
    if device.type == "cuda":
        options |= {"num_workers": 1, "persistent_workers": True, "pin_memory": True}
    return torch.utils.data.DataLoader(mnist(), batch_size, **options)


class Example:
    """The loop of PyTorch's MNIST example: dataset and transforms of torchvision, a DataLoader, a line every 10 steps."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.model = case.build().to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.batches = self.endless_batches()
        self.silence = Path(os.devnull).open("w")  # noqa: SIM115

    def endless_batches(self) -> Iterator[list[Tensor]]:
        batches = loader(self.case.batch_size, self.device)
        while True:
            yield from batches

    def run(self, num_steps: int) -> None:
        for number, batch in enumerate(itertools.islice(self.batches, num_steps)):
            inputs, targets = (part.to(self.device) for part in batch)
            self.optimizer.zero_grad()
            with self.case.autocast(self.device):
                outputs = self.model(inputs)
            loss = F.cross_entropy(outputs.float(), targets)
            loss.backward()
            self.optimizer.step()
            if number % 10 == 0:
                print(f"step {number}\tloss {loss.item():.6f}", file=self.silence)


def run_lightning(case: Case, device: torch.device, num_steps: int, pause: Callable[[float], bool]) -> None:
    """The same network in a Lightning `Trainer` with its progress bar and TensorBoard, on the batches of `Example`.

    After every `num_steps` calls `pause(seconds)`, whose own time does not count, until that returns False.
    """
    import lightning
    from lightning.pytorch.loggers import TensorBoardLogger

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = case.build()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            inputs, targets = batch
            loss = F.cross_entropy(self.network(inputs).float(), targets)
            self.log("train/loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    class Pauses(lightning.Callback):
        step, started = 0, 0.0

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if self.step == num_steps and not pause(now(device) - self.started):
                trainer.should_stop, self.step = True, -1
            if self.step == num_steps or self.started == 0.0:
                self.step, self.started = 0, now(device)
            self.step += 1

    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=1000,
            precision="32-true" if case.precision == "fp32" else "bf16-mixed",
            logger=TensorBoardLogger(folder),
            callbacks=[Pauses()],
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), loader(case.batch_size, device))


def now(device: torch.device) -> float:
    """The time at which the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main(kind: str, network: str, batch_size: str, precision: str) -> None:
    """Trains one epoch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = Case(network, int(batch_size), precision)
    num_steps = EPOCH // case.batch_size
    if kind == "lightning":
        run_lightning(case, device, num_steps, lambda seconds: False)
    else:
        {"bare": Bare, "example": Example}[kind](case, device).run(num_steps)
    now(device)


if __name__ == "__main__":
    main(*sys.argv[1:])
