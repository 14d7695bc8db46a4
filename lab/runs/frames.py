"""Runs as pandas takes them, for those who go on in a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.runs.reading import Run, find_runs, read_curve
from utils import UserError

if TYPE_CHECKING:
    import pandas as pd


def read_table(root: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(the runs below a folder, a row each; their epochs, a row each, with the run's path): every column typed.

    A run's columns are its path, state and monitor, the keys of its configuration, the metrics of its best epoch and of
    its test split. UserError where there are no runs, or there is no pandas.
    """
    try:
        import pandas as pd
    except ImportError:
        raise UserError("read_table needs pandas, which is not installed: pip install pandas") from None
    found = find_runs(Path(root))
    rows = [record(run) for run in found]
    epochs = [{"run": run.path, "epoch": epoch} | values for run in found for epoch, values in read_curve(run).items()]
    runs = pd.DataFrame(rows)
    for key in {key for run in found for key in run.config}:
        runs[key] = typed(runs[key])
    curves = pd.DataFrame(epochs, columns=None if epochs else ["run", "epoch", "step", "seconds"])
    return runs.convert_dtypes(), curves.convert_dtypes()


def record(run: Run) -> dict[str, Any]:
    """What a run has to say, by column."""
    about = {"run": run.path, "state": run.state, "monitor": run.monitor or None, "problem": run.problem or None}
    return {**about, **run.config, **run.best, **run.test}


def typed(column: Any) -> Any:
    """A column of a configuration's values, which are text, as what all of them are: booleans, numbers, or text."""
    import pandas as pd

    values = column.dropna()
    if len(values) and values.isin(["true", "false"]).all():
        return column.map({"true": True, "false": False}).astype("boolean")
    try:
        return pd.to_numeric(column)
    except (ValueError, TypeError):
        return column
