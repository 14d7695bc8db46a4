"""The network of a run as a file that needs none of this code."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from lab.config.builders import load_examples
from lab.runs.loading import load_config, load_model
from lab.runs.lock import refuse_links
from model.export import FORMATS, export, export_weights


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
