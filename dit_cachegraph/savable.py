"""The driver as torch's own saving of compiled functions takes it (`aot_compile`, torch 2.13)."""

import pickle

from torch._dynamo.aot_compile_types import SerializableCallable

from dit_cachegraph.batches.model import BatchedModel
from dit_cachegraph.cuda_graphs.cuda_capturer import cuda_capturer
from dit_cachegraph.graph.cut.saving import trunk_from_bytes, trunk_to_bytes


class SavableModel(BatchedModel, SerializableCallable):
    """The driver, which can be written down with its compiled segments, its options, and the
    class of the model. What it keeps of requests isn't."""

    @classmethod
    def serialize_compile_artifacts(cls, fn: object) -> bytes:
        """Raises:
        CannotSave: its segments can't be saved.
        """
        assert isinstance(fn, cls)
        options, are_frozen = dict(fn.plans.options), fn.are_weights_frozen
        has_graphs, trunk = fn.graphed is not None, trunk_to_bytes(fn.compiled)
        return pickle.dumps((trunk, options, fn.model_class, are_frozen, has_graphs))

    @classmethod
    def deserialize_compile_artifacts(cls, data: bytes) -> "SavableModel":
        trunk, options, model_class, are_frozen, has_graphs = pickle.loads(data)
        compiled = trunk_from_bytes(trunk)
        assert compiled.stream_kind is not None, "it was compiled as one graph"
        capturer = cuda_capturer(compiled.stream_kind.device) if has_graphs else None
        return cls(compiled, options, model_class, are_weights_frozen=are_frozen, capturer=capturer)
