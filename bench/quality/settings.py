"""Settings that people sample with: a model, a schedule with its solver, guidance, and steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from bench.quality.models import QualityModel
from bench.quality.schedules import SCHEDULES
from bench.train.recipes import BUSY_FLUX, WAN, Recipe

FLUX_NAME, WAN_NAME = "flux-scenes", "wan-clips"
GUIDANCES = (1.0, 3.5, 7.0)
STEPS = (20, 28, 50)
USUAL_STEPS = 28

# Guidance and steps are crossed on the schedule that the model is most used with; on the others
# the steps stay as they are.
CROSSED = ((FLUX_NAME, BUSY_FLUX, "shift 3"), (WAN_NAME, WAN, "UniPC, flow shift 5"))
AT_USUAL_STEPS: Sequence[tuple[str, Recipe, str, Sequence[float]]] = (
    (FLUX_NAME, BUSY_FLUX, "shift by size", (3.5,)),
    (FLUX_NAME, BUSY_FLUX, "DPM++ 2M, shift by size", (3.5,)),
    (FLUX_NAME, BUSY_FLUX, "even", (1.0, 7.0)),
    (WAN_NAME, WAN, "DPM++ 2M, flow shift 5", (3.5,)),
    (WAN_NAME, WAN, "shift 3", (3.5,)),
    (WAN_NAME, WAN, "even", (1.0, 7.0)),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """How pictures are sampled."""

    model_name: str
    recipe: Recipe
    schedule: str
    guidance: float
    num_steps: int

    def __str__(self) -> str:
        return (
            f"{self.model_name}, {self.schedule}, guidance {self.guidance:g}, "
            f"{self.num_steps} steps"
        )

    @property
    def model(self) -> QualityModel:
        """The model with this guidance and solver; its name is part of a file's."""
        kept = "".join(c if c.isalnum() else "-" for c in self.schedule.lower())
        name = f"{self.model_name}-{kept}-{self.guidance:g}"
        return QualityModel(name, self.recipe, self.guidance, SCHEDULES[self.schedule])


def all_settings() -> Iterator[Setting]:
    """Those that are usual for a model first."""
    for name, recipe, schedule in CROSSED:
        for steps, guidance in product(sorted(STEPS, key=lambda n: n != USUAL_STEPS), GUIDANCES):
            yield Setting(name, recipe, schedule, guidance, steps)
    for name, recipe, schedule, guidances in AT_USUAL_STEPS:
        for guidance in guidances:
            yield Setting(name, recipe, schedule, guidance, USUAL_STEPS)
