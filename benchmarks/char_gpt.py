"""The preset char_gpt beside a bare loop like nanoGPT's train.py, with its settings for a processor.

python benchmarks/char_gpt.py                2,000 steps of each, one after the other: seconds, processor seconds, loss
python benchmarks/char_gpt.py 500            so many
nanoGPT itself is not here. The bare loop does what its train.py does in `config/train_shakespeare_char.py --device=cpu
--compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128
--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0`, with the network of model/char_gpt.py, which is of the same shape.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

PROJECT = Path(__file__).resolve().parent.parent
ROOT = os.environ.get("DATA_ROOT", str(PROJECT / "data"))
BLOCK, BATCH, EVAL_EVERY, EVAL_BATCHES = 64, 12, 250, 20


def learning_rate(step: int, num_steps: int) -> float:
    """nanoGPT's: up to 0.001 in 100 steps, then half a cosine down to 0.0001."""
    if step < 100:
        return 0.001 * (step + 1) / 101
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / (num_steps - 100))) * 9e-4


def bare(num_steps: int) -> float:
    """Trains with a bare loop; the loss on all of the validation part."""
    from model.char_gpt import CharGPT, characters, next_character
    from model.net import DataSpec

    splits = [characters(split, ROOT, block_size=BLOCK) for split in ("train", "val")]
    training, validation = (split for split in splits if split is not None)
    texts = [split.inputs.flatten() for split in (training, validation)]
    torch.manual_seed(1337)
    names = tuple(training.classes)
    model = CharGPT(DataSpec((BLOCK,), len(names), "custom", classes=names))
    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": 0.1},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.001, betas=(0.9, 0.99))  # fused on a GPU alone, there

    def get_batch(text: Tensor) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(text) - BLOCK, (BATCH,)).tolist()
        return tuple(torch.stack([text[i + shift : i + shift + BLOCK] for i in starts]) for shift in (0, 1))  # type: ignore[return-value]

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    def measure() -> None:
        model.eval()
        with torch.no_grad():
            for text in texts:
                torch.tensor([loss_of(*get_batch(text)).item() for _ in range(EVAL_BATCHES)]).mean().item()
        model.train()

    x, y = get_batch(texts[0])
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps)
        if step % EVAL_EVERY == 0:
            measure()
        loss = loss_of(x, y)
        x, y = get_batch(texts[0])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # log_interval=1
    with torch.no_grad():
        pairs = zip(validation.inputs.split(120), validation.targets.split(120), strict=True)
        losses = torch.cat([next_character(model(x), y).flatten() for x, y in pairs])
    return float(losses.mean())


def preset(num_steps: int) -> float:
    """Trains the preset, with its validation, checkpoints, pictures and texts; its last validation loss."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PROJECT / "train.py"), "experiment=char_gpt", f"experiments_dir={folder}"]
        options = [f"trainer.epochs={num_steps // EVAL_EVERY}", f"data.root={ROOT}", "trainer.device=cpu"]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
        (file,) = Path(folder).glob("*/*/metrics.json")
        return float(json.loads(file.read_text())["final"]["val/loss"])


def processor_seconds() -> float:
    """Of this process, and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for train in (bare, preset):
        started, used = time.perf_counter(), processor_seconds()
        found = train(asked)
        seconds, used = time.perf_counter() - started, processor_seconds() - used
        print(f"{train.__name__:<7} {seconds:7.1f} s  {used:7.1f} processor s  validation loss {found:.4f}", flush=True)
