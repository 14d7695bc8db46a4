"""Names, grammar and targets that cannot be: one line that says so, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Outcome
from helpers.commands import assert_one_line
from test_mistakes import DATA

NAMES = {
    "name=a/b": ["name", "'a/b'"],
    "name=..": ["name", "'..'"],
    "name=../escape": ["name", "'../escape'"],
    "name=/tmp/x": ["name"],
    "name='a b'": ["name", "'a b'"],
    "name=ünïcode": ["name"],
    "name=''": ["name"],
    "name='a=b'": ["name"],
    "name='a,b'": ["name"],
    f"name={'x' * 300}": ["name", "120"],
    "name=.hidden": ["name"],
    "name='\udcff'": ["name", "\\udcff"],
    "name='\x1b[31mred'": ["name", "\\x1b[31mred"],
    "experiments_dir=''": ["experiments_dir", "empty"],
    "data.root=''": ["data.root", "empty"],
    "name='a\\n'": ["name"],
}
SYNTAX = {
    "seed=???": ["seed"],
    "optimizer.lr=???": ["optimizer.lr"],
    "name=???": ["name"],
    "data.root=${oc.env:NO_SUCH_VARIABLE}": ["data.root", "NO_SUCH_VARIABLE"],
    "optimizer.lr=${optimizer.rl}": ["optimizer.lr", "optimizer.rl"],
    "seed=${seed}": ["seed"],
    "name=${nosuch:1}": ["name", "nosuch"],
    "model.hidden_sizes=[1,2": ["model.hidden_sizes=[1,2"],
    "data.root=${oc.env:HOME": ["data.root"],
    "seed=1,2": ["seed=1,2", "-m"],
    "model=mlp,cnn": ["model=mlp,cnn", "-m"],
    "model.hidden_sizes=1,2": ["-m", "'model.hidden_sizes=[1,2]'"],
    "seed": ["seed"],
    "=3": ["=3"],
    "model.hidden_sizes=" + "[" * 300 + "]" * 300: ["model.hidden_sizes=[[[", "nested"],
    "model.hidden_sizes=" + "[" * 3000 + "]" * 3000: ["model.hidden_sizes=[[[", "nested"],
    "seed=choice(1,2)": ["seed=choice(1,2)", "--multirun"],
    "seed=int(x)": ["seed=int(x)"],
}
TARGETS = {
    "model._target_=model.net.MPL": ["model._target_", "MPL", "did you mean MLP?"],
    "model._target_=nowhere.Net": ["model._target_", "nowhere"],
    "model._target_=MLP": ["model._target_", "MLP", "dotted"],
    "model._target_=3": ["model._target_"],
    "model._target_=null": ["model._target_"],
    "model._target_=''": ["model._target_"],
    "model._target_='model..net'": ["model._target_"],
    "model._target_=.net": ["model._target_"],
    "model._target_=torch.optim.SGD": ["model._target_", "torch.optim.SGD", "torch.nn.Module"],
    "model._target_=builtins.open": ["model._target_", "builtins.open", "torch.nn.Module"],
    "model._target_=torch.hub.load": ["model._target_", "torch.hub.load", "torch.nn.Module"],
    "model._target_=os.system": ["model._target_", "os.system"],
    "optimizer._target_=pandas.read_pickle": ["optimizer._target_", "pandas"],
    "optimizer._target_=builtins.eval": ["optimizer._target_", "builtins.eval"],
    "optimizer._target_=model.net.MLP": ["optimizer._target_", "torch.optim.Optimizer"],
    "optimizer._target_=torch.optim.Adma": ["optimizer._target_", "did you mean Adam"],
    "scheduler._target_=torch.optim.Adam": ["scheduler._target_", "LRScheduler"],
    "model._target_='a\x1b[31m.b'": ["model._target_", "a\\x1b[31m"],
    "model._target_=antigravity.fly": ["model._target_", "antigravity", "standard library"],
    "model._target_=mistaken_module.Net": ["model._target_", "NameError", "mistaken_module.py, line 2"],
    "model._target_=unwritten_module.Net": ["model._target_", "unwritten_module.py, line 1"],
    "model._target_=leaving_module.Net": ["model._target_", "SystemExit"],
    "optimizer._target_=torch.optim.LBFGS": ["optimizer"],
    "data._target_=subprocess.run": ["data._target_", "subprocess.run"],
    "data._target_=torch.load": ["data._target_", "torch.load"],
    f"{DATA}nosuch": ["data._target_", "nosuch"],
    f"{DATA}bad_labels": ["labels from 1 to 3"],
}
ALL = NAMES | SYNTAX | TARGETS


@pytest.fixture(scope="module", autouse=True)
def modules_with_mistakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules of a user's own that cannot be imported."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "mistaken_module.py").write_text("x = 1\ny = undefined\n")
    (folder / "unwritten_module.py").write_text("class Net(\n")
    (folder / "leaving_module.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.mark.parametrize("argument", ALL, ids=lambda name: name[:60])
def test_a_mistake_is_one_line_and_leaves_nothing(
    argument: str, run_command: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    outcome = run_command("train", "trainer.device=cpu", f"experiments_dir={tmp_path / 'experiments'}", argument)
    assert_one_line(outcome, *ALL[argument])
    assert list(tmp_path.iterdir()) == []
