"""Makes each call twice, on the compiled model and alone, and compares decision, diff, output."""

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from hypothesis import note
from torch import Tensor, nn

import dit_cachegraph as dc
from support.explorer.dit import ExploredDiT
from support.explorer.excuses import Excuse, Excuses
from support.explorer.families import Family, Settings
from support.explorer.lone_image import LoneImage, Verdict
from support.explorer.requests import Call, Image

OUT_OF_RANGE = 99


class Disagreement(AssertionError):
    """The compiled model did otherwise than its image would alone."""


@dataclass(eq=False)
class ExploredModel:
    """A model, compiled, and the settings that were given to `configure`."""

    module: ExploredDiT
    compiled: nn.Module
    settings: Settings = field(default_factory=dict)


class Referee:
    """Two models of one class, and what each of their images would do alone.

    Fresh copies of `masters` are made, which Dynamo needn't compile again. `tally` counts hits and
    computed steps, with and without an excuse. `options` are for `torch.compile`.
    """

    def __init__(
        self,
        masters: Iterable[ExploredDiT],
        tally: Counter[str],
        ascends: bool,
        family: Family,
        options: Settings,
    ) -> None:
        self.tally, self._family = tally, family
        self.models = [_compiled(copy.deepcopy(master), options) for master in masters]
        self._excuses = Excuses(len(self.models), ascends, family.passes_are_coupled)
        for index in range(len(self.models)):
            self.configure(index, dict(family.always))

    def configure(self, index: int, settings: Settings) -> None:
        model = self.models[index]
        dc.configure(model.compiled, **settings)
        model.settings |= settings

    def leave(self, image: Image) -> None:
        """An image is aborted: of which nobody tells the models."""
        self._excuses.leave(image)

    def reset(self, index: int, images: Iterable[Image], key: str | None = None) -> None:
        """Drop the state of one request or of all; the steps of an image may be counted anew."""
        model = self.models[index]
        dc.reset(model.compiled, key)
        for image in images:
            if key is None or image.key == key:
                self._lose(image, index)
        if key is None:
            self.check_bytes(index, 0)
            self._excuses.reset(index)

    def check_bytes(self, index: int, bound: int) -> None:
        """A model holds no more than this."""
        held = dc.summary(self.models[index].compiled).state_nbytes
        _agree(held <= bound, f"{held} bytes are held, of {bound} at most")

    def _lose(self, image: Image, index: int) -> None:
        places = [place for place in image.lones if place[0] == index]
        for place in places:
            del image.lones[place]
            self._excuses.lose(image, index)

    @torch.no_grad()
    def call(self, image: Image, others: Iterable[Image]) -> None:
        """The next call of an image. `others` are under way too."""
        call = image.next_call
        model, settings = self.models[call.model], self._settings(image, call)
        inputs, lone = image.inputs(call), self._lone(image, call)
        self._excuses.before(image, call, others)
        verdict = lone.look(model.module, inputs, self._family.rules_of(settings))
        output = self._run(image, call, inputs)
        step = dc.summary(model.compiled).steps[-1]
        bound = settings.get("max_state_bytes")
        if bound is not None:
            self.check_bytes(call.model, bound)
        said = f"{_name(image, call)}: {_word(step.hit)} ({step.reason})"
        said += f"; alone: {_word(verdict.hit)} ({verdict.reason})"
        note(f"    {said}")
        excuse = self._excuses.excuse(image, call, lone, settings)
        _agree(not step.hit or lone.may_replay(), f"a hit with nothing of its own: {said}")
        _agree(_is_allowed(verdict, step.hit, excuse), f"decided wrong: {said}")
        if excuse is Excuse.NONE:
            _agree(
                step.step == lone.step, f"counted as step {step.step} and not {lone.step}: {said}"
            )
            _agree(_is_same_number(step.diff, verdict.diff), f"another diff, {step.diff}: {said}")
        is_measured = step.diff is not None or step.observed_error is not None
        expected = lone.settle(step.hit, is_measured)
        if excuse is Excuse.NONE or step.observed_error is not None:
            is_same_error = _is_same_number(step.observed_error, lone.error)
            _agree(is_same_error, f"error {step.observed_error} and not {lone.error}: {said}")
        _agree(_relative_error(output, expected) < 1e-5, f"another output: {said}")
        self.tally[f"{_word(step.hit)}, {excuse.value}"] += 1
        self._excuses.after(image, call, lone, step.hit, settings)
        image.num_calls_made += 1

    @torch.no_grad()
    def fault(self, image: Image, block: int) -> None:
        """The next call of an image with a block that can't run, except where that is skipped. It
        raises, and changes nothing."""
        call = image.next_call
        model, settings = self.models[call.model], self._settings(image, call)
        inputs, lone = image.inputs(call), self._lone(image, call)
        rules = self._family.rules_of(settings)
        verdict = lone.look(model.module, inputs, rules)
        lone.give_up()
        excuse = self._excuses.excuse(image, call, lone, settings)
        may_be_skipped = verdict.hit or verdict.is_close or excuse is Excuse.ANYTHING
        if block in rules.region and may_be_skipped:
            return
        # Torch doesn't count writes through `.data`: no weight is seen to change.
        lane = model.module.blocks[block].lane.data
        lane.fill_(OUT_OF_RANGE)
        try:
            self._run(image, call, inputs)
        except IndexError:
            note(f"    {_name(image, call)}: block {block} raised")
            return
        finally:
            lane.zero_()
        raise Disagreement(f"block {block} never ran: {_name(image, call)}")

    def _lone(self, image: Image, call: Call) -> LoneImage:
        """What makes the call alone. Passes that share a latents object belong together."""
        place = (call.model, call.branch)
        if place not in image.lones:
            passes = [lone.passes for at, lone in image.lones.items() if at[0] == call.model]
            is_shared = passes and image.request.ask.latents != "copied"
            image.lones[place] = self._family.lone(passes[0] if is_shared else [])
        return image.lones[place]

    def _settings(self, image: Image, call: Call) -> Settings:
        return {**self.models[call.model].settings, **_own_settings(image, call)}

    def _run(self, image: Image, call: Call, inputs: Mapping[str, Tensor]) -> Tensor:
        compiled = self.models[call.model].compiled
        if image.key is None:
            return _output(compiled, call, inputs)
        with dc.request(image.key, **_own_settings(image, call)):
            return _output(compiled, call, inputs)


def _compiled(module: ExploredDiT, options: Settings) -> ExploredModel:
    compiled = torch.compile(
        module,
        backend="cachedit",
        fullgraph=True,
        dynamic=False,
        options={"inner_backend": "eager", **options},
    )
    return ExploredModel(module, compiled)


_OF_ALL_REQUESTS = frozenset(("max_state_bytes",))


def _own_settings(image: Image, call: Call) -> Settings:
    """What a named request brings."""
    ask = image.request.ask
    if image.key is None:
        return {}
    told = {} if ask.tells_steps == "no" else {"num_inference_steps": image.steps_told(call)}
    own = {name: value for name, value in ask.settings.items() if name not in _OF_ALL_REQUESTS}
    return {**own, **told}


def _agree(holds: bool, said: str) -> None:
    if not holds:
        raise Disagreement(said)


def _is_allowed(verdict: Verdict, hit: bool, excuse: Excuse) -> bool:
    if hit == verdict.hit or verdict.is_close or excuse is Excuse.ANYTHING:
        return True
    return excuse is Excuse.MAY_COMPUTE and not hit


def _is_same_number(number: float | None, expected: float | None) -> bool:
    if number is None or expected is None:
        return number is expected
    return math.isclose(number, expected, rel_tol=1e-3, abs_tol=1e-6)


def _output(compiled: nn.Module, call: Call, inputs: Mapping[str, Tensor]) -> Tensor:
    if call.is_of_another_graph:
        return compiled(**inputs, return_dict=False)[0]
    return compiled(**inputs)["sample"]


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def _word(hit: bool) -> str:
    return "hit" if hit else "computed"


def _name(image: Image, call: Call) -> str:
    timestep = image.points[call.point][0]
    text = f"image {image.name} of {image.request.name}, {call.branch}, "
    return text + f"point {call.point} (t={timestep:.4g}) on model {'AB'[call.model]}"
