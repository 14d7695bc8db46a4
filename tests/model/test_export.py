"""An exported network gives what the network gives, without any of this project's code."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Outcome

import model.export
from evaluate import load_run
from lab.config.builders import build_model
from lab.runs.checkpoint import load_tensors
from lab.runs.loading import load_config
from model.datasets import digits, quadratic
from model.net import DataSpec


def probabilities(directory: Path, images: torch.Tensor) -> torch.Tensor:
    """Class probabilities of images in [0, 1], from the run and with its normalisation written out."""
    network, _ = load_run(directory)
    spec = load_tensors(directory / "best.pt")["spec"]
    with torch.no_grad():
        return torch.softmax(network((images - spec["mean"][0]) / spec["std"][0]), dim=1)


@pytest.mark.parametrize("form", ["onnx", "torch_export"])
@pytest.mark.parametrize("name", ["cnn", "lstm"])
def test_the_exported_file_gives_the_networks_probabilities(
    form: str, name: str, run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    directory = run_train(f"model={name}", "trainer.epochs=2")
    outcome = run_command("evaluate", f"run={directory}", f"export={form}")
    assert outcome.code == 0, outcome.err
    examples = digits("test", "")
    assert examples is not None
    images = examples.inputs.float() / 255
    for batch in (images, images[:1], images[5:12]):  # any batch size
        if form == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(directory / "model.onnx"))
            (given,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
            exported = torch.from_numpy(np.asarray(given))
        else:
            exported = torch.export.load(directory / "model.pt2").module()(batch)
        torch.testing.assert_close(exported, probabilities(directory, batch), rtol=0, atol=1e-4)
    torch.testing.assert_close(exported.sum(dim=1), torch.ones(len(exported)))


def test_a_regression_is_exported_with_values_as_they_come(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    directory = run_train("data=quadratic", "trainer.epochs=1")
    assert run_command("evaluate", f"run={directory}", "export=torch_export").code == 0
    examples = quadratic("test", "")
    exported = torch.export.load(directory / "model.pt2").module()(examples.inputs)
    with torch.no_grad():
        torch.testing.assert_close(exported, load_run(directory)[0](examples.inputs))


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_weights_leave_as_safetensors(
    checkpoint: str, run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    """Of a network in the channels-last format, whose tensors are not contiguous."""
    pytest.importorskip("safetensors")
    from safetensors import safe_open

    directory = run_train("model=cnn", "trainer.epochs=2", "data.limit=100", "scheduler=step", "scheduler.step_size=1")
    outcome = run_command("evaluate", f"run={directory}", "export=safetensors", f"checkpoint={checkpoint}")
    assert outcome.code == 0, outcome.err
    assert f"written: {directory / 'model.safetensors'} (the weights alone" in outcome.out
    weights = load_tensors(directory / f"{checkpoint}.pt")["model"]
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(weights)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in weights.items())
        notes = file.metadata()
    spec = DataSpec(**json.loads(notes["spec"]))
    rebuilt = build_model(load_config(directory), spec)
    rebuilt.load_state_dict(weights)
    assert (spec.input_shape, spec.output_size, notes["checkpoint"]) == ([1, 8, 8], 10, checkpoint)
    assert notes["config_sha256"] == hashlib.sha256((directory / "config.yaml").read_bytes()).hexdigest()
    assert not list(directory.glob(".model*"))


def test_a_package_that_is_missing_is_named(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = run_train("trainer.epochs=1", "data.limit=100")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "safetensors" else find_spec(name, *a)
    )
    outcome = run_command("evaluate", f"run={directory}", "export=safetensors")
    assert outcome.code == 1
    assert outcome.err.strip().endswith("needs safetensors, which is not installed: pip install safetensors")
    assert not list(directory.glob("*model.safetensors"))


def test_a_file_that_differs_is_not_left_behind(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = run_train("trainer.epochs=1")
    read = model.export.read_torch_export
    monkeypatch.setattr(model.export, "read_torch_export", lambda path: lambda batch: read(path)(batch) + 0.01)
    outcome = run_command("evaluate", f"run={directory}", "export=torch_export")
    assert outcome.code == 1 and "differs from the network by 0.01" in outcome.err
    assert not list(directory.glob("*model.pt2*"))
