"""A trained network leaves Python: with its normalisation built in, and checked before it counts as done."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from model.net import DataSpec, class_probabilities, output_of

FORMATS = {"onnx": "model.onnx", "torch_export": "model.pt2", "safetensors": "model.safetensors"}
ONNX = "onnx onnxscript onnxruntime"  # the packages
TOLERANCE = 1e-4  # of a class probability, between the exported file and the network


class ExportError(RuntimeError):
    """An export that cannot be made, or that does not give what the network gives; the message is one line for the user."""

    for_user = True
    exit_code = 1


class Deployed(nn.Module):
    """A network as others want it: inputs as they come (images in [0, 1]); class probabilities, or values, out."""

    def __init__(self, model: nn.Module, spec: DataSpec) -> None:
        super().__init__()
        self.model, self.is_classifier, self.output = model, spec.task == "classification", output_of(model)
        self.is_standardised = bool(spec.target_std)
        shape = (-1, *[1] * (len(spec.input_shape) - 1))
        self.mean = nn.Buffer(torch.tensor(spec.mean or (0.0,)).view(shape))
        self.std = nn.Buffer(torch.tensor(spec.std or (1.0,)).view(shape))
        self.target_mean = nn.Buffer(torch.tensor(spec.target_mean or (0.0,)))
        self.target_std = nn.Buffer(torch.tensor(spec.target_std or (1.0,)))

    def forward(self, inputs: Tensor) -> Tensor:
        """[batch, *input_shape] -> class probabilities [batch, classes], or values [batch, outputs] in their units."""
        outputs = self.model((inputs - self.mean) / self.std)
        if self.is_classifier:
            return class_probabilities(outputs, self.output)
        return outputs * self.target_std + self.target_mean if self.is_standardised else outputs


def export(model: nn.Module, spec: DataSpec, inputs: Tensor, path: Path, *, form: str) -> float:
    """Writes `model` (on the CPU, in evaluation mode) to `path` as onnx or torch_export; the largest difference from it.

    inputs [n >= 3, *input_shape]: real examples, images in [0, 1], on which the written file is compared with the network,
    in batches of n, of 1 and of 2. Raises ExportError where they differ, or a package is missing; then nothing is left.
    """
    deployed = Deployed(model, spec).eval()
    temporary = path.with_name(f".{path.name}")
    write, read = {"onnx": (write_onnx, read_onnx), "torch_export": (write_torch_export, read_torch_export)}[form]
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            write(deployed, inputs[:2], temporary)
            run = read(temporary)
            difference = max(
                float((run(batch) - deployed(batch)).abs().max()) for batch in (inputs, inputs[:1], inputs[1:3])
            )
        if not difference <= TOLERANCE:
            raise ExportError(f"the {form} file differs from the network by {difference:.2g}; it was not written")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def export_weights(model: nn.Module, spec: DataSpec, path: Path, notes: dict[str, str]) -> None:
    """Writes the weights of `model` to `path` as safetensors, with the spec as JSON and `notes` beside them.

    Raises ExportError where the file, read again, does not hold the same weights; then nothing is left.
    """
    require("safetensors", "export=safetensors", "safetensors")
    from safetensors.torch import load_file, save_file

    # Copies: the format takes neither the channels-last memory format nor tensors that share their memory.
    weights = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}")
    try:
        save_file(weights, temporary, {"format": "pt", "spec": json.dumps(asdict(spec)), **notes})
        written = load_file(temporary)
        if written.keys() != weights.keys() or not all(torch.equal(written[name], weights[name]) for name in weights):
            raise ExportError("the safetensors file does not hold the network's weights; it was not written")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_torch_export(deployed: nn.Module, example: Tensor, path: Path) -> None:
    """Writes the file that `torch.export.load` reads."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(deployed, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)


def read_torch_export(path: Path) -> Callable[[Tensor], Tensor]:
    """A function that runs the file."""
    return torch.export.load(path).module()


def write_onnx(deployed: nn.Module, example: Tensor, path: Path) -> None:
    """Writes an ONNX file with inputs "inputs" and outputs "outputs"."""
    require("onnxscript", "export=onnx", ONNX)
    torch.onnx.export(
        deployed,
        (example,),
        path,
        input_names=["inputs"],
        output_names=["outputs"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        external_data=False,
        verbose=False,
    )


def read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """A function that runs the file with onnxruntime."""
    require("onnxruntime", "export=onnx", ONNX)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0])


def require(package: str, asked: str, needed: str) -> None:
    """ExportError where an optional package is not installed; needed: all that go with it."""
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ExportError(f"{asked} needs {package}, which is not installed: pip install {needed}")
