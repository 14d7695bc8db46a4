"""A run read again from its directory alone: its configuration and its network. Whatever it holds, nothing is executed."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from lab.config.builders import build_model
from lab.config.command import checked
from lab.config.directories import COMPUTES_NOTHING
from lab.config.migrate import migrate
from lab.config.schema import TrainConfig, UnknownKey, check_keys
from lab.config.targets import SLOTS, check_foreign
from lab.devices.device import choose_device
from lab.runs.checkpoint import check_note, load_part, load_tensors
from lab.runs.reading import read_yaml
from model.net import DataSpec
from utils import PROJECT, UserError, flatten

# What may differ while a run goes on: more epochs are more work, and places and devices may change.
FREE = (
    "trainer.epochs",
    "trainer.device",
    "trainer.devices",
    "trainer.parallel",
    "resume",
    "experiments_dir",
    "data.root",
    *COMPUTES_NOTHING,
)

REQUIRED = [
    field.name for field in fields(DataSpec) if field.default is MISSING
]  # of a spec; older ones lack the others


def load_run(run: str | Path, checkpoint: str = "best", device: str = "cpu") -> tuple[nn.Module, DictConfig]:
    """(the trained network, in evaluation mode, and the run's configuration) from a run directory alone.

    The network takes normalised inputs: `Normalize(model.spec.mean, model.spec.std)(images)` makes them of uint8 images.
    Where targets were standardised, so are its outputs: `Normalize(model.spec.target_mean, model.spec.target_std).inverse`.
    checkpoint: "best" or "last". Raises UserError where the run or the checkpoint is missing or damaged.
    """
    directory = find_run(run)
    cfg = load_config(directory)
    model, spec, _ = load_model(cfg, directory / f"{checkpoint}.pt", choose_device(device))
    model.spec = spec  # type: ignore[assignment]
    return model, cfg


def find_run(run: str | Path) -> Path:
    """The run directory of that name, from here or from the project's folder; UserError where there is none."""
    for directory in (Path(run), PROJECT / run):
        if (directory / "config.yaml").is_file():
            return directory
    if not str(run):
        raise UserError(f"run is empty; name a run directory, one of those in {PROJECT / 'experiments'}")
    what = "is not a run directory: it holds no config.yaml" if Path(run).exists() else "does not exist"
    raise UserError(f"{run} {what}; runs are in {PROJECT / 'experiments'}")


def load_config(directory: Path) -> DictConfig:
    """The configuration that a run directory records, checked like a new one; whatever it holds, nothing is executed.

    It may come from someone else. No run records a ${...}, which would be filled in with a secret of the environment, say,
    and be written into the run again; nor is code imported from beside it.
    """
    path = directory / "config.yaml"
    try:
        plain = migrate(read_yaml(path))
        if "${" in repr(plain):
            raise ValueError("it holds ${...}, which no run records")
        for slot in SLOTS:
            check_foreign(slot, plain.get(slot), directory)
        return checked(OmegaConf.create(plain), TrainConfig)
    except UnknownKey as error:
        raise UserError(f"{path} holds {error}, which is no key of this version of the project") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AssertionError, OSError, ValueError, RecursionError, OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:300]})") from error


def fixed_part(cfg: DictConfig) -> dict[str, Any]:
    """{dotted key: value} of a configuration, without what may change while a run goes on."""
    values = flatten(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
    return {key: value for key, value in values.items() if key not in ("name", *FREE)}


def load_model(cfg: DictConfig, path: Path, device: torch.device) -> tuple[nn.Module, DataSpec, dict[str, Any]]:
    """(the network with the weights of a checkpoint, in evaluation mode; its data's spec; what else the file holds).

    UserError where the checkpoint was saved with another configuration than this one, or does not fit it.
    """
    state = load_tensors(path, device)
    if "configuration" in state:  # which older ones do not hold
        check_note("configuration", state["configuration"], fixed_part(cfg), path)
    try:
        check_keys(state["spec"], get_type_hints(DataSpec), where="spec.", required=REQUIRED)
        spec, weights, _ = DataSpec(**state["spec"]), state["model"], int(state["progress"]["epoch"])
        if spec.task not in ("classification", "regression", "custom") or len(spec.classes) not in (
            0,
            spec.output_size,
        ):
            raise ValueError(f"{spec.task} of {spec.output_size} outputs, {len(spec.classes)} classes")
    except (AttributeError, KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(f"{path} holds no network of this project ({error})") from error
    model = build_model(cfg, spec).to(device)
    load_part("model", model, weights, path)
    return model.eval(), spec, state


def begin_from(model: nn.Module, source: str | None) -> nn.Module:
    """A new network with the weights of another run's best epoch, or of a file; None: as it is.

    Left as they were, and said, are weights that the source has not, or in another shape, such as a head for other classes.
    UserError where nothing fits.
    """
    if source is None:
        return model
    path = find_run(source) / "best.pt" if Path(source).is_dir() or not Path(source).is_file() else Path(source)
    saved = load_tensors(path) if path.suffix != ".safetensors" else read_safetensors(path)
    weights = saved.get("model", saved)
    own = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise UserError(
            f"model.init_from is {source}, no weight of which has the name and the shape of one of this network"
        )
    model.load_state_dict({**own, **fitting})
    left = [name for name in own if name not in fitting]
    print(f"weights {len(fitting)} of {len(own)} from {path}" + f"; left as they were: {', '.join(left)}" * bool(left))
    return model


def read_safetensors(path: Path) -> dict[str, Any]:
    """The weights of a safetensors file."""
    from safetensors.torch import load_file

    return load_file(path)
