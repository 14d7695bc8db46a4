"""Tables are standardised by their training split, targets included, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transform_cases import epoch_of, streamed, table

from model.augment import Normalize
from model.examples import Examples
from model.splits import describe


@pytest.mark.parametrize("stream", [False, True])
def test_a_table_is_standardised_by_its_training_split(stream: bool) -> None:
    examples = table()
    spec = describe(examples, None, None, standardize=True)
    inputs, targets = examples.inputs.double().numpy(), examples.targets.double().numpy()
    np.testing.assert_allclose(spec.mean, inputs.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(spec.std, [*inputs.std(axis=0)[:2], 1.0], rtol=1e-9)
    np.testing.assert_allclose(spec.target_mean, targets.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(spec.target_std, targets.std(axis=0), rtol=1e-9)
    source = streamed(examples) if stream else examples
    batch = epoch_of(source, 1, spec, batch_size=200, shuffle=False)[0]
    np.testing.assert_allclose(batch.targets, (targets - targets.mean(0)) / targets.std(0), atol=1e-4)
    np.testing.assert_allclose(batch.inputs.mean(0), 0, atol=1e-2)
    np.testing.assert_allclose(batch.inputs.std(0), [1, 1, 0], atol=1e-2)
    restored = Normalize(spec.target_mean, spec.target_std).inverse(batch.targets)
    torch.testing.assert_close(restored, examples.targets)


def test_without_it_tables_are_as_they_are() -> None:
    spec = describe(table(), None, None)
    assert spec.mean == spec.std == spec.target_mean == spec.target_std == ()


def test_class_numbers_and_several_labels_are_not_standardised() -> None:
    for targets in (torch.arange(200) % 2, torch.zeros(200, 2)):
        spec = describe(Examples(table().inputs, targets, ["a", "b"]), None, None, standardize=True)
        assert spec.target_mean == spec.target_std == () and len(spec.mean) == 3
