"""What a search chooses from, and where it keeps what it knows: a space of hyperparameters, and Optuna's study of it.

Apart from search_hyperparams.py because nothing here knows what a trial is made of, nor who trains it.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from omegaconf import DictConfig

from utils import UserError

if TYPE_CHECKING:  # Optuna takes a second to import; --help and mistakes do without
    import optuna

KEYS_OF_A_RANGE = {"low", "high", "log", "points", "when"}
SECONDS_LOCKED = 60.0  # how long a search waits where someone else holds the whole of an SQLite database
OTHER_STORAGE = (
    "search.storage takes a URL such as sqlite:////shared/study.db or postgresql+psycopg://user@host/database"
)
Turn = Callable[[], contextlib.AbstractContextManager[None]]  # one process at a time is inside
NEAR_EDGE = 0.02  # of a range's width: a best value closer to an end than this asks for a wider range


# ------------------------------------------------------------------------------------------------------------- the space


@dataclass(frozen=True)
class Dimension:
    """One hyperparameter: a range of numbers, or choices (each as one would type it); `when`: only with these values."""

    key: str
    low: float = 0
    high: float = 0
    log: bool = False
    points: int | None = None
    choices: tuple[Any, ...] = ()
    when: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def grid(self) -> list[Any]:
        """All values that a grid search tries."""
        if self.choices:
            return list(self.choices)
        if self.points is None and self.is_integer and not self.log:
            return list(range(int(self.low), int(self.high) + 1))
        if self.points is None:
            raise UserError(f"search.space.{self.key} has no `points`: how many values a grid takes from its range")
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        steps = [ends[0] + (ends[1] - ends[0]) * i / max(1, self.points - 1) for i in range(self.points)]
        values = [float(f"{math.exp(step) if self.log else step:.6g}") for step in steps]
        return list(dict.fromkeys(round(value) for value in values)) if self.is_integer else values

    def nears_edge(self, value: Any) -> str | None:
        """Which end of the range a value lies on, "low" or "high", if on any."""
        if self.choices:
            return None
        scale = math.log if self.log else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return "low" if share <= NEAR_EDGE else "high" if share >= 1 - NEAR_EDGE else None


def read_space(space: Mapping[str, Any]) -> list[Dimension]:
    """The dimensions of a space, in the order in which they are proposed; UserError for one that cannot be read."""
    dimensions: list[Dimension] = []
    for key, entry in space.items():
        where = f"search.space.{key}"
        if not isinstance(entry, Mapping) or not ({"choices"} <= entry.keys() or {"low", "high"} <= entry.keys()):
            raise UserError(f"{where} is {entry}; it takes {{low: ..., high: ...}} or {{choices: [...]}}")
        allowed = {"choices", "when"} if "choices" in entry else KEYS_OF_A_RANGE
        if unknown := sorted(entry.keys() - allowed):
            raise UserError(f"{where} has the key {unknown[0]}; the keys there are {', '.join(sorted(allowed))}")
        dimension = Dimension(key, **{**entry, "choices": tuple(entry.get("choices", ()))})
        check_dimension(dimension, where, {other.key for other in dimensions})
        dimensions.append(dimension)
    if not dimensions:
        raise UserError("search.space is empty; it takes keys of the configuration, each with a range or choices")
    return dimensions


def check_dimension(dimension: Dimension, where: str, earlier: set[str]) -> None:
    """UserError where a range or a condition makes no sense; `earlier`: the keys proposed before this one."""
    numbers = (dimension.low, dimension.high)
    if any(not isinstance(number, (int, float)) or isinstance(number, bool) for number in numbers):
        raise UserError(f"{where} has low {dimension.low} and high {dimension.high}; they are numbers")
    if not dimension.choices and dimension.low == dimension.high == 0:
        raise UserError(f"{where} has no choices; it takes a list of values")
    if not dimension.choices and not -math.inf < dimension.low < dimension.high < math.inf:
        raise UserError(
            f"{where} goes from {dimension.low} to {dimension.high}; low must be below high, and both finite"
        )
    if dimension.log and dimension.low <= 0:
        raise UserError(f"{where} is logarithmic from {dimension.low}; low must be above 0")
    if any(isinstance(choice, (list, dict)) for choice in dimension.choices):
        raise UserError(f"{where} has a list among its choices; write it as one would type it: '[128,64]'")
    if late := sorted(set(dimension.when) - earlier):
        raise UserError(f"{where} depends on {late[0]}, which does not come before it in the space")


def suggest(trial: optuna.trial.Trial, space: Sequence[Dimension]) -> dict[str, Any]:
    """The values that a trial proposes, by key; those whose condition does not hold are left out."""
    values: dict[str, Any] = {}
    for dimension in space:
        if any(values.get(key) != value for key, value in dimension.when.items()):
            continue
        if dimension.choices:
            values[dimension.key] = trial.suggest_categorical(dimension.key, dimension.choices)
        elif dimension.is_integer:
            values[dimension.key] = trial.suggest_int(
                dimension.key, int(dimension.low), int(dimension.high), log=dimension.log
            )
        else:
            values[dimension.key] = trial.suggest_float(dimension.key, dimension.low, dimension.high, log=dimension.log)
    return values


def first_values(space: Sequence[Dimension]) -> dict[str, Any]:
    """Values of the space with which to try whether its keys exist."""
    values: dict[str, Any] = {}
    for dimension in space:
        if all(values.get(key) == value for key, value in dimension.when.items()):
            values[dimension.key] = dimension.choices[0] if dimension.choices else dimension.low
    return values


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Values as one would type them; choices of groups first, since keys below them may only be there with them."""
    typed = [f"{key}={as_typed(value)}" for key, value in values.items()]
    return sorted(typed, key=lambda override: "." in override.partition("=")[0])


def as_typed(value: Any) -> str:
    """A value as one would type it on the command line."""
    return json.dumps(value) if isinstance(value, (bool, type(None))) else str(value)


# ---------------------------------------------------------------------------------------------------------- the database


@contextlib.contextmanager
def explained(url: str, advice: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turns whatever a database refuses into one line, without the password that its URL may hold."""
    import optuna
    import sqlalchemy.exc

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        cause = error.__cause__ or error  # Optuna's own words say only that something went wrong
        raise kind(unusable(url, getattr(cause, "orig", None) or cause, advice)) from error


def unusable(url: str, error: BaseException, advice: str) -> str:
    """What is wrong with a database, in one line."""
    reason = " ".join(str(error).split())[:200]
    return f"the study in {without_password(url)} cannot be used ({reason}); {advice}"


def without_password(url: str) -> str:
    """A database's URL as it may be shown."""
    import sqlalchemy

    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


def file_of(url: str) -> Path | None:
    """The file that holds an SQLite database; None for one in memory, or elsewhere."""
    import sqlalchemy

    parsed = sqlalchemy.make_url(url)
    name = (parsed.database or "").removeprefix("file:").partition("?")[0]
    return Path(name) if parsed.get_backend_name() == "sqlite" and name not in ("", ":memory:") else None


def lock_beside(file: Path | None) -> contextlib.AbstractContextManager[Any]:
    """Held by one process at a time. SQLite's own locks would keep out its holder's other connections, too."""
    return FileLock(f"{file}.lock") if file else contextlib.nullcontext()


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """The database of that URL, with Optuna's tables in it; UserError for an SQLite file of something else."""
    import optuna
    import sqlalchemy
    import sqlalchemy.exc

    file = file_of(url)
    if file is None:
        return with_tables(url)
    if not file.parent.is_dir():
        raise UserError(f"search.storage is {url}, but there is no folder {file.parent}")
    patience = {"connect_args": {"timeout": SECONDS_LOCKED}}
    with lock_beside(file):
        engine = sqlalchemy.create_engine(url, **patience)
        tables = sqlalchemy.inspect(engine).get_table_names()
        engine.dispose()
        if tables and "version_info" not in tables:
            raise UserError(f"{file} holds something else than studies (the table {tables[0]}); choose another file")
        return optuna.storages.RDBStorage(url, engine_kwargs=patience)


def with_tables(url: str) -> optuna.storages.RDBStorage:
    """The database behind a server; two processes that make its tables at once get in each other's way, hence again."""
    import optuna
    import sqlalchemy.exc

    for _ in range(3):
        with contextlib.suppress(sqlalchemy.exc.ProgrammingError, sqlalchemy.exc.IntegrityError):
            return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        time.sleep(random.uniform(0.1, 1.0))
    return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


@contextlib.contextmanager
def turn(storage: optuna.storages.RDBStorage, study_id: int) -> Iterator[None]:
    """Waits until no other process, on whatever machine, is in here for this study: what is counted here stays true."""
    import sqlalchemy

    if storage.engine.dialect.name == "sqlite":
        with lock_beside(file_of(storage.url)):
            yield
        return
    # A row that is never written again: locking it keeps nobody from proposing, reporting or telling.
    row = sqlalchemy.text("SELECT study_id FROM study_directions WHERE study_id = :study_id FOR UPDATE")
    with storage.engine.begin() as connection:
        connection.execute(row, {"study_id": study_id})
        yield


# ------------------------------------------------------------------------------------------------------------- the study


def open_study(
    options: DictConfig, name: str, url: str, direction: str, space: Sequence[Dimension], fixed: Sequence[str]
) -> tuple[optuna.Study, Turn]:
    """(the study of that name, new or as it was left; what gives its processes their turns).

    UserError where it holds another space, direction or runs that differ in what was `fixed` for all of them.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    with explained(url, OTHER_STORAGE):
        try:
            storage = open_storage(url)
            study = optuna.create_study(
                study_name=name,
                storage=storage,
                pruner=make_pruner(options),
                direction=direction,  # type: ignore[arg-type]
                load_if_exists=True,
            )
        except ImportError as error:
            needed = "PostgreSQL needs `pip install 'psycopg[binary]'`" if url.startswith("postgres") else OTHER_STORAGE
            raise UserError(unusable(url, error.__cause__ or error, needed)) from error
        except (RuntimeError, ValueError) as error:  # tables of another version of Optuna; a URL that no driver takes
            raise UserError(unusable(url, error, OTHER_STORAGE)) from error
        take_turn = partial(turn, storage, storage.get_study_id_from_name(name))
        with take_turn():
            check_same(study, f"the study {name} in {without_password(url)}", direction, space, fixed)
            num_before = study.user_attrs.get("num_processes", 0)
            study.set_user_attr("num_processes", num_before + 1)
    # A seed of its own for each process that has a part in a study: the first one's would propose the same again.
    seed = random.Random(f"{options.seed}/{num_before}").getrandbits(31) if num_before else options.seed
    study.sampler = make_sampler(options, space, seed=seed)
    return study, take_turn


def check_same(
    study: optuna.Study, what: str, direction: str, space: Sequence[Dimension], fixed: Sequence[str]
) -> None:
    """UserError unless all processes of a study search the same; the first one writes down what that is."""
    described = json.dumps([str(dimension) for dimension in space])
    if study.user_attrs.get("space", described) != described or study.direction.name.lower() != direction:
        raise UserError(f"{what} searches another space; choose another name, or remove it")
    theirs, ours = set(study.user_attrs.get("fixed", fixed)), set(fixed)
    if theirs != ours:
        there, here = (" ".join(sorted(one)) or "default values" for one in (theirs - ours, ours - theirs))
        raise UserError(f"{what} is of runs with {there}, not with {here}; choose another name")
    study.set_user_attr("space", described)
    study.set_user_attr("fixed", list(fixed))


def make_sampler(options: DictConfig, space: Sequence[Dimension], *, seed: int) -> optuna.samplers.BaseSampler:
    """What proposes the next trial."""
    import optuna.samplers as samplers

    if options.sampler == "grid":
        if any(dimension.when for dimension in space):
            raise UserError("search.sampler=grid tries every combination, and so takes no conditional keys (`when`)")
        # One order for all processes, which know a point of the grid by its place in it.
        return samplers.GridSampler({dimension.key: dimension.grid() for dimension in space}, seed=0)
    if options.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    if options.sampler == "gp":
        return samplers.GPSampler(seed=seed)
    if options.sampler == "cmaes":
        return samplers.CmaEsSampler(seed=seed)
    # Trials that run at the same time must not be proposed alike, hence constant_liar.
    return samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def make_pruner(options: DictConfig) -> optuna.pruners.BasePruner:
    """What stops a trial that does worse than others did at the same epoch."""
    import optuna.pruners as pruners

    if options.pruner == "median":
        return pruners.MedianPruner()
    return pruners.HyperbandPruner() if options.pruner == "hyperband" else pruners.NopPruner()
