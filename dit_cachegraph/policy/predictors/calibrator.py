"""The options that every forecast has, with cache-dit's names."""

from dataclasses import dataclass

from dit_cachegraph.policy.checks import check_bool, check_choice
from dit_cachegraph.policy.predictor import CacheType, Predictor


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrator(Predictor):
    """What is forecast, and of which streams."""

    calibrator_cache_type: CacheType = "residual"
    """What is forecast: what the region adds to a stream, or the stream after the region."""

    enable_encoder_calibrator: bool = True
    """False: only the image's stream is forecast; what the region added to the others is replayed,
    whatever `calibrator_cache_type` says."""

    def __post_init__(self) -> None:
        check_choice(
            "calibrator_cache_type", self.calibrator_cache_type, ("residual", "hidden_states")
        )
        check_bool("enable_encoder_calibrator", self.enable_encoder_calibrator)
