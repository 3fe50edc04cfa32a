"""All entries of the zoo, and which of them are checked in every run."""

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

ENTRIES = (*IMAGES, *VIDEOS)

# Those of every run, fast ones of unlike shape; the rest is for `make test-all`.
SAMPLE = frozenset(("dit", "latte", "prior", "sd3"))


def params_of(entries: Iterable[Entry]) -> list[object]:
    """Entries as parameters of a test: all but a sample are slow."""
    return [
        pytest.param(entry, marks=[] if entry.name in SAMPLE else [pytest.mark.slow])
        for entry in entries
    ]
