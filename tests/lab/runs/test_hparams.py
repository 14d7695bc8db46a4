"""TensorBoard's HPARAMS opens with the monitored metric at its best, and shows the weights on request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import read, read_lines
from test_tensorboard import tensorboard_context


def test_hparams_name_a_network_and_show_the_best_epoch(run_train: Callable[..., Path], tmp_path: Path) -> None:
    from tensorboard.context import RequestContext
    from tensorboard.plugins.hparams import api_pb2, get_experiment
    from tensorboard.util import tensor_util

    ruined = ["scheduler=step", "scheduler.step_size=1", "scheduler.gamma=300", "data.limit=200"]
    run = run_train("model=mlp", *ruined, "trainer.epochs=3")
    multiplexer, context = tensorboard_context(run)
    metrics, records = read(run / "metrics.json"), read_lines(run / "metrics.jsonl")
    assert metrics["best"]["epoch"] < 3
    events = multiplexer.Tensors(".", "accuracy/best")
    shown = [float(tensor_util.make_ndarray(event.tensor_proto)) for event in events]
    accuracies = [record["val/accuracy"] for record in records]
    np.testing.assert_allclose(shown, np.maximum.accumulate(accuracies), rtol=1e-6)
    assert shown[-1] == pytest.approx(metrics["best"]["val/accuracy"])
    request = api_pb2.GetExperimentRequest()
    experiment = get_experiment.Handler(RequestContext(), context, "", request).run()
    assert experiment.metric_infos[0].name.tag == "accuracy/best"  # the first column
    keys = {info.name for info in experiment.hparam_infos}
    assert {"model", "data", "optimizer", "optimizer.lr", "seed"} <= keys
    assert not [key for key in keys if "_target_" in key]


def test_histograms_of_the_weights_on_request(run_train: Callable[..., Path]) -> None:
    options = ["model=mlp", "model.hidden_sizes=[8]", "trainer.epochs=2", "data.limit=100"]
    for name, wanted in (("none", False), ("some", True)):
        run = run_train(*options, f"trainer.histograms={str(wanted).lower()}", name=name)
        multiplexer, _ = tensorboard_context(run)
        tags = sorted(multiplexer.PluginRunToTagToContent("histograms").get(".", {}))
        expected = ["weights/fc1.bias", "weights/fc1.weight", "weights/fc2.bias", "weights/fc2.weight"]
        assert tags == expected * wanted
        assert [len(multiplexer.Tensors(".", tag)) for tag in tags] == [2] * len(tags)
