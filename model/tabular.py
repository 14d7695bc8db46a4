"""Tables: a CSV file of numbers and texts as examples, and what scikit-learn's own models make of the same rows.

python -m model.tabular [file]    prints what they reach on the rows that `python train.py experiment=tabular` never sees
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import train
from model.examples import Examples
from model.trees import DataError

BUNDLED = ("diabetes", "breast_cancer", "wine", "iris")  # that come with scikit-learn


def table(split: str, root: str, *, file: str = "diabetes", target: str | None = None) -> Examples | None:
    """The rows of a CSV file with a header, below `root`, or of one of BUNDLED; a fifth of them, fixed, is for the test.

    A column of numbers is an input, where one is missing the mean of the training rows; a column of texts is an input for
    each text that training has, 1 or 0. target: the column that is to be told, or the last one: texts are classes, numbers
    are values to be met. Inputs float32 [n, inputs], targets int64 [n] or float32 [n, 1].
    """
    if split == "val":
        return None  # it is cut off the training rows
    columns = read_columns(bundled(file) if file in BUNDLED else read_file(Path(root, file)), file)
    target = target or list(columns)[-1]
    if target not in columns:
        raise DataError(f"data.target is {target}; {file} has the columns {', '.join(columns)}")
    answers = columns.pop(target)
    if "" in answers:
        raise DataError(f"{file} has rows without {target}, which is to be told")
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(0))
    test, training = order[: len(order) // 5], order[len(order) // 5 :]
    inputs = torch.cat([to_inputs(values, training) for values in columns.values()], dim=1)
    rows = test if split == "test" else training
    if are_numbers(answers):
        return Examples(inputs[rows], torch.tensor([[float(value)] for value in answers])[rows])
    classes = sorted(set(answers))
    return Examples(inputs[rows], torch.tensor([classes.index(value) for value in answers])[rows], classes)


def read_file(path: Path) -> str:
    """The text of a CSV file."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; data.file takes a CSV file below data.root, or {', '.join(BUNDLED)}")
    return path.read_text(encoding="utf-8-sig")


def bundled(name: str) -> str:
    """One of scikit-learn's tables as the text of a CSV file: classes by their names, the sex of a patient as a text."""
    from sklearn import datasets

    keys = {"scaled": False} if name == "diabetes" else {}
    held = getattr(datasets, f"load_{name}")(**keys)
    rows = [list(row) for row in held.data.tolist()]
    answers = [held.target_names[answer] for answer in held.target] if "target_names" in held else held.target
    if name == "diabetes":  # the source does not say which is which
        for row in rows:
            row[1] = f"sex {row[1]:.0f}"
    text = io.StringIO()
    csv.writer(text).writerows(
        [[*held.feature_names, "target"], *([*r, a] for r, a in zip(rows, answers, strict=True))]
    )
    return text.getvalue()


def read_columns(text: str, file: str) -> dict[str, list[str]]:
    """The columns of a CSV text by the names in its header."""
    header, *rows = [row for row in csv.reader(io.StringIO(text)) if row] or [[]]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise DataError(f"row {number} of {file} has {len(row)} values, its header {len(header)}")
    if len(header) < 2 or len(set(header)) < len(header) or len(rows) < 10:
        raise DataError(
            f"{file} has {len(rows)} rows below the columns {header}; it takes ten rows, two columns or more"
        )
    return {name: [row[number].strip() for row in rows] for number, name in enumerate(header)}


def are_numbers(values: Sequence[str]) -> bool:
    """Whether all values that are there are numbers."""
    try:
        return all(math.isfinite(float(value)) for value in values if value)
    except ValueError:
        return False


def to_inputs(values: Sequence[str], training: Tensor) -> Tensor:
    """A column as inputs, float32 [n, 1] of numbers, or [n, texts]; what the rows `training` hold decides how."""
    if are_numbers(values):
        column = torch.tensor([float(value or "nan") for value in values], dtype=torch.float64)
        return column.nan_to_num(float(column[training].nanmean().nan_to_num())).float()[:, None]
    texts = sorted({values[row] for row in training.tolist()})
    return torch.tensor([[float(value == text) for text in texts] for value in values])


# ----------------------------------------------------------------------------------------------------------- the picture


class Learner(train.Learner):
    """Shows what the network says of the validation rows against what is true, where that is a value."""

    def show(self, epoch: int) -> Mapping[str, Tensor | str]:
        inputs, targets, _ = self.first_batch()
        if targets.dim() == 1:  # class numbers
            return {}
        return {"predicted_against_true": scatter(targets, self.average.network(inputs))}


def scatter(x: Tensor, y: Tensor, *, size: int = 240) -> Tensor:
    """Points x, y [n, 1] as an image [3, size, size], to one scale, with the line where both are equal."""
    low, high = float(torch.minimum(x, y).min()), float(torch.maximum(x, y).max())
    places = [((values - low) / max(high - low, 1e-9) * (size - 5)).long().flatten().cpu() for values in (x, y)]
    image = torch.ones(3, size, size)
    diagonal = torch.arange(size)
    image[:, size - 1 - diagonal, diagonal] = 0.7
    for across in range(4):
        for up in range(4):
            image[:2, size - 1 - places[1] - up, places[0] + across] = 0.2
    return image


# ------------------------------------------------------------------------------------------------------ beside others


def baselines(file: str, *, root: str = "data", num_seeds: int = 5) -> dict[str, list[float]]:
    """What scikit-learn's models reach on the test rows: {model: a value for each seed}, rmse of values, else accuracy.

    They learn from all other rows, standardised as here: a linear model, and a network of the size that the preset has.
    """
    from sklearn import linear_model, neural_network, pipeline, preprocessing

    (x, y), (test_x, test_y) = [arrays(table(split, root, file=file)) for split in ("train", "test")]
    of_values = y.dtype.kind == "f"
    center, scale = (y.mean(), y.std()) if of_values else (0, 1)
    found: dict[str, list[float]] = {"linear": [], "mlp": []}
    for seed in range(num_seeds):
        size = {"hidden_layer_sizes": (64, 64), "max_iter": 1000, "random_state": seed}
        models = {
            "linear": linear_model.RidgeCV() if of_values else linear_model.LogisticRegression(max_iter=1000),
            "mlp": (neural_network.MLPRegressor if of_values else neural_network.MLPClassifier)(**size),
        }
        for name, one in models.items():
            model = pipeline.make_pipeline(preprocessing.StandardScaler(), one)
            model.fit(x, (y - center) / scale if of_values else y)
            told = model.predict(test_x)
            error = scale * told + center - test_y
            found[name].append(float(np.sqrt(np.mean(error**2)) if of_values else np.mean(told == test_y)))
    return found


def arrays(examples: Examples | None) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [n, inputs] and targets [n] for scikit-learn."""
    assert examples is not None
    return examples.inputs.numpy(), examples.targets.flatten().numpy()


if __name__ == "__main__":
    import sys

    for name, values in baselines(*sys.argv[1:2] or ["diabetes"]).items():
        print(f"{name:8} {np.mean(values):.4f}  (seeds: {', '.join(f'{value:.4f}' for value in values)})")
