"""Imports point one way, and nothing that can run code is read from a file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
FOLDERS = ("", "model", "conf", "plots", "hydra_plugins", "benchmarks")
SOURCES = {
    ".".join(path.relative_to(PROJECT).with_suffix("").parts): path
    for folder in FOLDERS
    for path in sorted((PROJECT / folder).glob("*.py"))
    if path.name != "__init__.py"
}
# What each module may import of the project's own: modules, or packages with all that is in them.
MAY_IMPORT = {
    "utils": set(),
    "devices": {"utils"},
    "run_log": {"utils"},
    "plots.figures": set(),
    **{module: {"plots.figures"} for module in SOURCES if module.startswith("plots.") and module[6:] != "figures"},
    **{module: {"model"} for module in SOURCES if module.startswith("model.")},
    "model.net": set(),
    "model.examples": set(),
    "model.datasets": {"model.cache", "model.examples"},
    "model.cache": {"model.examples"},
    "conf.schema": {"utils"},
    "conf.targets": {"conf.schema", "utils"},
    "conf.command": {"conf.schema", "conf.targets", "utils"},
    "pictures": {"model", "plots", "run_log"},
    "evaluate": {
        *("conf.command", "conf.schema", "conf.targets", "devices", "distributed", "model", "pictures"),
        *("plots", "runs", "sharding", "utils"),
    },
    "provenance": {"utils"},
    "stopping": set(),
    "distributed": {"devices", "launching", "utils"},
    "launching": {"stopping", "utils"},
    "pieces": {"utils"},
    "sharding": {"distributed", "pieces", "utils"},
    "progress": {"conf.schema", "distributed", "evaluate", "model", "utils"},
    "schedule": {"conf.targets", "model", "utils"},
    "run_directory": {"conf.command", "conf.schema", "conf.targets", "evaluate", "launching", "run_log", "utils"},
    "recording": {
        *("distributed", "pictures", "progress", "provenance", "run_directory", "run_log", "sharding"),
        *("stopping", "utils"),
        "train",  # for types alone, which is seen below
    },
    "train": {
        *("conf.command", "conf.schema", "conf.targets", "devices", "distributed", "evaluate", "launching", "model"),
        *("pictures", "progress", "provenance", "recording", "run_directory", "schedule", "sharding", "utils"),
    },
    "pool": {"provenance", "run_log", "stopping", "train", "utils"},
    "sweep": {"pool", "provenance", "run_directory", "run_log", "summary", "synthesize_results", "utils"},
    # Run by Hydra, whose launchers and sweepers they are.
    "hydra_plugins._checked": {"conf.command", "conf.schema", "pool", "run_directory", "sweep", "utils"},
    "hydra_plugins._other": {
        *("hydra_plugins._checked", "hydra_plugins._task", "pool", "run_directory", "sweep", "utils"),
    },
    "hydra_plugins._task": {"conf.command", "hydra_plugins._checked", "pool", "sweep", "train", "utils"},
    "hydra_plugins.checked_sweeper": {"hydra_plugins", "conf.command"},
    "hydra_plugins.pool_launcher": {"conf.schema", "hydra_plugins._checked", "pool", "sweep", "utils"},
    "hydra_plugins.ray_launcher": {"utils"},
    "search_hyperparams": {
        *("conf", "evaluate", "model", "pictures", "plots", "pool", "run_directory", "search_space", "study"),
        *("sweep", "train", "trials", "utils"),
    },
    "search_space": {"utils"},
    "study": {"search_space", "utils"},
    "trials": {"conf.command", "conf.schema", "pool", "run_directory", "run_log", "search_space", "study", "utils"},
    "report": set(),
    "runs": {"utils"},
    "summary": {"conf.schema", "report", "runs", "utils"},
    "synthesize_results": {"conf.command", "conf.schema", "plots", "report", "runs", "summary", "utils"},
    "conf.callbacks": {"conf.schema", "evaluate", "model", "plots", "utils"},  # run by Hydra; none of ours imports it
}


def imports(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports, inside functions too."""
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


def calls(path: Path, name: str) -> list[ast.Call]:
    """The calls of a function by its dotted name."""
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


def test_the_modules_of_the_design_are_there() -> None:
    places = ("train", "evaluate", "utils", "plots.figures", "model.net", "model.data_loader", "conf.schema")
    assert set(places) <= SOURCES.keys()


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_point_one_way(module: str) -> None:
    if module not in SOURCES:
        pytest.skip(f"{module} is not written yet")
    own = imports(SOURCES[module]) & SOURCES.keys()
    assert {name for name in own if not {name, name.split(".")[0]} & MAY_IMPORT[module]} == set()


def test_the_recording_knows_training_by_its_types_alone() -> None:
    code = ast.parse(SOURCES["recording"].read_text())
    typing_only = [node for node in code.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    of_train = [node for node in ast.walk(code) if isinstance(node, ast.ImportFrom) and node.module == "train"]
    assert of_train and all(node in typing_only[0].body for node in of_train)


def test_every_module_has_a_place() -> None:
    assert {module for module in SOURCES if not module.startswith("benchmarks.")} <= MAY_IMPORT.keys()


def test_what_the_reader_of_imports_finds(tmp_path: Path) -> None:
    """The checks here are worth something only if the reader sees every way to import."""
    (tmp_path / "a.py").write_text(
        "import os.path as p\nfrom model import net\ndef f():\n    from model.datasets import Folder\n    import train\n"
    )
    assert imports(tmp_path / "a.py") >= {"os.path", "model.net", "model.datasets", "train"}


def test_only_plots_imports_matplotlib() -> None:
    drawing = {module.split(".")[0] for module, path in SOURCES.items() if "matplotlib" in roots(path)}
    assert drawing - {"benchmarks"} == {"plots"}


@pytest.mark.parametrize(
    "module",
    [
        module
        for module in MAY_IMPORT
        if module in ("utils", "devices", "run_log", "pictures") or module.startswith(("model.", "plots."))
    ],
)
def test_configuration_stops_at_the_builders(module: str) -> None:
    assert not roots(SOURCES[module]) & {"hydra", "omegaconf", "conf"}


def test_every_torch_load_is_weights_only() -> None:
    found = [(module, call) for module, path in SOURCES.items() for call in calls(path, "torch.load")]
    assert found, "the checkpoints are read somewhere"
    for module, call in found:
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("weights_only") == "True", f"{module}:{call.lineno}"


# What executes code that it is given, or that it finds in a file.
EXECUTING = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "runpy.run_module"),
    *(
        "yaml.load",
        "yaml.full_load",
        "yaml.unsafe_load",
        "numpy.load",
        "np.load",
        "pandas.read_pickle",
        "pd.read_pickle",
    ),
    *("hydra.utils.instantiate", "hydra.utils.call", "instantiate", "hydra.utils.get_class", "hydra.utils.get_method"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "torch.serialization.load"),
}
# What may do so in one place alone: targets that are checked to be of their slot's kind, a file that was just written.
IN_ONE_PLACE = {"importlib.import_module": "conf.targets", "torch.export.load": "model.export", "torch.load": "utils"}


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
