"""Training: the step is the formula, the schedule is the closed form, and the run directory holds what happened."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from conftest import Outcome, read_lines
from lab.config.schedule import Schedule, build_schedule
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from evaluate import load_config
from lab.config.targets import build
from lab.devices.distributed import ALONE
from lab.runs.checkpoint import load_tensors
from lab.runs.lock import locked
from lab.runs.logger import RunLogger
from model.net import LOSSES, MLP, DataSpec
from train import Learner

CONF = Path(__file__).resolve().parent.parent / "conf"
OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
SCHEDULERS = sorted(path.stem for path in (CONF / "scheduler").glob("*.yaml"))
SPEC = DataSpec((5,), 3, "classification", classes=("a", "b", "c"))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def compose(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose("train", overrides=["name=run", *overrides])
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_tensors(path)["model"]


def equal_weights(left: Path, right: Path) -> bool:
    one, other = weights_of(left), weights_of(right)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def used_rates() -> Iterator[list[float]]:
    """The learning rate of every step that any optimiser takes."""
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(float(optimizer.param_groups[0]["lr"])))
    yield rates
    hook.remove()


@pytest.fixture
def try_train(run_command: Callable[..., Outcome], tmp_path: Path) -> Callable[..., Outcome]:
    """try_train(...) trains below tmp_path/experiments like run_train, but may fail; its outcome."""

    def run(*arguments: str) -> Outcome:
        folder = tmp_path / "experiments"
        fixed = [f"experiments_dir={folder}", "name=run", "trainer.images=false", "trainer.device=cpu"]
        flags = [argument for argument in arguments if argument.startswith("-")]
        return run_command("train", *flags, *fixed, *(a for a in arguments if a not in flags))

    return run


def only_run(tmp_path: Path) -> Path:
    (directory,) = (tmp_path / "experiments" / "run").iterdir()
    return directory


# ----------------------------------------------------------------------------------------------------------- one step


def make_learner(model: nn.Module, loss: str = "cross_entropy", *, lr: float = 0.5, **options: Any) -> Learner:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule = Schedule(torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0), "epoch")
    return Learner(model, LOSSES[loss], optimizer, schedule, world=ALONE, **options)


def test_a_step_is_the_formula_of_gradient_descent() -> None:
    """A network with one hidden layer, its gradient written out by hand in numpy, three steps in float64."""
    model = MLP(SPEC, hidden_sizes=[4], activation="tanh").double()
    learner = make_learner(model, lr=0.5)
    w1, b1, w2, b2 = (tensor.detach().numpy().copy() for tensor in model.parameters())
    generator = np.random.default_rng(0)
    for _ in range(3):
        x, y = generator.normal(size=(7, 5)), generator.integers(0, 3, 7)
        losses, outputs = learner.step(torch.from_numpy(x), torch.from_numpy(y))

        hidden = np.tanh(x @ w1.T + b1)
        logits = hidden @ w2.T + b2
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(outputs, logits, rtol=1e-10)  # both are from before the step
        np.testing.assert_allclose(losses, -np.log(probabilities[np.arange(7), y]), rtol=1e-10)
        by_logits = (probabilities - np.eye(3)[y]) / 7
        by_hidden = by_logits @ w2 * (1 - hidden**2)
        w2, b2 = w2 - 0.5 * by_logits.T @ hidden, b2 - 0.5 * by_logits.sum(axis=0)
        w1, b1 = w1 - 0.5 * by_hidden.T @ x, b1 - 0.5 * by_hidden.sum(axis=0)
        for parameter, expected in zip(model.parameters(), (w1, b1, w2, b2), strict=True):
            np.testing.assert_allclose(parameter.detach(), expected, rtol=1e-10, atol=1e-14)


def test_the_sum_of_squares_takes_the_gradient_of_the_sum() -> None:
    model = MLP(DataSpec((5,), 2, "regression"), hidden_sizes=[]).double()
    (weight, bias), generator = (p.detach().numpy().copy() for p in model.parameters()), np.random.default_rng(0)
    x, y = generator.normal(size=(6, 5)), generator.normal(size=(6, 2))
    make_learner(model, "sum_of_squares", lr=0.01).step(torch.from_numpy(x), torch.from_numpy(y))
    error = x @ weight.T + bias - y
    np.testing.assert_allclose(model.fc1.weight.detach(), weight - 0.01 * 2 * error.T @ x, rtol=1e-10)
    np.testing.assert_allclose(model.fc1.bias.detach(), bias - 0.01 * 2 * error.sum(axis=0), rtol=1e-10)


def step_vector(model: nn.Module, learner: Learner, scale: float) -> torch.Tensor:
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    generator = torch.Generator().manual_seed(0)
    learner.step(torch.randn(8, 5, generator=generator) * scale, torch.arange(8) % 3)
    return nn.utils.parameters_to_vector(model.parameters()).detach() - before


def test_clipping_bounds_the_step_and_keeps_its_direction() -> None:
    free_model = MLP(SPEC, hidden_sizes=[])
    bound_model, loose_model = MLP(SPEC, hidden_sizes=[]), MLP(SPEC, hidden_sizes=[])
    bound_model.load_state_dict(free_model.state_dict())
    loose_model.load_state_dict(free_model.state_dict())
    free = step_vector(free_model, make_learner(free_model, lr=1.0), scale=50)
    bound = step_vector(bound_model, make_learner(bound_model, lr=1.0, max_grad_norm=0.25), scale=50)
    loose = step_vector(loose_model, make_learner(loose_model, lr=1.0, max_grad_norm=1e6), scale=50)
    assert free.norm() > 1
    assert bound.norm().item() == pytest.approx(0.25, rel=1e-4)
    torch.testing.assert_close(bound / bound.norm(), free / free.norm(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loose, free)


def test_gradients_do_not_pile_up_over_steps() -> None:
    model = MLP(SPEC, hidden_sizes=[])
    learner = make_learner(model, lr=1e-8)
    first = step_vector(model, learner, scale=1)
    torch.testing.assert_close(step_vector(model, learner, scale=1), first, rtol=0.2, atol=1e-9)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_full_precision(precision: str) -> None:
    model, reference = MLP(SPEC), MLP(SPEC)
    reference.load_state_dict(model.state_dict())
    half, full = make_learner(model, lr=0.1, precision=precision), make_learner(reference, lr=0.1)
    x, y = torch.randn(16, 5), torch.arange(16) % 3
    for _ in range(20):
        half_losses, outputs = half.step(x, y)
        full_losses, _ = full.step(x, y)
        assert outputs.dtype == half_losses.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert half_losses.mean().item() == pytest.approx(full_losses.mean().item(), rel=0.05)
    assert full_losses.mean() < 1.09


# --------------------------------------------------------------------------------------- optimisers and learning rates


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns_with_its_own_defaults(optimizer: str, run_train: Callable[..., Path]) -> None:
    records = read_lines(run_train(f"optimizer={optimizer}", "data.limit=300", "trainer.epochs=6") / "metrics.jsonl")
    assert records[-1]["train/loss"] < 0.8 * records[0]["train/loss"]
    assert records[-1]["val/accuracy"] > 0.4


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_learns(scheduler: str, run_train: Callable[..., Path]) -> None:
    run = run_train(f"scheduler={scheduler}", "optimizer.lr=0.005", "data.limit=300", "trainer.epochs=6")
    records = read_lines(run / "metrics.jsonl")
    assert records[-1]["train/loss"] < 0.8 * records[0]["train/loss"]
    assert records[-1]["val/accuracy"] > 0.4


@pytest.mark.parametrize(("optimizer", "scheduler"), [*itertools.product(OPTIMIZERS, SCHEDULERS)])
def test_every_optimizer_goes_with_every_schedule(optimizer: str, scheduler: str) -> None:
    cfg = compose(f"optimizer={optimizer}", f"scheduler={scheduler}", "trainer.epochs=3")
    model = nn.Linear(2, 2)
    built = build("optimizer", cfg.optimizer, model.parameters())
    schedule = build_schedule(cfg, built, num_steps_per_epoch=4, monitor="val/accuracy")
    for _ in range(3):
        for _ in range(4):
            model(torch.ones(1, 2)).sum().backward()
            built.step()
            schedule.after_step()
        schedule.after_epoch(0.5)
    assert 0 <= built.param_groups[0]["lr"] <= cfg.optimizer.lr


def cosine(rate: float, total: int) -> list[float]:
    return [rate / 2 * (1 + math.cos(math.pi * t / total)) for t in range(total)]


def one_cycle(rate: float, total: int) -> list[float]:
    """Smith and Topin's cycle with cosine ramps: from rate/25 up to rate in three tenths, and down to rate/25/10,000."""

    def ramp(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    top = 0.3 * total - 1
    return [
        ramp(rate / 25, rate, t / top) if t <= top else ramp(rate, rate / 250_000, (t - top) / (total - 1 - top))
        for t in range(total)
    ]


EPOCHS, STEPS = 6, 4  # 200 examples in batches of 64


def each_epoch(rates: list[float]) -> list[float]:
    return [rate for rate in rates for _ in range(STEPS)]


TOTAL = EPOCHS * STEPS
RATES: dict[str, tuple[list[str], list[float]]] = {
    "constant": (["scheduler=constant"], [0.1] * TOTAL),
    "cosine, steps": (["scheduler=cosine"], cosine(0.1, TOTAL)),
    "cosine, epochs": (["scheduler=cosine", "scheduler.interval=epoch"], each_epoch(cosine(0.1, EPOCHS))),
    "cosine, half": (["scheduler=cosine", "scheduler.T_max=50%"], None),
    "onecycle, steps": (["scheduler=onecycle"], one_cycle(0.1, TOTAL)),
    "onecycle, epochs": (["scheduler=onecycle", "scheduler.interval=epoch"], each_epoch(one_cycle(0.1, EPOCHS))),
    "step, thirds": (["scheduler=step"], each_epoch([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])),
    "step, own size": (
        ["scheduler=step", "scheduler.step_size=1", "scheduler.gamma=0.5"],
        each_epoch([0.1 * 0.5**epoch for epoch in range(EPOCHS)]),
    ),
    "step, steps": (
        ["scheduler=step", "scheduler.interval=step", "scheduler.step_size=50%"],
        [0.1] * (TOTAL // 2) + [0.01] * (TOTAL // 2),
    ),
}
RATES["cosine, half"] = (RATES["cosine, half"][0], [0.05 * (1 + math.cos(math.pi * t / 12)) for t in range(TOTAL)])


@pytest.mark.parametrize("case", RATES)
def test_the_learning_rate_of_every_step(case: str, run_train: Callable[..., Path], used_rates: list[float]) -> None:
    overrides, expected = RATES[case]
    run = run_train(*overrides, "optimizer=momentum", "optimizer.lr=0.1", "data.limit=200", f"trainer.epochs={EPOCHS}")
    np.testing.assert_allclose(used_rates, expected, rtol=1e-6, atol=1e-9)
    recorded = [record["lr"] for record in read_lines(run / "metrics.jsonl")]
    if "steps" not in case and "half" not in case:
        np.testing.assert_allclose(recorded, expected[::STEPS], rtol=1e-6)


@pytest.mark.parametrize(("monitor", "direction"), [("val/accuracy", 1), ("val/loss", -1)])
def test_a_plateau_lowers_the_rate(
    monitor: str, direction: int, run_train: Callable[..., Path], used_rates: list[float]
) -> None:
    run = run_train(
        *("scheduler=plateau", "scheduler.patience=1", "scheduler.factor=0.5", f"trainer.monitor={monitor}"),
        *("optimizer=momentum", "optimizer.lr=0.3", "data.limit=200", "trainer.epochs=14"),
    )
    rate, best, num_bad, expected = 0.3, -math.inf, 0, []
    for record in read_lines(run / "metrics.jsonl"):
        expected.append(rate)
        value = direction * record[monitor]
        is_better = value > best + 1e-4 * abs(best) if math.isfinite(best) else True
        best, num_bad = (value, 0) if is_better else (best, num_bad + 1)
        if num_bad > 1:
            rate, num_bad = rate / 2, 0
    assert len(set(expected)) > 1, "the rate should have fallen at least once, or this shows nothing"
    np.testing.assert_allclose(used_rates, each_epoch(expected))


def test_plain_sgd_stays_plain_under_a_cycle() -> None:
    cfg = compose("optimizer=sgd", "scheduler=onecycle")
    optimizer = build("optimizer", cfg.optimizer, nn.Linear(2, 2).parameters())
    build_schedule(cfg, optimizer, num_steps_per_epoch=4, monitor="val/accuracy")
    assert optimizer.param_groups[0]["momentum"] == 0


# ------------------------------------------------------------------------------------------------------- early stopping


def test_patience_stops_after_so_many_epochs_without_a_better_one(run_train: Callable[..., Path]) -> None:
    run = run_train("optimizer.lr=1e-12", "trainer.patience=3", "trainer.epochs=50", "data.limit=100")
    records = read_lines(run / "metrics.jsonl")
    assert len({record["val/accuracy"] for record in records}) == 1  # a rate at which nothing changes
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    status, metrics = read(run / "status.json"), read(run / "metrics.json")
    assert (status["state"], status["epoch"]) == ("finished", 4)
    assert (metrics["best"]["epoch"], metrics["final"]["epoch"]) == (1, 4)


def test_patience_counts_from_the_best_epoch(run_train: Callable[..., Path]) -> None:
    run = run_train("trainer.patience=2", "trainer.epochs=60", "data.limit=60", "data.batch_size=20")
    accuracies = [record["val/accuracy"] for record in read_lines(run / "metrics.jsonl")]
    best = accuracies.index(max(accuracies))
    assert best > 0
    assert len(accuracies) == best + 1 + 2
    waits = [epoch - max(range(epoch + 1), key=lambda e: (accuracies[e], -e)) for epoch in range(len(accuracies) - 1)]
    assert max(waits) < 2  # it had not been due to stop before


def test_a_lower_loss_is_a_better_one(run_train: Callable[..., Path]) -> None:
    run = run_train("trainer.monitor=val/loss", "trainer.epochs=4", "data.limit=100")
    losses = [record["val/loss"] for record in read_lines(run / "metrics.jsonl")]
    assert read(run / "metrics.json")["best"]["epoch"] == losses.index(min(losses)) + 1 == 4


# --------------------------------------------------------------------------------------------------- the run directory


def test_the_run_directory_holds_what_happened(run_train: Callable[..., Path], tmp_path: Path) -> None:
    typed = ["data.limit=200", "trainer.epochs=3", "optimizer=momentum", "optimizer.lr=0.02", "seed=3"]
    run = run_train(*typed)
    assert run.parent == tmp_path / "experiments" / "run"
    assert {path.name for path in run.iterdir() if not path.name.startswith(("events.", "."))} - {
        "uncommitted.patch"
    } == {
        *("config.yaml", "overrides.yaml", "provenance.json", "status.json", "metrics.jsonl", "metrics.json"),
        *("best.pt", "last.pt", "before.pt", "train.log"),
    }
    assert all(path.is_file() for path in run.iterdir())

    overrides = OmegaConf.to_container(OmegaConf.load(run / "overrides.yaml"))
    assert overrides[-len(typed) :] == typed
    recorded = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    composed = OmegaConf.to_container(compose(*overrides))
    assert {key: composed[key] for key in composed if key not in ("rerun", "dry_run")} == recorded
    assert OmegaConf.to_container(load_config(run)) == recorded
    assert (recorded["seed"], recorded["optimizer"]["lr"], recorded["optimizer"]["momentum"]) == (3, 0.02, 0.9)

    records = read_lines(run / "metrics.jsonl")
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 4), (2, 8), (3, 12)]
    metrics = {f"{split}/{name}" for split in ("train", "val") for name in ("loss", "accuracy")}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record.keys() >= {"epoch", "step", "seconds", "lr"} | metrics
        assert record["seconds"] > 0

    summary = read(run / "metrics.json")
    accuracies = [record["val/accuracy"] for record in records]
    best = accuracies.index(max(accuracies))
    assert summary["monitor"] == "val/accuracy"
    assert summary["best"] == {"epoch": best + 1} | {name: records[best][name] for name in metrics}
    assert summary["final"] == {"epoch": 3} | {name: records[-1][name] for name in metrics}

    status = read(run / "status.json")
    assert (status["state"], status["epoch"], status["step"], status["error"]) == ("finished", 3, 12, None)
    log = (run / "train.log").read_text()
    assert f"{accuracies[best]:.4f}" in log
    assert len(re.findall(r"^epoch +\d/3 ", log, re.MULTILINE)) == 3


def test_provenance_says_where_the_numbers_come_from(run_train: Callable[..., Path]) -> None:
    first, same_data, other_data = (
        run_train(*arguments, "trainer.epochs=1", name=f"run{number}")
        for number, arguments in enumerate((["data.limit=90"], ["data.limit=90", "seed=5"], ["data.limit=80"]))
    )
    records = [read(run / "provenance.json") for run in (first, same_data, other_data)]
    assert records[0]["data_sha256"] == records[1]["data_sha256"] != records[2]["data_sha256"]
    assert "data.limit=90" in records[0]["command"]
    assert records[0]["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert records[0]["device"].startswith("cpu")
    patch = first / "uncommitted.patch"
    if records[0]["git_patch_sha256"]:
        assert hashlib.sha256(patch.read_bytes()).hexdigest() == records[0]["git_patch_sha256"]
    else:
        assert not patch.exists()


def test_the_best_weights_are_those_of_the_best_epoch(run_train: Callable[..., Path]) -> None:
    ruined = ["scheduler=step", "scheduler.step_size=1", "scheduler.gamma=300", "data.limit=200"]
    run = run_train(*ruined, "trainer.epochs=3", name="whole")
    best = read(run / "metrics.json")["best"]["epoch"]
    assert best < 3
    up_to_there = run_train(*ruined, f"trainer.epochs={best}", name="shorter")
    assert equal_weights(run / "best.pt", up_to_there / "last.pt")
    assert not equal_weights(run / "best.pt", run / "last.pt")


def test_a_seed_repeats_a_run_and_another_one_does_not(run_train: Callable[..., Path]) -> None:
    options = ["model.dropout=0.3", "data.crop_padding=1", "data.flip=true", "data.limit=200", "trainer.epochs=2"]
    first = run_train(*options, "seed=7", name="first")
    torch.rand(5)  # what ran before in this process is of no account
    again = run_train(*options, "seed=7", name="again")
    other = run_train(*options, "seed=8", name="other")
    assert read_lines(first / "metrics.jsonl") == read_lines(again / "metrics.jsonl")
    assert equal_weights(first / "last.pt", again / "last.pt")
    assert read_lines(first / "metrics.jsonl") != read_lines(other / "metrics.jsonl")
    assert not equal_weights(first / "last.pt", other / "last.pt")


def test_what_is_logged_does_not_change_what_is_learned(run_train: Callable[..., Path]) -> None:
    options = ["model.dropout=0.3", "data.limit=200", "trainer.epochs=2"]
    quiet = run_train(*options, "trainer.log_every=1000", name="quiet")
    loud = run_train(*options, "trainer.log_every=1", "trainer.images=true", name="loud")
    assert read_lines(quiet / "metrics.jsonl") == read_lines(loud / "metrics.jsonl")
    assert equal_weights(quiet / "last.pt", loud / "last.pt")
    assert list(loud.glob("*.png"))


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_bf16_trains(model: str, run_train: Callable[..., Path]) -> None:
    run = run_train(
        f"model={model}", "trainer.precision=bf16", "optimizer.lr=0.01", "data.limit=300", "trainer.epochs=4"
    )
    records = read_lines(run / "metrics.jsonl")
    assert records[-1]["val/accuracy"] > 0.5
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(run / "best.pt").values())


def test_a_compiled_run_is_the_run_and_loads_without_compiling(run_train: Callable[..., Path]) -> None:
    options = ["model.hidden_sizes=[16]", "data.limit=128", "trainer.epochs=2"]
    eager = run_train(*options, name="eager")
    compiled = run_train(*options, "trainer.compile=true", name="compiled")
    assert weights_of(compiled / "last.pt").keys() == weights_of(eager / "last.pt").keys()
    for name, tensor in weights_of(compiled / "last.pt").items():
        torch.testing.assert_close(tensor, weights_of(eager / "last.pt")[name], rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------------------------------------- TensorBoard


def tensorboard_context(folder: Path) -> tuple[Any, Any]:
    """(TensorBoard's own data provider over a folder, the context of its HPARAMS plugin)."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import backend_context

    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder)).Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    context = base_plugin.TBContext(data_provider=provider, logdir=str(folder), multiplexer=multiplexer)
    return multiplexer, backend_context.Context(context)


def test_tensorboard_shows_one_line_a_run_with_its_hyperparameters(
    run_train: Callable[..., Path], tmp_path: Path
) -> None:
    from tensorboard.context import RequestContext
    from tensorboard.plugins.hparams import api_pb2, get_experiment, list_session_groups

    runs = {
        "mlp": run_train("model=mlp", "optimizer.lr=0.02", "trainer.epochs=2", "data.limit=100", name="study"),
        "cnn": run_train("model=cnn", "optimizer.lr=0.03", "trainer.epochs=1", "data.limit=100", name="study"),
    }
    multiplexer, context = tensorboard_context(tmp_path / "experiments")
    assert sorted(multiplexer.Runs()) == sorted(f"study/{run.name}" for run in runs.values())

    request_context = RequestContext()
    experiment = get_experiment.Handler(request_context, context, "", api_pb2.GetExperimentRequest()).run()
    columns = {info.name for info in experiment.hparam_infos}
    assert {"optimizer.lr", "model.channels", "model.hidden_sizes", "seed", "model._target_"} <= columns
    assert "val/accuracy" in {info.name.tag for info in experiment.metric_infos}

    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=10,
        allowed_statuses=[api_pb2.STATUS_SUCCESS],
        col_params=[
            *(api_pb2.ColParams(hparam=name) for name in sorted(columns)),
            api_pb2.ColParams(metric=api_pb2.MetricName(tag="val/accuracy", group="")),
        ],
    )
    groups = list_session_groups.Handler(request_context, context, "", request).run().session_groups
    assert len(groups) == 2
    found = {group.hparams["model._target_"].string_value: group for group in groups}
    for name, target, rate in [("mlp", "model.net.MLP", 0.02), ("cnn", "model.net.CNN", 0.03)]:
        group = found[target]
        assert group.hparams["optimizer.lr"].number_value == rate
        assert group.hparams["seed"].number_value == 0
        values = {value.name.tag: value for value in group.metric_values}
        final = read(runs[name] / "metrics.json")["final"]
        assert values["val/accuracy"].value == pytest.approx(final["val/accuracy"], rel=1e-6)


def test_tensorboard_has_the_numbers_of_metrics_jsonl(run_train: Callable[..., Path]) -> None:
    from tensorboard.util import tensor_util

    run = run_train("trainer.epochs=3", "data.limit=100", "trainer.log_every=1")
    multiplexer, _ = tensorboard_context(run)
    assert list(multiplexer.Runs()) == ["."]
    records = read_lines(run / "metrics.jsonl")
    for tag in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        events = multiplexer.Tensors(".", tag)
        values = [float(tensor_util.make_ndarray(event.tensor_proto)) for event in events]
        assert [event.step for event in events] == [record["step"] for record in records]
        np.testing.assert_allclose(values, [record[tag] for record in records], rtol=1e-6)


# ----------------------------------------------------------------------------------------------- runs that do not end well


def test_a_run_that_diverges_says_where_and_keeps_nothing_broken(
    try_train: Callable[..., Outcome], tmp_path: Path
) -> None:
    named = []
    for log_every in (1, 50):  # the step is named whether or not somebody looked just then
        outcome = try_train(
            *("optimizer=sgd", "optimizer.lr=1e6", "model.activation=relu", "trainer.loss=cross_entropy"),
            *("trainer.epochs=40", f"trainer.log_every={log_every}", f"name=every{log_every}"),
        )
        assert outcome.code == 1
        assert len(outcome.err.strip().splitlines()) == 1
        (run,) = (tmp_path / "experiments" / f"every{log_every}").iterdir()
        status = read(run / "status.json")
        assert status["state"] == "diverged"
        assert status["error"] in outcome.err
        place = re.search(r"epoch (\d+), step (\d+)", outcome.err)
        assert place is not None
        epoch, step = map(int, place.groups())
        assert math.ceil(step / 21) == epoch  # 1,296 training examples: 21 steps an epoch
        named.append((epoch, step))
        for path in run.glob("*.pt"):
            assert all(torch.isfinite(tensor).all() for tensor in weights_of(path).values())
    assert named[0] == named[1]


class Broken(nn.Module):
    """A network whose loss is not a number from its 10th training step on."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(spec.input_shape), spec.output_size)
        self.num_steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_steps += self.training and torch.is_grad_enabled()
        return self.layer(x.flatten(1)) + (math.nan if self.num_steps >= 10 else 0.0)


@pytest.mark.parametrize("log_every", [1, 3, 50])
def test_the_first_step_that_is_no_number_is_named(
    log_every: int, try_train: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = try_train(
        "model._target_=test_train.Broken",
        *("~model.hidden_sizes", "~model.activation", "~model.dropout", "~model.output"),
        *("data.limit=200", f"trainer.log_every={log_every}", "trainer.epochs=9"),
    )
    assert outcome.code == 1, outcome.err
    assert "epoch 3, step 10" in outcome.err  # 4 steps an epoch
    run = only_run(tmp_path)
    assert [record["epoch"] for record in read_lines(run / "metrics.jsonl")] == [1, 2]
    assert read(run / "metrics.json")["final"]["epoch"] == 2
    assert read(run / "status.json")["epoch"] == 2


def test_an_interruption_is_recorded_and_says_how_to_go_on(
    try_train: Callable[..., Outcome],
    run_command: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log_epoch = RunLogger.epoch

    def interrupt(self: RunLogger, record: Any, *, num_epochs: int) -> None:
        if record["epoch"] == 3:
            raise KeyboardInterrupt
        log_epoch(self, record, num_epochs=num_epochs)

    monkeypatch.setattr(RunLogger, "epoch", interrupt)
    outcome = try_train("trainer.epochs=4", "data.limit=100")
    monkeypatch.undo()
    run = only_run(tmp_path)
    assert outcome.code == 130
    assert "interrupted" in outcome.err
    assert read(run / "status.json")["state"] == "interrupted"
    assert f"resume={run}" in outcome.out
    again = run_command("train", f"resume={run}")
    assert again.code == 0, again.err
    assert [record["epoch"] for record in read_lines(run / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_bug_is_recorded_as_failed(
    try_train: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug of the project's")

    monkeypatch.setattr(RunLogger, "epoch", fail)
    with pytest.raises(ZeroDivisionError):
        try_train("trainer.epochs=1", "data.limit=100")
    status = read(only_run(tmp_path) / "status.json")
    assert status["state"] == "failed"
    assert "a bug of the project's" in status["error"]


# ------------------------------------------------------------------------------------------------------------ debugging


def test_debug_tiny_is_a_few_steps_of_everything(try_train: Callable[..., Outcome], tmp_path: Path) -> None:
    assert try_train("debug=tiny").code == 0
    records = read_lines(only_run(tmp_path) / "metrics.jsonl")
    assert records[-1]["step"] <= 10


def test_debug_overfit_tells_a_network_that_learns_from_one_that_cannot(try_train: Callable[..., Outcome]) -> None:
    assert try_train("debug=overfit").code == 0
    outcome = try_train("debug=overfit", "optimizer.lr=1e-12", "trainer.epochs=3")
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1
    assert "training loss" in outcome.err


def test_debug_profile_says_where_the_time_goes(try_train: Callable[..., Outcome], tmp_path: Path) -> None:
    assert try_train("debug=profile", "data.max_batches=3").code == 0
    run = only_run(tmp_path)
    assert any("linear" in event.get("name", "") for event in read(run / "trace.json")["traceEvents"])
    assert "aten::addmm" in (run / "profile.txt").read_text()


# --------------------------------------------------------------------------------------------------- sweeps and resuming

QUICK = ["trainer.epochs=1", "data.limit=100"]


def test_the_same_sweep_again_does_only_what_is_missing(try_train: Callable[..., Outcome], tmp_path: Path) -> None:
    sweep = ["-m", "model=mlp,lstm", "seed=0,1", *QUICK]
    assert try_train(*sweep).code == 0
    folder = tmp_path / "experiments" / "run"
    runs = sorted(path.parent for path in folder.glob("**/config.yaml"))
    assert len(runs) == 4
    found = set()
    for run in runs:
        cfg = load_config(run)
        found.add((cfg.model._target_, cfg.seed))
        assert run.name == f"seed-{cfg.seed}"
        assert run.parent.parent == folder
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,120}", run.parent.name)
    assert found == set(itertools.product(("model.net.MLP", "model.net.LSTM"), (0, 1)))
    assert len({run.parent for run in runs}) == 2

    def snapshot() -> dict[Path, tuple[int, bytes]]:
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes())
            for run in runs
            for path in run.iterdir()
            if path.is_file()
        }

    before = snapshot()
    outcome = try_train(*sweep)
    assert outcome.code == 0
    assert outcome.out.count("finished already") == 4
    assert snapshot() == before

    weights = (runs[2] / "last.pt").read_bytes()
    for path in runs[2].iterdir():
        path.unlink()
    outcome = try_train(*sweep)
    assert outcome.out.count("finished already") == 3
    after = snapshot()
    untouched = [path for path in before if path.parent != runs[2]]
    assert {path: after[path] for path in untouched} == {path: before[path] for path in untouched}
    assert equal_weights(runs[2] / "last.pt", runs[2] / "best.pt")
    assert read(runs[2] / "status.json")["state"] == "finished"
    assert len((runs[2] / "last.pt").read_bytes()) == pytest.approx(len(weights), rel=0.1)


def test_a_job_of_a_sweep_is_the_run_alone(
    try_train: Callable[..., Outcome], run_train: Callable[..., Path], tmp_path: Path
) -> None:
    """Jobs of a sweep share a process; what one leaves behind must not reach the next."""
    assert try_train("-m", "model=lstm,mlp", "seed=0,1", *QUICK).code == 0
    (swept,) = (tmp_path / "experiments" / "run").glob("*mlp*/seed-1")
    alone = run_train("model=mlp", "seed=1", *QUICK, name="alone")
    assert read_lines(swept / "metrics.jsonl") == read_lines(alone / "metrics.jsonl")
    assert equal_weights(swept / "last.pt", alone / "last.pt")


def test_a_finished_run_goes_on_with_more_epochs(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    options = ["model.dropout=0.2", "data.limit=150"]
    run = run_train(*options, "trainer.epochs=2", name="longer")
    whole = run_train(*options, "trainer.epochs=4", name="whole")
    before = (run / "last.pt").read_bytes()
    again = run_command("train", f"resume={run}")
    assert again.code == 0
    assert "finished already" in again.out
    assert (run / "last.pt").read_bytes() == before
    assert run_command("train", f"resume={run}", "trainer.epochs=4").code == 0
    assert read_lines(run / "metrics.jsonl") == read_lines(whole / "metrics.jsonl")
    assert equal_weights(run / "last.pt", whole / "last.pt")
    assert equal_weights(run / "best.pt", whole / "best.pt")
    assert load_config(run).trainer.epochs == 4


def test_a_run_does_not_go_on_as_another(run_train: Callable[..., Path], run_command: Callable[..., Outcome]) -> None:
    run = run_train(*QUICK)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    for change in ("optimizer.lr=0.5", "seed=9", "model.hidden_sizes=[3]", "data.batch_size=7", "model=cnn"):
        outcome = run_command("train", f"resume={run}", "trainer.epochs=3", change)
        assert outcome.code == 2
        assert len(outcome.err.strip().splitlines()) == 1
        assert change.split("=")[0] in outcome.err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_resuming_with_a_damaged_checkpoint_is_refused(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    run = run_train(*QUICK)
    content = bytearray((run / "last.pt").read_bytes())
    content[len(content) // 2] ^= 16
    (run / "last.pt").write_bytes(content)
    metrics = (run / "metrics.jsonl").read_bytes()
    outcome = run_command("train", f"resume={run}", "trainer.epochs=2")
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert "last.pt is damaged" in outcome.err
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_a_run_that_another_process_writes_is_left_alone(
    run_train: Callable[..., Path], run_command: Callable[..., Outcome]
) -> None:
    run = run_train(*QUICK)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with locked(run):
        outcome = run_command("train", f"resume={run}", "trainer.epochs=2")
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert "is being written by process" in outcome.err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert run_command("train", f"resume={run}", "trainer.epochs=2").code == 0
