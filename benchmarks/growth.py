"""How cost grows: throughput and memory against batch size, size of the dataset, and number of parameters.

python benchmarks/growth.py
Draws benchmarks/growth.png, in about three minutes. Each point is a process of its own, which trains on random numbers as
the project trains.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hydra
import torch
from omegaconf import OmegaConf

from lab.config.command import CONF, checked
from lab.config.schema import TrainRequest
from lab.devices.distributed import ALONE
from lab.runs.directory import recorded_part
from lab.runs.progress import TrainingMeter
from train import build

HERE = Path(__file__).resolve().parent
SECONDS = 2.0  # of training at a point
FEATURES = 784  # of an example
BATCH_SIZES = [16, 64, 256, 1024, 4096, 16384]
DATASET_SIZES = [1_000, 10_000, 50_000, 100_000, 200_000, 400_000]
WIDTHS = [16, 64, 256, 1024, 2048, 4096]


def measure(batch_size: int, dataset_size: int, width: int) -> dict[str, float]:
    """{examples a second, peak memory in MB, parameters} of training an mlp with two hidden layers of `width`."""
    data = {"num_examples": dataset_size, "num_inputs": FEATURES, "batch_size": batch_size, "passes": 1}
    keys = ["data=random_regression", *(f"data.{key}={value}" for key, value in data.items())]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose("train", overrides=["name=growth", *keys, f"model.hidden_sizes=[{width},{width}]"])
    cfg = recorded_part(checked(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)), TrainRequest))
    data, learner, metrics, _ = build(cfg, ALONE)
    loader, meter = data.train, TrainingMeter(metrics)
    learner.model.train()
    num_examples, epoch, started = 0, 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS or epoch == 1:  # the first epoch warms up
        epoch += 1
        loader.set_epoch(epoch)
        if epoch == 2:
            num_examples, started = 0, time.perf_counter()
        for batch in loader:
            losses, outputs = learner.step(batch)
            meter.add_step(losses, outputs, batch.targets, size=batch.size)
            num_examples += batch.size
            if epoch > 1 and time.perf_counter() - started > SECONDS:
                break
        meter.clear()
    rate = num_examples / (time.perf_counter() - started)
    scale = 2**20 if sys.platform == "darwin" else 2**10
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    return {"rate": rate, "memory": memory, "parameters": sum(weight.numel() for weight in learner.weights)}


def measure_apart(batch_size: int = 256, dataset_size: int = 50_000, width: int = 128) -> dict[str, float]:
    """The same in a new process, whose peak is its own."""
    command = [sys.executable, __file__, str(batch_size), str(dataset_size), str(width)]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    point = json.loads(output.splitlines()[-1])
    print(f"batch {batch_size}, {dataset_size:,} examples, width {width}: {point}", flush=True)
    return point


def main() -> None:
    options = {
        "batch size": [{"batch_size": size} for size in BATCH_SIZES],
        "examples in the dataset": [{"dataset_size": size} for size in DATASET_SIZES],
        "parameters": [{"width": width} for width in WIDTHS],
    }
    points: dict[str, list[tuple[int, dict[str, float]]]] = {name: [] for name in options}
    for _ in range(2):  # the better of two passes over all: a machine that others share is slow for a while at a time
        for name, column in options.items():
            for number, option in enumerate(column):
                point = measure_apart(**option)
                size = int(point["parameters"]) if name == "parameters" else next(iter(option.values()))
                if number == len(points[name]):
                    points[name].append((size, point))
                elif point["rate"] > points[name][number][1]["rate"]:
                    points[name][number] = (size, point)
    draw(points)
    print(f"written: {HERE / 'growth.png'}")


def draw(points: dict[str, list[tuple[int, dict[str, float]]]]) -> None:
    from lab.plots.figures import save_png  # here, because it would count in the memory of each point
    from lab.plots.speed import draw_growth

    threads = f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    note = f"mlp, {FEATURES} inputs; else batch 256, 50,000 examples, width 128; {threads}"
    save_png(draw_growth(points, note=note), HERE / "growth.png")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*map(int, sys.argv[1:]))))
    else:
        main()
