"""An exported network gives what the network gives, without any of this project's code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome

import model.export
from evaluate import load_run
from model.datasets import digits, quadratic


def probabilities(directory: Path, images: torch.Tensor) -> torch.Tensor:
    """Class probabilities of images in [0, 1], from the run and with its normalisation written out."""
    from utils import load_tensors

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


def test_a_file_that_differs_is_not_left_behind(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = run_train("trainer.epochs=1")
    read = model.export.read_torch_export
    monkeypatch.setattr(model.export, "read_torch_export", lambda path: lambda batch: read(path)(batch) + 0.01)
    outcome = run_command("evaluate", f"run={directory}", "export=torch_export")
    assert outcome.code == 1 and "differs from the network by 0.01" in outcome.err
    assert not list(directory.glob("*model.pt2*"))
