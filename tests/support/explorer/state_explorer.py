"""Drives two models with any interleaving of requests, aborts, faults and changes of settings.

Hypothesis draws the schedules, and prints the shortest one that fails, with a line for each call.
The referee compares each call with what its image does alone.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from support.explorer.asks import AS_IT_IS, ASKS, KINDS, NUM_WORDS, REBUILT, SETTINGS, Ask
from support.explorer.dit import DIM, NUM_BLOCKS, ExploredDiT
from support.explorer.referee import Referee
from support.explorer.requests import Conditioning, Image, Request, condition

MAX_IMAGES = 5
MAX_REQUESTS = 5
SHARED_IDS, SHARED_NEGATIVE = 0, 100  # Their contents; all others are numbered from 1000.

WHICH = st.integers(0, MAX_IMAGES - 1)


class StateExplorer(RuleBasedStateMachine):
    """`which` counts round the images under way, or the requests that are there."""

    def __init__(self, masters: Sequence[ExploredDiT], tally: Counter[str]) -> None:
        super().__init__()
        self.masters, self.tally = masters, tally
        self.images: list[Image] = []
        self.requests: list[Request] = []
        self.may_hold = False
        self.contents = itertools.count(1000)
        self.shared_ids = {n: condition(SHARED_IDS, (n, DIM)) for n in (24, 32)}
        self.shared_negatives = {n: condition(SHARED_NEGATIVE, (1, n, DIM)) for n in (4, 6)}
        self.shared_guidance = {batch: torch.full((batch,), 3.5) for batch in (1, 2)}
        self.image_names = itertools.count(1)
        self.request_names = (chr(ord("A") + i % 26) for i in itertools.count())

    @initialize(
        ascends=st.sampled_from([False] * 3 + [True]),
        rebuilds=st.sampled_from(["text", "ids", "all"]),
        settings=SETTINGS,
        ask=ASKS,
    )
    def start(self, ascends: bool, rebuilds: str, settings: dict[str, object], ask: Ask) -> None:
        """`rebuilds` says what those who rebuild their conditioning at every call rebuild of it."""
        self.ascends, self.rebuilds = ascends, rebuilds
        self.referee = Referee(self.masters, self.tally, ascends)
        for index in range(len(self.masters)):
            self.referee.configure(index, settings)
        self.begin(ask)

    @precondition(lambda self: len(self.images) < MAX_IMAGES)
    @rule(ask=ASKS)
    def begin(self, ask: Ask) -> None:
        """A new request, and its first image."""
        if len(self.requests) == MAX_REQUESTS:
            self._forget(self.requests[0])
        request = self._make_request(ask)
        self.requests.append(request)
        self.may_hold |= request.is_rebuilt or ask.negative == "shared"
        self._begin_image(request, next(self.contents))

    @precondition(lambda self: self.requests and len(self.images) < MAX_IMAGES)
    @rule(
        which=WHICH,
        aborts=st.booleans(),
        skips=st.sampled_from([0, 0, 1, 3]),
        has_same_noise=st.booleans(),
        has_other_guidance=st.booleans(),
    )
    def again(
        self, which: int, aborts: bool, skips: int, has_same_noise: bool, has_other_guidance: bool
    ) -> None:
        """Another image of a request, from where in the schedule `skips` says; at once with one
        that is under way, unless that is aborted."""
        request = self.requests[which % len(self.requests)]
        if aborts:
            self._abort_all(request)
        rivals = [image for image in self.images if image.request is request]
        is_alone = not any(image.request.texts is request.texts for image in self.images)
        seed = next(self.contents)
        if has_other_guidance:
            request.guidance = request.guidance - 1.5
        if has_same_noise and is_alone and not skips:
            seed = self._same(request.last_seed)
        image = self._begin_image(request, seed, skips)
        if rivals:
            self._rename(image)

    @precondition(lambda self: self.images)
    @rule(which=WHICH)
    def restart(self, which: int) -> None:
        """An image is aborted, and drawn once more from its beginning, of the same seed."""
        image = self.images[which % len(self.images)]
        self._abort(image)
        self._begin_image(image.request, self._same(image.seed), image.skips, image.key)

    @precondition(lambda self: self.images)
    @rule(order=st.lists(WHICH, min_size=1, max_size=12))
    def turns(self, order: list[int]) -> None:
        """Images under way make a call each, in this order."""
        for which in order:
            if self.images:
                self._call(self.images[which % len(self.images)])

    @precondition(lambda self: self.images)
    @rule(which=WHICH, times=st.integers(1, 8))
    def go_on(self, which: int, times: int) -> None:
        """An image makes some calls in a row."""
        image = self.images[which % len(self.images)]
        for _ in range(times):
            if image in self.images:
                self._call(image)

    @precondition(lambda self: self.images)
    @rule(which=WHICH)
    def finish(self, which: int) -> None:
        """An image makes the rest of its calls."""
        image = self.images[which % len(self.images)]
        while image in self.images:
            self._call(image)

    @precondition(lambda self: self.images)
    @rule(which=WHICH, block=st.integers(0, NUM_BLOCKS - 1), retries=st.booleans())
    def fault(self, which: int, block: int, retries: bool) -> None:
        """A block raises in mid-step. The call is made again, at once or some time."""
        image = self.images[which % len(self.images)]
        self.referee.fault(image, block)
        if retries:
            self._call(image)

    @precondition(lambda self: self.images)
    @rule(which=WHICH, keeps_prompt=st.booleans())
    def abort(self, which: int, keeps_prompt: bool) -> None:
        image = self.images[which % len(self.images)]
        self._abort(image)
        if not keeps_prompt:
            self._forget(image.request)

    @rule(index=st.integers(0, 1), settings=SETTINGS)
    def configure(self, index: int, settings: dict[str, object]) -> None:
        self.referee.configure(index, settings)

    @rule(index=st.integers(0, 1))
    def reset(self, index: int) -> None:
        self._reset(index, None)

    @precondition(lambda self: any(image.key is not None for image in self.images))
    @rule(index=st.integers(0, 1), which=WHICH)
    def reset_named(self, index: int, which: int) -> None:
        keys = [image.key for image in self.images if image.key is not None]
        self._reset(index, keys[which % len(keys)])

    @rule()
    def everyone_leaves(self) -> None:
        """Nothing is held for requests whose tensors are gone. Those who rebuild theirs may come
        back, and a shared negative prompt lives on."""
        while self.requests:
            self._forget(self.requests[0])
        if not self.may_hold:
            for index in range(len(self.masters)):
                self.referee.check_bytes(index, 0)

    def _same(self, seed: int) -> int:
        """The same noise, except where schedules ascend: the first two images of one noise may go
        down from a later timestep of the one to the first of the other."""
        return next(self.contents) if self.ascends else seed

    def _reset(self, index: int, key: str | None) -> None:
        # By Heun, the next timestep may come twice: the start of one image and of another one.
        for image in [image for image in self.images if image.request.ask.pace == "Heun"]:
            if key is None or image.key == key:
                self._abort(image)
        self.referee.reset(index, self.images, key)

    def _call(self, image: Image) -> None:
        self.referee.call(image, self.images)
        if image.is_done:
            note(f"    image {image.name} is done")
            self.images.remove(image)

    def _abort(self, image: Image) -> None:
        note(f"    image {image.name} is aborted")
        self.images.remove(image)
        self.referee.leave(image)

    def _abort_all(self, request: Request) -> None:
        for image in [image for image in self.images if image.request is request]:
            self._abort(image)

    def _forget(self, request: Request) -> None:
        self._abort_all(request)
        self.requests = [other for other in self.requests if other is not request]

    def _begin_image(
        self, request: Request, seed: int, skips: int = 0, key: str | None = None
    ) -> Image:
        name = str(next(self.image_names))
        image = Image(name, request, seed, ascends=self.ascends, skips=skips)
        image.key = key or request.key
        if request.ask.reads_no_clock:
            self._rename(image)
        request.last_seed = seed
        self.images.append(image)
        note(f"    image {name} of request {request.name} begins")
        return image

    def _rename(self, image: Image) -> None:
        if image.key is not None:
            image.key = f"{image.request.key}, image {image.name}"

    def _make_request(self, ask: Ask) -> Request:
        if ask.is_named and "steps_computation_policy" not in ask.settings:
            # Whether a named request reads its clock is settled where it begins.
            settings = {**ask.settings, "steps_computation_policy": "dynamic"}
            ask = replace(ask, settings=settings)
        name = next(self.request_names)
        batch = KINDS[ask.kind].batch
        guidance = self.shared_guidance[batch]
        if ask.has_own_guidance:
            guidance = torch.full((batch,), 2.0 + 0.5 * len(self.requests))
        return Request(
            name=name,
            ask=ask,
            texts=self._texts(ask),
            ids=self._ids(ask),
            guidance=guidance,
            key=f"request {name}" if ask.is_named else None,
        )

    def _texts(self, ask: Ask) -> dict[str, Conditioning]:
        kind, texts = KINDS[ask.kind], {"cond": self._prompt(ask)}
        comes = self._text_comes(ask)
        num_words = kind.num_negative_words
        for branch in ask.passes[1:] if ask.passes[0] == "cond" else ["uncond"]:
            content = next(self.contents)
            if branch == "uncond" and ask.negative != "own":
                content = SHARED_NEGATIVE
            own = condition(content, (kind.batch, num_words, DIM), comes)
            is_shared = branch == "uncond" and ask.negative == "shared" and comes != REBUILT
            texts[branch] = self.shared_negatives[num_words] if is_shared else own
        return texts

    def _text_comes(self, ask: Ask) -> str:
        is_spared = ask.prompt_comes == REBUILT and self.rebuilds == "ids"
        return AS_IT_IS if is_spared else ask.prompt_comes

    def _prompt(self, ask: Ask) -> Conditioning:
        """Of its own, or the object or the content of the newest request that has such a one."""
        batch = KINDS[ask.kind].batch
        shape = (batch, NUM_WORDS, DIM)
        alike = [
            r
            for r in self.requests
            if KINDS[r.ask.kind].batch == batch and r.ask.prompt_comes == ask.prompt_comes
        ]
        if ask.prompt == "own" or not alike:
            return condition(next(self.contents), shape, self._text_comes(ask))
        theirs = alike[-1].texts["cond"]
        if ask.prompt == "same object":
            return theirs
        return condition(theirs.content, shape, self._text_comes(ask))

    def _ids(self, ask: Ask) -> Conditioning:
        num_tokens = KINDS[ask.kind].num_tokens
        shape = (num_tokens, DIM)
        if ask.prompt_comes == REBUILT and self.rebuilds in ("ids", "all"):
            return condition(SHARED_IDS, shape, REBUILT)
        if ask.ids == "own":
            return condition(next(self.contents), shape)
        return self.shared_ids[num_tokens]
