"""A language model of characters: a text file, a decoder, its loss, and what it writes.

python train.py experiment=char_gpt
The decoder is that of GPT-2 (Radford et al. 2019) without biases, as in nanoGPT (Karpathy 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train
from model.examples import Examples
from model.net import DataSpec, TaskError
from model.trees import DataError

# ------------------------------------------------------------------------------------------------------------- the data


def characters(
    split: str, root: str, *, file: str = "tinyshakespeare/input.txt", block_size: int = 64, val_share: float = 0.1
) -> Examples | None:
    """The blocks of a text file: characters by number [n, block_size], and the character after each, of the same shape.

    The last `val_share` of the text validates; there is no test split. The classes are the characters.
    """
    if split == "test":
        return None
    path = Path(root) / file
    if not path.is_file():
        raise DataError(
            f"{path} is missing; get https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
            f"input.txt, or name a text of your own: data.file"
        )
    text = path.read_text(encoding="utf-8")
    known = sorted(set(text))
    number_of = {character: number for number, character in enumerate(known)}
    numbers = torch.tensor([number_of[character] for character in text])
    cut = int(len(text) * (1 - val_share))
    numbers = numbers[:cut] if split == "train" else numbers[cut:]
    num_blocks = (len(numbers) - 1) // block_size
    if num_blocks < 1:
        raise DataError(
            f"the {split} part of {path} has {len(numbers)} characters, too few for a block of {block_size}"
        )
    size = num_blocks * block_size
    return Examples(numbers[:size].view(-1, block_size), numbers[1 : size + 1].view(-1, block_size), known)


# ---------------------------------------------------------------------------------------------------------- the network


class Block(nn.Module):
    """Attention to what came before, then two layers for each position; both are added to what they read."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attention = nn.Linear(width, 3 * width, bias=False)  # queries, keys and values at once
        self.out1 = nn.Linear(width, width, bias=False)
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.out2 = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> the same."""
        x = x + self.dropped(self.out1(self.attend(self.norm1(x))))
        return x + self.dropped(self.out2(F.gelu(self.hidden(self.norm2(x)))))

    def attend(self, x: Tensor) -> Tensor:
        parts = self.attention(x).unflatten(-1, (3, self.num_heads, -1))  # [batch, time, 3, head, size]
        queries, keys, values = parts.transpose(1, 3).unbind(2)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)

    def dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class CharGPT(nn.Module):
    """Characters by number [batch, time] -> logits of the next one at each place, [batch, time, characters]."""

    def __init__(
        self, spec: DataSpec, *, num_layers: int = 4, num_heads: int = 4, width: int = 128, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise TaskError(f"model.width is {width}; model.num_heads, {num_heads}, must divide it")
        (self.block_size,), self.characters = spec.input_shape, spec.classes
        self.token = nn.Embedding(len(spec.classes), width)
        self.position = nn.Embedding(self.block_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, len(spec.classes), bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:  # smaller where they are added up, so that the sum does not grow with the depth
                nn.init.normal_(weight, std=0.02 / (2 * num_layers) ** 0.5 if ".out" in name else 0.02)
        self.head.weight = self.token.weight  # the same for reading and writing (Press and Wolf 2017)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.token(x) + self.position.weight[: x.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def write(self, num_texts: int, length: int, *, temperature: float = 0.8) -> list[str]:
        """Texts of so many characters, each drawn from what the network gives after those before it."""
        start = self.characters.index("\n") if "\n" in self.characters else 0
        written = torch.full((num_texts, 1), start, device=self.token.weight.device)
        for _ in range(length):
            logits = self(written[:, -self.block_size :])[:, -1] / temperature
            written = torch.cat([written, torch.multinomial(logits.float().softmax(dim=1), 1)], dim=1)
        return ["".join(self.characters[number] for number in text[1:]) for text in written.tolist()]


# ------------------------------------------------------------------------------------------- the loss, and what is shown


def next_character(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [batch, time, characters] with what came next [batch, time] -> [batch, time], in nats."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


class Writer(train.Learner):
    """Shows what the network writes."""

    def show(self, epoch: int) -> Mapping[str, Tensor | str]:
        texts = self.average.network.write(3, 200)
        return {"samples": f"after epoch {epoch}\n" + "".join(f"---\n{text}\n" for text in texts)}
