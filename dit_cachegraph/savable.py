"""The driver as torch's own saving of compiled functions takes it (`aot_compile`, torch 2.13)."""

import pickle

from torch._dynamo.aot_compile_types import SerializableCallable

from dit_cachegraph.batches.model import BatchedModel
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
        return pickle.dumps((trunk_to_bytes(fn.compiled), options, fn.model_class, are_frozen))

    @classmethod
    def deserialize_compile_artifacts(cls, data: bytes) -> "SavableModel":
        trunk, options, model_class, are_frozen = pickle.loads(data)
        return cls(trunk_from_bytes(trunk), options, model_class, are_weights_frozen=are_frozen)
