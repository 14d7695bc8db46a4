"""Where a search keeps what it knows: Optuna's study, and the database that it is in.

Apart from search_hyperparams.py because nothing here knows what a trial is made of, nor who trains it.
"""

from __future__ import annotations

import contextlib
import json
import platform
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from omegaconf import DictConfig

from lab.runs.reading import printable
from lab.sweeps.samplers import make_pruner, make_sampler
from lab.sweeps.space import Dimension, described
from utils import UserError

if TYPE_CHECKING:  # Optuna takes a second to import; --help and mistakes do without
    import optuna

SECONDS_LOCKED = 60.0  # how long a search waits where someone else holds the whole of an SQLite database
OTHER_STORAGE = (
    "search.storage takes a URL such as sqlite:////shared/study.db or postgresql+psycopg://user@host/database"
)
Turn = Callable[[], contextlib.AbstractContextManager[None]]  # one process at a time is inside


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
    warnings.filterwarnings("ignore", message="Inconsistent parameter values")  # of a trial begun with another range
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
            if not num_before:
                study.set_user_attr("made", {"host": platform.node(), "directory": str(Path.cwd())})
    # A seed of its own for each process that has a part in a study: the first one's would propose the same again.
    seed = random.Random(f"{options.seed}/{num_before}").getrandbits(31) if num_before else options.seed
    study.sampler = make_sampler(options, space, seed=seed)
    return study, take_turn


def check_same(
    study: optuna.Study, what: str, direction: str, space: Sequence[Dimension], fixed: Sequence[str]
) -> None:
    """UserError unless all processes of a study search the same; the first one writes down what that is."""
    now, before = described(space), json.dumps([str(dimension) for dimension in space])  # as studies had it at first
    if study.user_attrs.get("space", now) not in (now, before) or study.direction.name.lower() != direction:
        raise UserError(f"{what} searches another space; choose another name, or remove it")
    recorded = study.user_attrs.get("fixed", list(fixed))
    theirs, ours = set(map(str, recorded if isinstance(recorded, list) else ["?"])), set(fixed)
    if theirs != ours:
        there, here = (" ".join(sorted(one)) or "default values" for one in (theirs - ours, ours - theirs))
        raise UserError(f"{what} is of runs with {printable(there)}, not with {here}; choose another name")
    study.set_user_attr("space", now)
    study.set_user_attr("fixed", list(fixed))
