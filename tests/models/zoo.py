"""All entries of the zoo, and what does not hold yet."""

from collections.abc import Iterable

import pytest

from models.entry import Entry
from models.zoo_audio import AUDIO
from models.zoo_cross import CROSS
from models.zoo_flux import FLUX_LIKE
from models.zoo_joint import JOINT
from models.zoo_kandinsky import KANDINSKY
from models.zoo_multimodal import MULTIMODAL
from models.zoo_others import OTHERS
from models.zoo_refined import REFINED
from models.zoo_single import SINGLE
from models.zoo_video import VIDEOS as CROSS_VIDEOS
from models.zoo_video_joint import JOINT_VIDEO
from models.zoo_wan import WAN_LIKE

IMAGES = (*FLUX_LIKE, *JOINT, *CROSS, *REFINED, *SINGLE)
VIDEOS = (*WAN_LIKE, *JOINT_VIDEO, *CROSS_VIDEOS, *KANDINSKY, *MULTIMODAL, *AUDIO, *OTHERS)

# What does not hold yet, by what was seen. Each is run with the slow tests, and says when it holds.
OPEN: dict[str, str] = {}


def params_of(entries: Iterable[Entry]) -> list[object]:
    """Entries as parameters of a test. Building and checking one takes seconds, so all are slow."""
    return [pytest.param(entry, marks=_marks_of(entry)) for entry in entries]


def _marks_of(entry: Entry) -> list[pytest.MarkDecorator]:
    if entry.name in OPEN:
        return [pytest.mark.slow, pytest.mark.xfail(strict=True, reason=OPEN[entry.name])]
    return [pytest.mark.slow]
