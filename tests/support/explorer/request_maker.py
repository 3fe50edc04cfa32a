"""Makes the requests of a schedule: who shares which conditioning with whom."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from support.explorer.asks import AS_IT_IS, KINDS, NUM_WORDS, REBUILT, Ask
from support.explorer.dit import DIM
from support.explorer.families import Settings
from support.explorer.requests import Conditioning, Request, condition

SHARED_IDS, SHARED_NEGATIVE = 0, 100  # Their contents; all others are numbered by `contents`.


class RequestMaker:
    """`rebuilds` says what those who rebuild their conditioning at every call rebuild of it;
    `pinned` are settings that named requests bring if they draw no others."""

    def __init__(self, rebuilds: str, contents: Iterator[int], pinned: Settings) -> None:
        self._rebuilds, self._contents, self._pinned = rebuilds, contents, pinned
        self._shared_ids = {n: condition(SHARED_IDS, (n, DIM)) for n in (24, 32)}
        self._shared_negatives = {n: condition(SHARED_NEGATIVE, (1, n, DIM)) for n in (4, 6)}
        self._shared_guidance = {batch: torch.full((batch,), 3.5) for batch in (1, 2)}
        self._names = (chr(ord("A") + i % 26) for i in itertools.count())

    def make(self, ask: Ask, requests: Sequence[Request]) -> Request:
        """A request beside those that are there."""
        if ask.is_named:
            ask = replace(ask, settings={**self._pinned, **ask.settings})
        name = next(self._names)
        batch = KINDS[ask.kind].batch
        guidance = self._shared_guidance[batch]
        if ask.has_own_guidance:
            guidance = torch.full((batch,), 2.0 + 0.5 * len(requests))
        return Request(
            name=name,
            ask=ask,
            texts=self._texts(ask, requests),
            ids=self._ids(ask),
            guidance=guidance,
            key=f"request {name}" if ask.is_named else None,
        )

    def _texts(self, ask: Ask, requests: Sequence[Request]) -> dict[str, Conditioning]:
        kind, texts = KINDS[ask.kind], {"cond": self._prompt(ask, requests)}
        comes = self._text_comes(ask)
        num_words = kind.num_negative_words
        for branch in ask.passes[1:] if ask.passes[0] == "cond" else ["uncond"]:
            content = next(self._contents)
            if branch == "uncond" and ask.negative != "own":
                content = SHARED_NEGATIVE
            own = condition(content, (kind.batch, num_words, DIM), comes)
            is_shared = branch == "uncond" and ask.negative == "shared" and comes != REBUILT
            texts[branch] = self._shared_negatives[num_words] if is_shared else own
        return texts

    def _text_comes(self, ask: Ask) -> str:
        is_spared = ask.prompt_comes == REBUILT and self._rebuilds == "ids"
        return AS_IT_IS if is_spared else ask.prompt_comes

    def _prompt(self, ask: Ask, requests: Sequence[Request]) -> Conditioning:
        """Of its own, or the object or the content of the newest request that has such a one."""
        batch = KINDS[ask.kind].batch
        shape = (batch, NUM_WORDS, DIM)
        alike = [
            r
            for r in requests
            if KINDS[r.ask.kind].batch == batch and r.ask.prompt_comes == ask.prompt_comes
        ]
        if ask.prompt == "own" or not alike:
            return condition(next(self._contents), shape, self._text_comes(ask))
        theirs = alike[-1].texts["cond"]
        if ask.prompt == "same object":
            return theirs
        return condition(theirs.content, shape, self._text_comes(ask))

    def _ids(self, ask: Ask) -> Conditioning:
        num_tokens = KINDS[ask.kind].num_tokens
        shape = (num_tokens, DIM)
        if ask.prompt_comes == REBUILT and self._rebuilds in ("ids", "all"):
            return condition(SHARED_IDS, shape, REBUILT)
        if ask.ids == "own":
            return condition(next(self._contents), shape)
        return self._shared_ids[num_tokens]
