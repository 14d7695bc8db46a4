"""Small jobs a minute: a sweep, against one command after the other.

python benchmarks/sweep.py
Expect, on two processors: 60 jobs in less than 60 s, at least 5 times as many a minute as one by one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
RATES = [f"{1e-4 * 1.3**i:.5g}" for i in range(20)]
NUM_ALONE = 6  # commands, half of them before the sweep and half after it: the machine may not be ours alone


def seconds_for(folder: str, *arguments: str) -> float:
    """How long `python train.py` takes with these arguments."""
    fixed = ["model=mlp", "data=digits", "trainer.epochs=3", f"experiments_dir={folder}", "name=study"]
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, str(PROJECT / "train.py"), *fixed, *arguments], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        alone = [seconds_for(folder, f"optimizer.lr={rate}") for rate in RATES[: NUM_ALONE // 2]]
        swept = seconds_for(folder, "-m", f"optimizer.lr={','.join(RATES)}", "seed=0,1,2")
        alone += [seconds_for(folder, f"optimizer.lr={rate}") for rate in RATES[: NUM_ALONE // 2]]
        num_finished = len(list(Path(folder).glob("study/*/seed-*/metrics.json")))
    num_jobs, one_by_one = 3 * len(RATES), 60 * len(alone) / sum(alone)
    assert num_finished == num_jobs
    in_a_sweep = 60 * num_jobs / swept
    print(f"one by one   {one_by_one:6.1f} jobs a minute ({sum(alone) / len(alone):.2f} s each, {len(alone)} measured)")
    print(f"in a sweep   {in_a_sweep:6.1f} jobs a minute ({num_jobs} in {swept:.1f} s, {os.cpu_count()} processors)")
    print(f"ratio        {in_a_sweep / one_by_one:6.1f}")


if __name__ == "__main__":
    main()
