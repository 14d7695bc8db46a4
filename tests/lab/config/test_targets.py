"""What a slot takes, what it refuses, and what is built from its node."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_mistakes import of_no_kind, unannotated
from torch import Tensor, nn

import train
from lab.config.imports import NO_CODE, is_own, refuse_foreign
from lab.config.targets import build, check_foreign, check_slot
from model.net import MLP, DataSpec
from utils import UserError

HERE = "test_targets"
SPEC = DataSpec((3, 32, 32), 4, "classification", classes=("a", "b", "c", "d"))
OPTIONS = {"init": "default", "init_from": None, "freeze": None}


class Net(nn.Module):
    """A network of parts, which takes sizes, not the spec."""

    def __init__(self, num_classes: int, *, activation: nn.Module, blocks: list[nn.Module], note: str = "") -> None:
        super().__init__()
        self.activation, self.blocks, self.note = activation, nn.ModuleList(blocks), note
        self.head = nn.Linear(2, num_classes)


def make(spec, width=3):  # type: ignore[no-untyped-def]
    return nn.Linear(spec.input_shape[0], width)


def make_nothing(spec):  # type: ignore[no-untyped-def]
    return None


def focal(outputs, targets, gamma=1.0):  # type: ignore[no-untyped-def]
    return nn.functional.cross_entropy(outputs, targets, reduction="none") ** gamma


def made_loss(smoothing: float = 0.1) -> nn.Module:
    return nn.CrossEntropyLoss(label_smoothing=smoothing)


class Hinge:
    """A loss that is no module."""

    def __init__(self, spec: DataSpec, margin: float = 1.0) -> None:
        self.margin, self.num_classes = margin, spec.output_size

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.margin - outputs).clamp(min=0).sum(dim=1)


class Counting:
    """A metric with a state."""

    def update(self, outputs: Tensor, targets: Tensor) -> None: ...
    def compute(self) -> Tensor: ...  # type: ignore[empty-body]
    def reset(self) -> None: ...


class Noisy(train.Learner):
    """A learner with a key of its own."""

    def __init__(self, *given: Any, noise: float = 0.1, **others: Any) -> None:
        super().__init__(*given, **others)
        self.noise = noise


def checked_build(slot: str, node: dict[str, Any], **keys: Any) -> Any:
    check_slot(slot, node)
    return build(slot, node, **keys)


def model(target: str, **keys: Any) -> Any:
    return checked_build("model", {**OPTIONS, "_target_": target, **keys}, spec=SPEC)


def test_a_network_of_torchvision_needs_no_code() -> None:
    net = model("torchvision.models.resnet18", num_classes="spec:output_size", weights=None)
    assert net.fc.out_features == 4


def test_a_part_of_the_spec_is_filled_in_anywhere() -> None:
    net = model("model.net.MLP", hidden_sizes=["spec:output_size", "spec:input_shape.0"])
    assert [net.fc1.out_features, net.fc2.out_features, net.fc3.out_features] == [4, 3, 4]


def test_a_network_gets_the_spec_where_it_asks_for_it() -> None:
    assert model(f"{HERE}.make").in_features == 3
    assert isinstance(build("model", {"_target_": "model.net.MLP"}, SPEC), MLP)


def test_nodes_within_a_node_are_built() -> None:
    block = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": "spec:output_size"}
    parts = {"activation": {"_target_": "torch.nn.LeakyReLU", "negative_slope": 0.3}, "blocks": [block, block]}
    net = model(f"{HERE}.Net", num_classes="spec:output_size", **parts)
    assert net.activation.negative_slope == 0.3
    assert [part.out_features for part in net.blocks] == [4, 4]
    assert net.head.out_features == 4
    layers = [{"_target_": "torch.nn.Flatten"}, block]
    assert [type(part) for part in model("torch.nn.Sequential", _args_=layers)] == [nn.Flatten, nn.Linear]


def test_a_part_may_be_what_makes_parts() -> None:
    norm = {"_target_": "torch.nn.InstanceNorm2d", "_partial_": True}
    assert isinstance(model("torchvision.models.resnet18", norm_layer=norm).bn1, nn.InstanceNorm2d)


REFUSED = [
    ({"_target_": f"{HERE}.Net", "activation": 3, "blocks": [], "num_classes": 2}, "model.activation is 3"),
    ({"_target_": f"{HERE}.Net", "activation": {"_target_": "torch.nn.ReLU"}, "blocks": []}, "num_classes is missing"),
    ({"_target_": "model.net.MLP", "activation": {"_target_": "torch.nn.ReLU"}}, "model.activation is .* text"),
    ({"_target_": "model.net.MLP", "hidden_sizes": [{"_target_": "torch.nn.ReLU"}]}, "hidden_sizes"),
    ({"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.optim.SGD"}]}, r"_args_\.0\._target_ is torch"),
    ({"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.system"}]}, r"model\._args_\.0.*standard library"),
    ({"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.ReLU", "inplac": True}]}, "inplac"),
    ({"_target_": "torchvision.models.resnet18", "weights": "NONE"}, "model.weights is 'NONE'; it takes IMAGENET1K_V1"),
    ({"_target_": "torchvision.models.resnet18", "num_classes": "spec:outputs"}, "known of the data.*output_size"),
    ({"_target_": f"{HERE}.make_nothing"}, "gives a NoneType; model takes a torch.nn.Module"),
    ({"_target_": f"{HERE}.Noisy"}, "torch.nn.Module"),
    ({"_target_": "torchvision.models.resnet18", "depth": 3}, "refuses its keys .*depth"),
]


@pytest.mark.parametrize(("node", "answer"), REFUSED, ids=str)
def test_what_is_no_network_is_refused(node: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        model(**{"target": node["_target_"], **{key: value for key, value in node.items() if key != "_target_"}})


def test_an_error_of_ones_own_code_stays_what_it_is() -> None:
    with pytest.raises(TypeError, match="int"):
        model(f"{HERE}.make", width="x")


def test_a_loss_is_a_function_an_object_or_a_word() -> None:
    outputs, targets = torch.randn(5, 4), torch.arange(5) % 4
    plain = nn.functional.cross_entropy(outputs, targets, reduction="none")

    def loss(**node: Any) -> Any:
        return checked_build("loss", node, spec=SPEC)

    assert (loss(_target_="auto"), loss(_target_="own")) == ("auto", "own")
    assert torch.equal(loss(_target_=f"{HERE}.focal", gamma=2.0)(outputs, targets), plain**2)
    assert loss(_target_=f"{HERE}.focal") is focal
    assert loss(_target_=f"{HERE}.made_loss", smoothing=0.2).label_smoothing == 0.2
    assert loss(_target_=f"{HERE}.Hinge", margin=2.0).num_classes == 4
    weighted = loss(_target_="torch.nn.CrossEntropyLoss", weight=[1, 2, 3, 4], label_smoothing=0.1)
    assert torch.equal(weighted.weight, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    smooth = loss(_target_="torch.nn.functional.cross_entropy", label_smoothing=0.1)
    assert smooth(outputs, targets) == nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("node", "answer"),
    [
        ({"_target_": "auto", "weight": 1}, "loss.weight"),
        ({"_target_": "automatic"}, "dotted name .* auto or own"),
        ({"_target_": "torch.hub.load"}, "function of 2 arguments"),
        ({"_target_": "torch.nn.CrossEntropyLoss", "label_smothing": 0.1}, "label_smothing"),
        ({"_target_": f"{HERE}.focal", "gama": 0.1}, "gama"),
        ({"_target_": "torch.optim.SGD"}, "torch.nn.Module"),
        ({"_target_": "filelock.FileLock"}, "torch.nn.Module"),
    ],
    ids=str,
)
def test_what_is_no_loss_is_refused(node: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        check_slot("loss", node)


def test_metrics_are_built_by_name() -> None:
    nodes = {
        "f1": {"_target_": "torchmetrics.F1Score", "task": "multiclass", "num_classes": "spec:output_size"},
        "count": {"_target_": f"{HERE}.Counting", "higher_is_better": True},
        "focal": {"_target_": f"{HERE}.focal", "gamma": 2.0, "higher_is_better": False},
        "accuracy": {"_target_": "model.metrics.accuracy"},
    }
    built = checked_build("metrics", nodes, spec=SPEC)
    assert list(built) == list(nodes)
    assert built["f1"].num_classes == 4
    assert isinstance(built["count"], Counting)
    assert isinstance(built["focal"], partial)
    assert checked_build("metrics", {}) == {}


@pytest.mark.parametrize(
    ("nodes", "answer"),
    [
        ({"focal": {"_target_": f"{HERE}.focal"}}, "metrics.focal.higher_is_better is missing; it takes true or false"),
        ({"loss": {"_target_": f"{HERE}.Counting"}}, "metrics.loss is no name"),
        ({"a/b": {"_target_": f"{HERE}.Counting"}}, "metrics.a/b is no name"),
        ({"accuracy": 3}, "metrics.accuracy is 3"),
        ({"accuracy": {"_target_": "torch.nn.ReLU"}}, r"metrics.accuracy._target_"),
        ({"accuracy": {"_target_": f"{HERE}.Counting", "higher_is_better": 1}}, "higher_is_better is 1"),
    ],
    ids=str,
)
def test_what_is_no_metric_is_refused(nodes: dict[str, Any], answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        check_slot("metrics", nodes)


def test_a_learner_has_the_keys_that_it_adds() -> None:
    check_slot("learner", {"_target_": "train.Learner"})
    check_slot("learner", {"_target_": f"{HERE}.Noisy", "noise": 0.3})
    for wrong in ({"noize": 0.3}, {"noise": "much"}, {"precision": "bf16"}):
        with pytest.raises(UserError, match=f"learner.{next(iter(wrong))}"):
            check_slot("learner", {"_target_": f"{HERE}.Noisy", **wrong})
    with pytest.raises(UserError, match="precision"):
        check_slot("learner", {"_target_": "train.Learner", "precision": "bf16"})
    with pytest.raises(UserError, match=r"train\.Learner"):
        check_slot("learner", {"_target_": "model.net.MLP"})


def test_transforms_are_built_one_by_one() -> None:
    flip = {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip", "p": 0.3}
    assert build("data.transform", None) is None
    assert build("data.transform", flip).p == 0.3
    assert [type(one).__name__ for one in build("data.transform", [flip, flip])] == ["RandomHorizontalFlip"] * 2


def test_groups_of_parameters_have_keys_of_the_optimizer() -> None:
    node = {"_target_": "torch.optim.Adam", "lr": 0.1, "no_decay": True, "groups": {"head.*": {"lr": 0.01}}}
    check_slot("optimizer", node)
    for wrong in ({"lr": 0}, {"lrr": 0.1}, 3):
        with pytest.raises(UserError, match=r"optimizer\.groups\.head\.\*"):
            check_slot("optimizer", node | {"groups": {"head.*": wrong}})


def test_a_dataset_need_not_say_that_it_is_one() -> None:
    node = {"_target_": "test_mistakes.unannotated"}
    assert len(build("data", node, "train", "x")) == len(unannotated("train", "x"))
    assert of_no_kind("train", "x") == 3
    with pytest.raises(UserError, match=r"of_no_kind gives a int; data takes a model\.examples\.Examples"):
        build("data", {"_target_": "test_mistakes.of_no_kind"}, "train", "x")


# ------------------------------------------------------------------------------------------------------- whose code it is


@pytest.mark.parametrize("folder", ["data", "experiments"])
def test_code_among_data_or_runs_is_never_imported(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.config.imports.PROJECT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert folder in NO_CODE
    name = f"code_{folder}"
    monkeypatch.setattr("lab.config.imports.NO_CODE", (name,))
    (tmp_path / name).mkdir()
    (tmp_path / name / "evil.py").write_text("raise SystemExit('imported')\n")
    with pytest.raises(UserError, match="code among data or runs is not executed"):
        check_slot("model", {**OPTIONS, "_target_": f"{name}.evil.Net"})


def test_code_that_pythonpath_names_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "paper" / "experiments" / "study" / "seed-0"
    run.mkdir(parents=True)
    (tmp_path / "paper" / "net_of_paper.py").write_text("")
    (run / "evil_net.py").write_text("")
    for folder in (tmp_path / "paper", run):
        monkeypatch.syspath_prepend(folder)
    with pytest.raises(UserError, match="may have come with the run"):
        refuse_foreign("net_of_paper.Net", "model", run)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'paper'}:{run}")
    refuse_foreign("net_of_paper.Net", "model", run)
    inner = {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "evil_net.Net"}]}
    for node in ({"_target_": "evil_net.Net"}, inner, {"x": [inner]}):
        with pytest.raises(UserError, match=r"evil_net\.Net"):
            check_foreign("model", node, run)


def test_whose_code_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    assert is_own(str(tmp_path / "mine.py")) and is_own(__file__)
    ours = Path(train.__file__).parent / "lab" / "config" / "schema.py"
    for file in (torch.__file__, pytest.__file__, train.__file__, ours, "<string>", "/nowhere/x.py"):
        assert not is_own(str(file))
