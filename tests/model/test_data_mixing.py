"""Mixup and cutmix: inputs and targets are mixed alike, in shares as they should be."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transform_cases import epoch_of

from model.examples import Examples
from model.mixing import Mixing
from model.net import DataSpec
from model.splits import describe


def with_numbers(num: int = 50) -> Examples:
    """Images all of whose pixels are the image's number, so that what was mixed can be read off."""
    pixels = torch.arange(num, dtype=torch.uint8).view(-1, 1, 1, 1).expand(num, 1, 10, 12).contiguous()
    return Examples(pixels, torch.arange(num), [str(number) for number in range(num)])


def mixed(**options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(the pixels [n, 10, 12], the probabilities [n, 50], the examples' own numbers [n])."""
    spec = DataSpec((1, 10, 12), 50, "classification", (0.0,), (1.0,), tuple(map(str, range(50))))
    (batch,) = epoch_of(with_numbers(), 1, spec, batch_size=50, shuffle=False, **options)
    return batch.inputs[:, 0] * 255, batch.targets, torch.arange(50)


def test_mixup_mixes_targets_as_it_mixes_pixels() -> None:
    pixels, probabilities, own = mixed(mixup=0.5)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(50))
    assert (pixels.flatten(1).std(dim=1) < 1e-3).all()
    torch.testing.assert_close(pixels[:, 0, 0], probabilities @ torch.arange(50.0))
    partner = (probabilities - F.one_hot(own, 50)).argmax(dim=1)
    assert len(set(partner.tolist())) > 40
    loss = F.cross_entropy(torch.randn(50, 50), probabilities, reduction="none")
    assert loss.shape == (50,)


def test_cutmix_gives_a_rectangle_and_its_share_of_the_target() -> None:
    pixels, probabilities, own = mixed(cutmix=1.0)
    areas = []
    for image, row, number in zip(pixels.round(), probabilities, own, strict=True):
        inside = image != number
        areas.append(float(inside.float().mean()))
        torch.testing.assert_close(row[number], 1 - inside.float().mean())
        if inside.any():
            rows, columns = inside.any(dim=1), inside.any(dim=0)
            assert torch.equal(inside, rows[:, None] & columns[None, :]) and len(image[inside].unique()) == 1
            for line in (rows, columns):  # in one piece
                assert int((line[1:] != line[:-1]).sum()) <= 2
    assert min(areas) < 0.1 and max(areas) > 0.5


def test_the_shares_are_drawn_from_the_beta_distribution() -> None:
    mixing = Mixing(mixup=0.3, cutmix=0.0, num_classes=2, num_examples=20_000, seed=0)
    shares, is_cut = mixing.shares.double(), mixing.is_cut
    assert abs(float(shares.mean()) - 0.5) < 0.01 and abs(float(shares.var()) - 1 / (4 * (2 * 0.3 + 1))) < 0.005
    assert not is_cut.any()
    both = Mixing(mixup=0.3, cutmix=1.0, num_classes=2, num_examples=20_000, seed=0)
    assert abs(float(both.is_cut.float().mean()) - 0.5) < 0.02
    assert abs(float(both.shares[both.is_cut].var()) - 1 / 12) < 0.005


def test_values_are_mixed_too() -> None:
    inputs = torch.arange(40.0).view(-1, 1)
    examples = Examples(inputs, 3 * inputs)
    (batch,) = epoch_of(examples, 1, describe(examples, None, None), batch_size=40, mixup=1.0)
    torch.testing.assert_close(batch.targets, 3 * batch.inputs)
    assert not torch.equal(batch.inputs.sort(dim=0).values, inputs)
