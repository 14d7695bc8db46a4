"""Texts of different lengths in two classes: a corpus, batches padded by a collate function, two networks in one class.

python train.py experiment=text_classification
The corpus is generated. A text is a review of one to five clauses, such as "the plot was not dull but the music was cold";
its class is what most clauses say. A third of them say it by "not" before the opposite word, and "not" may also stand where
it turns nothing round ("not only the plot was dull"), so that the order of the words counts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

import train
from model.net import DataSpec, TaskError

GOOD = ["good", "great", "lovely", "clever", "moving", "fresh"]
BAD = ["bad", "poor", "dull", "clumsy", "cold", "stale"]
NOUNS = ["plot", "music", "acting", "story", "ending", "script", "camera", "pace", "cast", "dialogue"]
ADVERBS = ["really", "very", "quite", "so", "rather"]
JOINS = ["and", "but", "while", "though"]
WORDS = ["<pad>", "the", "was", "not", "only", *GOOD, *BAD, *NOUNS, *ADVERBS, *JOINS]
NUMBER_OF = {word: number for number, word in enumerate(WORDS)}
SEEDS = {"train": 0, "val": 1, "test": 2}

# ------------------------------------------------------------------------------------------------------------- the data


def clause(chance: random.Random, is_good: bool) -> list[str]:
    """The words of a clause that says so."""
    is_turned = chance.random() < 1 / 3
    words = ["not", "only"] * (chance.random() < 0.15) + ["the", chance.choice(NOUNS), "was"] + ["not"] * is_turned
    words += [chance.choice(ADVERBS)] * (chance.random() < 0.5)
    return [*words, chance.choice(GOOD if is_good != is_turned else BAD)]


def review(chance: random.Random, is_good: bool) -> list[str]:
    """The words of a text most of whose clauses say so."""
    num_clauses = chance.choice([1, 3, 5])
    num_others = chance.randint(0, num_clauses // 2)
    verdicts = [is_good] * (num_clauses - num_others) + [not is_good] * num_others
    chance.shuffle(verdicts)
    words = clause(chance, verdicts[0])
    for verdict in verdicts[1:]:
        words += [chance.choice(JOINS), *clause(chance, verdict)]
    return words


class Reviews(Dataset[tuple[Tensor, int]]):
    """(the numbers of a text's words [length], its class number)."""

    splits = ("train", "val", "test")
    classes = ("bad", "good")

    def __init__(
        self, split: str, root: str, *, num_train: int = 4000, num_test: int = 1000, data_seed: int = 0
    ) -> None:
        chance = random.Random(3 * data_seed + SEEDS[split])
        self.targets = [number % 2 for number in range(num_train if split == "train" else num_test)]
        texts = [review(chance, is_good=bool(target)) for target in self.targets]
        self.texts = [torch.tensor([NUMBER_OF[word] for word in text]) for text in texts]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.texts[index], self.targets[index]

    @staticmethod
    def collate_fn(items: list[tuple[Tensor, int]]) -> tuple[dict[str, Tensor], Tensor]:
        """({"words": [n, longest] filled up with zeros, "lengths": [n]}, class numbers [n])."""
        texts, targets = zip(*items, strict=True)
        words = pad_sequence(list(texts), batch_first=True)
        return {"words": words, "lengths": torch.tensor([len(text) for text in texts])}, torch.tensor(targets)


# ---------------------------------------------------------------------------------------------------------- the network


class TextClassifier(nn.Module):
    """Word vectors, `num_layers` layers of a transformer, the mean over the words -> logits [n, classes].

    num_layers 0: a bag of words, in which neither order nor neighbours count.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        num_words: int = len(WORDS),
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.1,
        longest: int = 128,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise TaskError(f"model.width is {width}; model.num_heads, {num_heads}, must divide it")
        self.words = nn.Embedding(num_words, width, padding_idx=0)
        self.places = nn.Embedding(longest, width) if num_layers else None
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, num_heads, 4 * width, dropout, batch_first=True, norm_first=True)
            for _ in range(num_layers)
        )
        self.head = nn.Linear(width, spec.output_size)

    def features(self, texts: Mapping[str, Tensor]) -> Tensor:
        """The mean over the words of each text, [n, width]."""
        x, places = self.words(texts["words"]), torch.arange(texts["words"].shape[1], device=texts["words"].device)
        is_padding = places >= texts["lengths"][:, None]
        if self.places is not None:
            x = x + self.places(places)
        for block in self.blocks:
            x = block(x, src_key_padding_mask=is_padding)
        return x.masked_fill(is_padding[:, :, None], 0).sum(dim=1) / texts["lengths"][:, None]

    def forward(self, texts: Mapping[str, Tensor]) -> Tensor:
        return self.head(self.features(texts))


# --------------------------------------------------------------------------------------------------------- what is shown


class Reader(train.Learner):
    """Shows a dozen texts of the validation, with what the network takes them for."""

    def show(self, epoch: int) -> Mapping[str, Any]:
        texts, targets, _ = self.first_batch()
        chances = self.average.network(texts).softmax(dim=1)[:, 1]
        lines = []
        for words, length, target, chance in zip(
            texts["words"][:12], texts["lengths"], targets.tolist(), chances.tolist(), strict=False
        ):
            text = " ".join(WORDS[number] for number in words[:length].tolist())
            mark = " " if (chance > 0.5) == target else "x"
            lines.append(f"{mark} {Reviews.classes[target]:<4}  P(good) {chance:.3f}  {text}")
        return {"texts": "\n".join(lines) + "\n"}
