"""Imports point one way between the rooms, and nothing that can run code is read from a file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = {"train", "evaluate", "search_hyperparams", "synthesize_results"}
SOURCES = {
    ".".join(path.relative_to(PROJECT).with_suffix("").parts): path
    for pattern in ("*.py", "model/**/*.py", "lab/**/*.py", "conf/**/*.py")
    for path in sorted(PROJECT.glob(pattern))
    if path.name != "__init__.py"
}
# The rooms that each room may import from; what a script may import is everything but a script that comes after it.
BELOW = {
    "utils": set(),
    "model": {"utils"},
    "lab.config": {"model", "utils"},
    "lab.devices": {"model", "utils"},
    "lab.runs": {"lab.config", "lab.devices", "model", "utils"},
    "lab.plots": {"lab.config", "lab.devices", "lab.runs", "model", "utils"},
    "lab.tables": {"lab.config", "lab.devices", "lab.runs", "model", "utils"},
    "lab.sweeps": {"lab.config", "lab.devices", "lab.runs", "lab.plots", "lab.tables", "model", "utils"},
}
# A preset's own file stands where a user's own does: on all the others, and none of them knows it.
PRESETS = {f"model.{path.stem}" for path in (PROJECT / "conf" / "experiment").glob("*.yaml")} & SOURCES.keys()
BELOW["preset"] = {*BELOW, "train", "evaluate"}
LAB = {room for room in BELOW if room.startswith("lab.")}
BELOW["evaluate"] = {*BELOW}
BELOW["train"] = {*BELOW}
BELOW["synthesize_results"] = {"utils", "model", *LAB}
BELOW["search_hyperparams"] = {"utils", "model", *LAB, "train", "evaluate"}


def imports(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports, inside functions and for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def room_of(module: str) -> str:
    """The room that a module of the project stands in."""
    parts = module.split(".")
    if module in PRESETS:
        return "preset"
    return ".".join(parts[:2]) if parts[0] == "lab" else parts[0]


def calls(path: Path, name: str) -> list[ast.Call]:
    """The calls of a function by its dotted name."""
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


def test_the_top_is_the_five_scripts_and_conf_is_yaml_alone() -> None:
    assert {path.stem for path in PROJECT.glob("*.py")} == SCRIPTS | {"utils"}
    assert [*(PROJECT / "conf").rglob("*.py")] == []
    assert {path.name for path in (PROJECT / "lab").iterdir() if path.is_dir() and path.name[0] != "_"} == {
        room.removeprefix("lab.") for room in LAB
    }


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_one_way(module: str) -> None:
    own = imports(SOURCES[module]) & SOURCES.keys()
    room = room_of(module)
    assert room in BELOW, f"{module} stands in no room"
    assert {name for name in own if room_of(name) not in {room, *BELOW[room]}} == set()


def test_no_module_imports_what_imports_it() -> None:
    graph = {module: (imports(path) & SOURCES.keys()) - {module} for module, path in SOURCES.items()}
    waiting = dict(graph)
    while free := [module for module, needed in waiting.items() if not needed & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert waiting == {}, "these import one another in a circle, some of them inside functions or for types alone"


def test_what_the_reader_of_imports_finds(tmp_path: Path) -> None:
    """The checks here are worth something only if the reader sees every way to import."""
    (tmp_path / "a.py").write_text(
        "import os.path as p\nfrom model import net\ndef f():\n    from model.datasets import Folder\n    import train\n"
    )
    assert imports(tmp_path / "a.py") >= {"os.path", "model.net", "model.datasets", "train"}


def test_only_plots_imports_matplotlib() -> None:
    assert {room_of(module) for module, path in SOURCES.items() if "matplotlib" in roots(path)} == {"lab.plots"}


@pytest.mark.parametrize("module", [m for m in SOURCES if room_of(m) in ("utils", "model", "lab.devices", "lab.plots")])
def test_configuration_stops_at_the_builders(module: str) -> None:
    assert not roots(SOURCES[module]) & {"hydra", "omegaconf"}
    assert not [name for name in imports(SOURCES[module]) if name.startswith("lab.config")]


def test_every_torch_load_is_weights_only() -> None:
    found = [(module, call) for module, path in SOURCES.items() for call in calls(path, "torch.load")]
    assert found, "the checkpoints are read somewhere"
    for module, call in found:
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("weights_only") == "True", f"{module}:{call.lineno}"


# What executes code that it is given, or that it finds in a file.
EXECUTING = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "runpy.run_module"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "numpy.load", "np.load"),
    *("pandas.read_pickle", "pd.read_pickle"),
    *("hydra.utils.instantiate", "hydra.utils.call", "instantiate", "hydra.utils.get_class", "hydra.utils.get_method"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "torch.serialization.load"),
}
# What may do so in one place alone: targets that are checked to be of their slot's kind, a file that was just written.
IN_ONE_PLACE = {
    "importlib.import_module": "lab.config.imports",
    "torch.export.load": "model.export",
    "torch.load": "lab.runs.checkpoint",
}


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_that_runs_code_from_files(module: str) -> None:
    path = SOURCES[module]
    assert not roots(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    made = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    called = {ast.unparse(node.func) for node in made}
    assert not called & EXECUTING
    assert not imports(path) & (EXECUTING | IN_ONE_PLACE.keys()), "under another name it would not be seen here"
    assert {name for name in called & IN_ONE_PLACE.keys() if IN_ONE_PLACE[name] != module} == set()
    assert not [node for node in made if any(keyword.arg == "shell" for keyword in node.keywords)]
