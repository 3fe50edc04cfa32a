"""All entries of the zoo, and which of them are checked in every run."""

from collections.abc import Iterable

import pytest

from zoo.audio import AUDIO
from zoo.cross import CROSS
from zoo.entry import Entry
from zoo.flux import FLUX_LIKE
from zoo.joint import JOINT
from zoo.kandinsky import KANDINSKY
from zoo.multimodal import MULTIMODAL
from zoo.others import OTHERS
from zoo.refined import REFINED
from zoo.single import SINGLE
from zoo.video import VIDEOS as CROSS_VIDEOS
from zoo.video_joint import JOINT_VIDEO
from zoo.wan import WAN_LIKE

IMAGES = (*FLUX_LIKE, *JOINT, *CROSS, *REFINED, *SINGLE)
VIDEOS = (*WAN_LIKE, *JOINT_VIDEO, *CROSS_VIDEOS, *KANDINSKY, *MULTIMODAL, *AUDIO, *OTHERS)

ENTRIES = (*IMAGES, *VIDEOS)

# Those of every run, fast ones of unlike shape; the rest is for `make test-all`.
SAMPLE = frozenset(("prior", "sd3"))


def params_of(entries: Iterable[Entry]) -> list[object]:
    """Entries as parameters of a test: all but a sample are slow."""
    return [
        pytest.param(entry, marks=[] if entry.name in SAMPLE else [pytest.mark.slow])
        for entry in entries
    ]
