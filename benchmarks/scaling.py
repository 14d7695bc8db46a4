"""How training scales over processes: throughput with one and with two, and what the exchange of gradients costs.

python benchmarks/scaling.py
Writes benchmarks/scaling.md, with what 8 and 64 GPUs would do by arithmetic. Needs MNIST in data/ or DATA_ROOT.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from lab.config.builders import Data
from lab.config.command import CONF, checked
from lab.config.schema import TrainRequest
from lab.devices.distributed import ALONE, joined
from lab.devices.launch import run_in_processes
from lab.runs.directory import recorded_part
from train import Learner, build

NUM_STEPS = 40  # of a measurement
NUM_ROUNDS = 5
CASES = [("mlp", 64), ("mlp", 512), ("cnn", 64), ("cnn", 512), ("resnet", 128)]


def configuration(model: str, batch_size: int) -> DictConfig:
    """What is measured: MNIST on the CPU, in fp32."""
    keys = ["data=mnist", "trainer.device=cpu", f"model={model}", f"data.batch_size={batch_size}"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose("train", overrides=["name=scaling", *keys])
    return recorded_part(checked(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)), TrainRequest))


def seconds_per_step(data: Data, learner: Learner, *, exchange: bool) -> float:
    """The median over rounds; without `exchange` each process keeps its gradients to itself."""
    learner.model.train()
    wrapped, rounds = learner.forward, []
    if not exchange:
        learner.forward = learner.objective
    data.train.set_epoch(1)
    batches = [batch for batch, _ in zip(data.train, range(NUM_STEPS), strict=False)]
    for _ in range(NUM_ROUNDS + 1):  # the first one warms up
        learner.world.sum(torch.zeros(1))  # all start together
        started = time.perf_counter()
        for batch in batches:
            learner.step(batch)
        rounds.append((time.perf_counter() - started) / len(batches))
    learner.forward = wrapped
    return statistics.median(rounds[1:])


def measure(model: str, batch_size: int) -> tuple[float, float, int]:
    """In each process: (seconds a step, those without exchanging gradients, bytes of gradients)."""
    cfg = configuration(model, batch_size)
    with joined("cpu") as world:
        data, learner, _, _ = build(cfg, world)
        num_bytes = sum(weight.numel() * weight.element_size() for weight in learner.weights)
        whole = seconds_per_step(data, learner, exchange=True)
        alone = seconds_per_step(data, learner, exchange=False) if world.size > 1 else whole
    return whole, alone, num_bytes


def measure_alone(model: str, batch_size: int, threads: int) -> float:
    """Seconds a step of one process."""
    torch.set_num_threads(threads)
    data, learner, _, _ = build(configuration(model, batch_size), ALONE)
    return seconds_per_step(data, learner, exchange=True)


@dataclass(frozen=True)
class Plan:
    """A machine room, on paper: figures of its parts, from which what can be expected follows."""

    network: str
    num_parameters: int
    images_per_second: float  # of one GPU
    batch_size: int  # of one GPU
    num_gpus: int
    gpus_per_node: int = 8
    inside: float = 300e9  # bytes a second that a GPU can exchange with the others of its node (NVLink)
    between: float = 25e9  # and a node with the others (200 Gbit/s)
    overlap: float = 0.7  # of the exchange, hidden behind the backward pass
    decoded_per_core: float = 350.0  # JPEG files of ImageNet's size, decoded and resized, a second

    def row(self) -> str:
        num_bytes = 4 * self.num_parameters
        on_nodes = max(1, self.num_gpus // self.gpus_per_node)
        # A ring moves 2 (n - 1) / n of the gradient through each link; the slowest link decides.
        moved = 2 * num_bytes * (self.num_gpus - 1) / self.num_gpus
        bandwidth = self.inside if on_nodes == 1 else self.between
        computing = self.batch_size / self.images_per_second
        exchanging = moved / bandwidth
        efficiency = computing / (computing + (1 - self.overlap) * exchanging)
        total = self.num_gpus * self.images_per_second * efficiency
        cores = total / self.decoded_per_core / on_nodes
        return (
            f"| {self.network} | {self.num_gpus} | {num_bytes / 1e6:.1f} | {moved / 1e6:.1f} | {1e3 * computing:.1f} | "
            f"{1e3 * exchanging:.2f} | {efficiency:.1%} | {total:,.0f} | {cores:,.0f} | {1_281_167 / total:,.0f} |"
        )


def main() -> None:
    lines = [
        "# How training scales over processes",
        "",
        f"`python benchmarks/scaling.py`: {platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} processors, PyTorch {torch.__version__}, MNIST, fp32, gloo. Medians of "
        f"{NUM_ROUNDS} rounds of {NUM_STEPS} steps; images a second of the whole batch.",
        "",
        "| network | batch | 1 process, 1 thread | 1 process, 2 threads | 2 processes, 1 thread each | speed-up over 1 "
        "thread | gradients (kB) | exchange, of a step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, batch_size in CASES:
        single, double = (measure_alone(model, batch_size, threads) for threads in (1, 2))
        torch.set_num_threads(2)  # which run_in_processes shares out
        whole, alone, num_bytes = run_in_processes(measure, model, batch_size, num_processes=2)
        rates = " | ".join(f"{batch_size / seconds:,.0f}" for seconds in (single, double, whole))
        cost = max(0.0, 1 - alone / whole)
        lines.append(
            f"| {model} | {batch_size} | {rates} | {single / whole:.2f} | {num_bytes / 1e3:,.0f} | {cost:.0%} |"
        )
        print(lines[-1], flush=True)
    lines += [
        "",
        "## On paper: GPUs and a folder of ImageNet's size",
        "",
        "Not measured: arithmetic from figures (`Plan` in the script). The `resnet` of this project has 0.34 million",
        "parameters for 1,000 classes: its gradients are so small that decoding JPEG files is what limits it, and",
        "`data.cache` or more processors are the remedy. ResNet-50 (25.6 million) stands beside it. Assumed: 2,500 images",
        "a second for a GPU (bf16, 224x224) with ResNet-50 and 6,000 with `resnet`, a batch of 256 for each GPU, 300 GB/s",
        "within a node of 8 GPUs, 25 GB/s between nodes, 70% of the exchange behind the backward pass, 350 JPEG files",
        "a second decoded by a processor.",
        "",
        "| network | GPUs | gradients (MB) | moved by each GPU a step (MB) | computing (ms) | exchange (ms) | efficiency | "
        "images/s | processors to decode, a node | seconds an epoch |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for network, num_parameters, rate in (("resnet", 336_824, 6000.0), ("ResNet-50", 25_557_032, 2500.0)):
        for num_gpus in (1, 8, 64):
            lines.append(Plan(network, num_parameters, rate, 256, num_gpus).row())
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(f"written: {Path(__file__).with_suffix('.md')}")


if __name__ == "__main__":
    main()
