"""A world: what its drawings show, the words that name it, and how it is drawn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

WORD_DIM = 64


@dataclass(frozen=True, slots=True)
class World:
    """`draw(count, generator)` gives drawings in [-1, 1] and picks [B, slots]: a word a slot."""

    template: str
    slots: Mapping[str, tuple[str, ...]]
    draw: Callable[[int, Generator], tuple[Tensor, Tensor]]

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that names something, slot after slot."""
        return tuple(word for choices in self.slots.values() for word in choices)

    def prompt(self, picks: Tensor) -> str:
        """The sentence for one row of picks."""
        chosen = zip(self.slots.items(), picks.tolist(), strict=True)
        return self.template.format(**{slot: words[pick] for (slot, words), pick in chosen})

    def word_indices(self, picks: Tensor) -> Tensor:
        """[B, slots] picks as indices into `words`."""
        sizes = [0, *(len(words) for words in self.slots.values())]
        offsets = torch.tensor(sizes[:-1], device=picks.device).cumsum(0)
        return picks + offsets

    def every_kind(self, count: int) -> Tensor:
        """[count, slots]: the same prompts at each call, spread over all words."""
        generator = torch.Generator().manual_seed(20)
        columns = [
            torch.cat([torch.randperm(len(words), generator=generator) for _ in range(count)])
            for words in self.slots.values()
        ]
        return torch.stack([column[:count] for column in columns], 1)


def word_table(num_words: int) -> Tensor:
    """[num_words, WORD_DIM] fixed random vectors: the whole text encoder."""
    return torch.randn(num_words, WORD_DIM, generator=Generator().manual_seed(1234))
