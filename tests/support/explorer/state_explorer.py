"""Drives two models with any interleaving of requests, aborts, faults and changes of settings.

Hypothesis draws the schedules, and prints the shortest one that fails, with a line for each call.
The referee compares each call with what its image does alone.
"""

import itertools
from collections import Counter
from collections.abc import Sequence

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from support.explorer.asks import Ask, asks
from support.explorer.dit import NUM_BLOCKS, ExploredDiT
from support.explorer.families import Family, Settings
from support.explorer.referee import Referee
from support.explorer.request_maker import RequestMaker
from support.explorer.requests import Image, Request

MAX_IMAGES = 5
MAX_REQUESTS = 5

WHICH = st.integers(0, MAX_IMAGES - 1)
SETTINGS = st.runner().flatmap(lambda explorer: explorer.family.settings)
ASKS = st.runner().flatmap(lambda explorer: asks(explorer.family.settings))


class StateExplorer(RuleBasedStateMachine):
    """`which` counts round the images under way, or the requests that are there. `options` are for
    `torch.compile`."""

    def __init__(
        self,
        masters: Sequence[ExploredDiT],
        tally: Counter[str],
        family: Family,
        options: Settings,
    ) -> None:
        super().__init__()
        self.masters, self.tally, self.family = masters, tally, family
        self.options = options
        self.images: list[Image] = []
        self.requests: list[Request] = []
        self.may_hold = False
        self.contents = itertools.count(1000)
        self.image_names = itertools.count(1)

    @initialize(
        ascends=st.sampled_from([False] * 3 + [True]),
        rebuilds=st.sampled_from(["text", "ids", "all"]),
        settings=SETTINGS,
        ask=ASKS,
    )
    def start(self, ascends: bool, rebuilds: str, settings: Settings, ask: Ask) -> None:
        """`rebuilds` says what those who rebuild their conditioning at every call rebuild of it."""
        self.ascends, self.maker = (
            ascends,
            RequestMaker(rebuilds, self.contents, self.family.pinned),
        )
        self.referee = Referee(self.masters, self.tally, ascends, self.family, self.options)
        for index in range(len(self.masters)):
            self.referee.configure(index, settings)
        self.begin(ask)

    @precondition(lambda self: len(self.images) < MAX_IMAGES)
    @rule(ask=ASKS)
    def begin(self, ask: Ask) -> None:
        """A new request, and its first image."""
        if len(self.requests) == MAX_REQUESTS:
            self._forget(self.requests[0])
        request = self.maker.make(ask, self.requests)
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
    def configure(self, index: int, settings: Settings) -> None:
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
