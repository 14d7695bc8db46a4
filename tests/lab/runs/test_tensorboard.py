"""TensorBoard shows one line a run, with the numbers of its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import read, read_lines


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
    assert {"optimizer.lr", "model.channels", "model.hidden_sizes", "seed", "model"} <= columns
    assert "accuracy/val" in {info.name.tag for info in experiment.metric_infos}

    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=10,
        allowed_statuses=[api_pb2.STATUS_SUCCESS],
        col_params=[
            *(api_pb2.ColParams(hparam=name) for name in sorted(columns)),
            api_pb2.ColParams(metric=api_pb2.MetricName(tag="accuracy/val", group="")),
        ],
    )
    groups = list_session_groups.Handler(request_context, context, "", request).run().session_groups
    assert len(groups) == 2
    found = {group.hparams["model"].string_value: group for group in groups}
    for name, target, rate in [("mlp", "MLP", 0.02), ("cnn", "CNN", 0.03)]:
        group = found[target]
        assert group.hparams["optimizer.lr"].number_value == rate
        assert group.hparams["seed"].number_value == 0
        values = {value.name.tag: value for value in group.metric_values}
        final = read(runs[name] / "metrics.json")["final"]
        assert values["accuracy/val"].value == pytest.approx(final["val/accuracy"], rel=1e-6)


def test_tensorboard_has_the_numbers_of_metrics_jsonl(run_train: Callable[..., Path]) -> None:
    from tensorboard.util import tensor_util

    run = run_train("trainer.epochs=3", "data.limit=100", "trainer.log_every=1")
    multiplexer, _ = tensorboard_context(run)
    assert list(multiplexer.Runs()) == ["."]
    records = read_lines(run / "metrics.jsonl")
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        split, metric = name.split("/")
        events = multiplexer.Tensors(".", f"{metric}/{split}")
        values = [float(tensor_util.make_ndarray(event.tensor_proto)) for event in events]
        assert [event.step for event in events] == [record["step"] for record in records]
        np.testing.assert_allclose(values, [record[name] for record in records], rtol=1e-6)
