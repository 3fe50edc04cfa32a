"""What Dynamo calls: the driver of one request, and of a batch of them.

requests([a, b, c])   a batch of 3: three steps, whose segments run together
request(a), nothing   one step
"""

import functools
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from dit_cachegraph.batches.contents import Contents
from dit_cachegraph.batches.joint_run import JointRun
from dit_cachegraph.batches.joint_values import JointValues, Layout
from dit_cachegraph.batches.one_sample import of_one_sample
from dit_cachegraph.batches.rows import apart
from dit_cachegraph.cuda_graphs.capturer import Capturer
from dit_cachegraph.exc import InvalidConfig
from dit_cachegraph.plan import CompiledTrunk
from dit_cachegraph.requests.handoff import CallHandoff
from dit_cachegraph.requests.request import Caller, Request
from dit_cachegraph.runtime.driver import CachedModel, Called
from dit_cachegraph.segments.slots import Values, tensors


class BatchedModel(CachedModel):
    """The compiled trunk with its cache, for a request or a batch of them."""

    def __init__(
        self,
        compiled: CompiledTrunk,
        options: Mapping[str, object],
        model_class: type[nn.Module] | None,
        *,
        are_weights_frozen: bool = False,
        capturer: Capturer | None = None,
    ) -> None:
        super().__init__(
            compiled,
            options,
            model_class,
            are_weights_frozen=are_weights_frozen,
            capturer=capturer,
        )
        one = of_one_sample(compiled)
        self._layout = Layout.of(compiled)
        self._sample = CachedModel(one, options, model_class, are_weights_frozen=are_weights_frozen)

    def run(self, values: Values, caller: Caller | None) -> tuple[object, ...]:
        """A call, whose samples are apart if it is by a batch of requests."""
        are_together = self.compiled.trunk.samples.why_together is not None
        if are_together or not isinstance(caller, tuple):
            return super().run(values, caller)
        called = self.called(values)
        self._check_size(values, called, caller)
        if len(caller) == 1:
            contents = Contents([self.conditioning_of(called, values)])
            return self.finish(
                self.begin_of(called, values, caller[0], functools.partial(contents.begin, 0))
            )
        return self._run_apart(values, called, caller)

    def _run_apart(
        self, values: Values, called: Called, requests: Sequence[Request]
    ) -> tuple[object, ...]:
        """A step for each sample; nothing is written down before all have run."""
        joint, model = JointValues(self._layout, values, len(requests)), self._sample
        calls = [_of_sample(called, k, len(requests)) for k in range(len(requests))]
        given = [model.conditioning_of(*each) for each in zip(calls, joint.of_samples, strict=True)]
        contents = Contents(given)
        steps = [
            model.begin_of(of_sample, own, request, functools.partial(contents.begin, k))
            for k, (of_sample, own, request) in enumerate(
                zip(calls, joint.of_samples, requests, strict=True)
            )
        ]
        walks = [model.walker.walk(step) for step in steps]
        why_whole = self.compiled.trunk.samples.why_whole
        run = self.runner_of(called.model)
        results = JointRun(steps, walks, joint, run, why_whole).finish()
        for step in steps:
            model.end(step)
        return results

    def _check_size(self, values: Values, called: Called, requests: Sequence[Request]) -> None:
        """Raises InvalidConfig where there isn't one request a sample."""
        handoff = called.handoff
        latents = tensors(self._latents(values) if handoff is None else handoff.latents)
        if not latents or latents[0].dim() == 0 or latents[0].shape[0] == len(requests):
            return
        raise InvalidConfig(
            f"requests: {len(requests)} handles were given, and the transformer was called with "
            f"latents of {list(latents[0].shape)}, a batch of {latents[0].shape[0]}: give one "
            "handle for each sample, in their order; where two passes of guidance are one batch, "
            "one for each of them"
        )


def _of_sample(called: Called, k: int, num_samples: int) -> Called:
    """With its own row of what an earlier fragment handed on."""
    handoff = called.handoff
    if handoff is None:
        return called

    def own(given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple([_row(tensor, k, num_samples) for tensor in given])

    rows = CallHandoff(own(handoff.timesteps), own(handoff.latents), own(handoff.conditioning))
    return called._replace(handoff=rows)


def _row(tensor: Tensor, k: int, num_samples: int) -> Tensor:
    has_rows = tensor.dim() > 0 and tensor.shape[0] == num_samples
    return apart(tensor)[k] if has_rows else tensor
