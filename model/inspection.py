"""What a hostile reader would ask of the data first: duplicates across splits, the balance of classes, empty examples."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.examples import Examples, Folder, are_class_numbers
from model.splits import Split, shortened
from model.trees import leaves

WARNED_ABOVE = 0.001  # the share of a split that may lie in another one, too


@dataclass(frozen=True)
class Finding:
    """What was found in the splits of a dataset.

    sizes: of each split; duplicates: "val in train" -> how many examples of the one have the very inputs of one of the
    other; contradictions: how many of those have other targets there; balance: of each split, how many examples each class
    has; constant: of each split, how many examples are the same number all over.
    """

    sizes: dict[str, int]
    duplicates: dict[str, int]
    contradictions: dict[str, int]
    balance: dict[str, dict[str, int]]
    constant: dict[str, int]

    def lines(self) -> list[str]:
        """What of it is worth a line in a log."""
        found = []
        for pair, num in self.duplicates.items():
            share = num / self.sizes[pair.split(" in ")[0]]
            if share > WARNED_ABOVE:
                others = f", {self.contradictions[pair]} with another target" * bool(self.contradictions[pair])
                found.append(f"duplicates: {num} examples ({share:.1%}) of {pair}{others}; the figures of it flatter")
        for split, counts in self.balance.items():
            missing = [name for name, num in counts.items() if num == 0]
            if missing:
                found.append(f"balance: {split} has no example of {shortened(missing)}")
            elif max(counts.values()) >= 10 * min(counts.values()):
                (rarest, few), *_, (commonest, many) = sorted(counts.items(), key=lambda item: item[1])
                found.append(f"balance: {split} has {many:,} examples of {commonest}, {few:,} of {rarest}")
        found += [
            f"constant: {num} examples of {split} are one number all over"
            for split, num in self.constant.items()
            if num
        ]
        return found


def inspect(splits: Mapping[str, Split]) -> Finding:
    """Looks through the splits given, by name; the items of someone's own Dataset are not read for it."""
    contents = {name: contents_of(examples) for name, examples in splits.items()}
    known = {name: found for name, found in contents.items() if found}
    pairs = {f"{later} in {first}": (first, later) for first, later in itertools.combinations(known, 2)}
    duplicates, contradictions = {}, {}
    for name, (first, later) in pairs.items():
        targets = dict(zip(known[first], targets_of(splits[first]), strict=True))
        matches = [
            targets[content] == target
            for content, target in zip(known[later], targets_of(splits[later]), strict=True)
            if content in targets
        ]
        duplicates[name], contradictions[name] = len(matches), matches.count(False)
    return Finding(
        sizes={name: len(examples) for name, examples in splits.items()},
        duplicates=duplicates,
        contradictions=contradictions,
        balance={name: counts for name, examples in splits.items() if (counts := balance_of(examples))},
        constant={name: num_constant(examples) for name, examples in splits.items() if isinstance(examples, Examples)},
    )


def contents_of(examples: Split) -> list[bytes]:
    """What tells the inputs of one example from another's, for each; empty where that is not known without reading."""
    if isinstance(examples, Folder):
        return contents_of_files(examples.files)
    if not isinstance(examples, Examples):
        return []
    rows = [
        tensor.reshape(len(tensor), -1).contiguous().view(torch.uint8).numpy() for tensor in leaves(examples.inputs)
    ]
    return [
        b"".join(hashlib.blake2b(part, digest_size=16).digest() for part in parts) for parts in zip(*rows, strict=True)
    ]


def contents_of_files(files: Sequence[Path]) -> list[bytes]:
    """SHA-256 of each file."""
    return [hashlib.sha256(path.read_bytes()).digest() for path in files]


def targets_of(examples: Split) -> list[Any]:
    """The class number of each example, None where it has no such."""
    targets = examples.targets
    return targets.tolist() if isinstance(targets, Tensor) and are_class_numbers(targets) else [None] * len(examples)


def balance_of(examples: Split) -> dict[str, int]:
    """How many examples each class has, by name; empty where they are not in classes."""
    counts = Counter(target for target in targets_of(examples) if target is not None)
    if not counts:
        return {}
    return {name: counts[number] for number, name in enumerate(examples.classes)}


def num_constant(examples: Examples) -> int:
    """How many examples have inputs that are one number all over, of more than one."""
    if not isinstance(examples.inputs, Tensor) or examples.inputs[:1].numel() < 2:
        return 0
    rows = examples.inputs.reshape(len(examples), -1)
    return int((rows == rows[:, :1]).all(dim=1).sum())
