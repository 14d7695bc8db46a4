"""What checkpoints cost: the share of the training time that goes into writing them.

python benchmarks/checkpoints.py
Expect: at most 3% with one checkpoint an epoch, on model=cnn data=mnist. Needs MNIST in data/ or DATA_ROOT.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hydra
from omegaconf import DictConfig, OmegaConf

from lab.config.command import CONF, checked
from lab.config.schema import TrainConfig
from lab.runs import run as recording
from lab.runs.directory import recorded_part
from train import train

NUM_EPOCHS = 3


def configuration(*overrides: str) -> DictConfig:
    """model=cnn data=mnist, as a command would compose it."""
    keys = ["name=checkpoints", "model=cnn", "data=mnist", "trainer.images=false", f"trainer.epochs={NUM_EPOCHS}"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose("train", overrides=[*keys, *overrides])
    return checked(recorded_part(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))), TrainConfig)


def main() -> None:
    spent: list[float] = []
    save, after_epoch = recording.Run.save, recording.Run.after_epoch

    def timed_save(run: recording.Run) -> None:
        started = time.perf_counter()
        save(run)
        spent.append(time.perf_counter() - started)

    def timed_after_epoch(run: recording.Run) -> None:
        """All that an epoch's end writes: metrics.json, best.pt and the status too, and last.pt, which is counted once."""
        num_before, started = len(spent), time.perf_counter()
        after_epoch(run)
        del spent[num_before:]
        spent.append(time.perf_counter() - started)

    recording.Run.save, recording.Run.after_epoch = timed_save, timed_after_epoch  # type: ignore[method-assign]
    for every in (None, 100):
        spent.clear()
        with tempfile.TemporaryDirectory() as folder:
            cfg = configuration(f"trainer.checkpoint_every={every or 'null'}")
            train(cfg, Path(folder))
            lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
            size = (Path(folder) / "last.pt").stat().st_size
        # An epoch's own seconds end before its checkpoint, and hold those within it.
        seconds = sum(json.loads(line)["seconds"] for line in lines)
        total = seconds + sum(spent[-1:]) * NUM_EPOCHS if every is None else seconds
        print(
            f"a checkpoint {'at the end of each epoch' if every is None else f'every {every} steps':<24}  "
            f"{len(spent):>3} written, {1e3 * sum(spent) / len(spent):5.1f} ms each ({size / 1e6:.1f} MB): "
            f"{sum(spent) / total:.1%} of {total:.1f} s"
        )


if __name__ == "__main__":
    main()
