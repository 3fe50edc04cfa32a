"""Pictures and clips as files: what a path holds, what belongs together, and its frames.

A frame is [H, W, C] of uint8 or uint16, a picture is one frame; C is 1 or 3.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dit_cachegraph.metrics.exc import CannotMeasure
from dit_cachegraph.metrics.reading import Frame, clip_frames, picture_frames

IMAGE_ENDINGS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"))
VIDEO_ENDINGS = frozenset((".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif"))


@dataclass(frozen=True, slots=True)
class Item:
    """One picture or one clip."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name without its ending: a JPEG is compared with the PNG of its name."""
        return self.path.stem

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_ENDINGS

    def frames(self) -> Iterator[Frame]:
        """One frame at a time, since a clip of large ones doesn't fit into memory.

        Raises:
            CannotMeasure: the file can't be read, or not without loss, or has no frame.
        """
        is_empty = True
        for frame in self._read():
            is_empty = False
            yield frame[..., None] if frame.ndim == 2 else frame
        if is_empty:
            raise CannotMeasure(f"{self.path} has no frame")

    def _read(self) -> Iterator[Frame]:
        try:
            yield from (clip_frames if self.is_video else picture_frames)(self.path)
        # Pillow's and FFmpeg's own errors are kinds of these two.
        except (OSError, ValueError) as error:
            raise CannotMeasure(f"{self.path} cannot be read: {error}") from error


def read_items(path: Path) -> list[Item]:
    """The one picture or clip that `path` is, or all those of a folder by name.

    Files of other kinds in a folder are passed over, and so are folders in it.

    Raises:
        CannotMeasure: nothing is there, or pictures and clips are mixed, or two have one name.
    """
    if path.is_file():
        if _ending(path) not in IMAGE_ENDINGS | VIDEO_ENDINGS:
            raise CannotMeasure(f"{path} is neither a picture nor a clip by its ending")
        return [Item(path)]
    if not path.is_dir():
        raise CannotMeasure(f"{path} does not exist")
    items = [Item(p) for p in sorted(path.iterdir()) if p.is_file() and _is_media(p)]
    _check_folder(path, items)
    return items


def _ending(path: Path) -> str:
    return path.suffix.lower()


def _is_media(path: Path) -> bool:
    return _ending(path) in IMAGE_ENDINGS | VIDEO_ENDINGS


def _check_folder(path: Path, items: Sequence[Item]) -> None:
    if not items:
        raise CannotMeasure(f"{path} holds no pictures and no clips")
    num_videos = sum(item.is_video for item in items)
    if 0 < num_videos < len(items):
        raise CannotMeasure(
            f"{path} holds {len(items) - num_videos} pictures and {num_videos} clips: give each "
            "kind a folder of its own"
        )
    name, count = Counter(item.name for item in items).most_common(1)[0]
    if count > 1:
        raise CannotMeasure(f"{path} holds {count} files named {name}, told apart by ending alone")


def paired(reference: Path, candidate: Path) -> list[tuple[Item, Item]]:
    """What is compared with what: file with file, or the files of two folders by name.

    Raises:
        CannotMeasure: as `read_items`, or something has no partner.
    """
    if reference.is_file() != candidate.is_file() and reference.exists() and candidate.exists():
        raise CannotMeasure(f"{reference} and {candidate}: one is a file and one is a folder")
    ours, theirs = read_items(reference), read_items(candidate)
    check_same_kind(reference, ours, candidate, theirs)
    if reference.is_file():
        return [(ours[0], theirs[0])]
    by_name = {item.name: item for item in theirs}
    lonely = sorted({item.name for item in ours} ^ set(by_name))
    if lonely:
        raise CannotMeasure(
            f"{reference} holds {len(ours)} and {candidate} {len(theirs)}, and {lonely[0]} is in "
            "one of them alone: both must hold the same names"
        )
    return [(item, by_name[item.name]) for item in ours]


def check_same_kind(
    reference: Path, ours: Sequence[Item], candidate: Path, theirs: Sequence[Item]
) -> None:
    """That what two paths hold is pictures on both sides or clips on both.

    Raises:
        CannotMeasure: it is not.
    """
    if ours[0].is_video != theirs[0].is_video:
        kinds = ["clips" if items[0].is_video else "pictures" for items in (ours, theirs)]
        raise CannotMeasure(
            f"{reference} is {kinds[0]} and {candidate} is {kinds[1]}: both must be of one kind"
        )


def paired_frames(reference: Item, candidate: Item) -> Iterator[tuple[Frame, Frame]]:
    """The frames of two items side by side.

    Raises:
        CannotMeasure: as `Item.frames`, or they differ in number, size, channels or value range.
    """
    both = itertools.zip_longest(reference.frames(), candidate.frames())
    for i, (ours, theirs) in enumerate(both):
        if ours is None or theirs is None:
            ended = reference.path if ours is None else candidate.path
            raise CannotMeasure(f"{reference.name}: {ended} ends after {i} frames, the other later")
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise CannotMeasure(
                f"{reference.path} is {_described(ours)} and {candidate.path} is "
                f"{_described(theirs)}: they must be alike"
            )
        yield ours, theirs


def _described(frame: Frame) -> str:
    height, width, num_channels = frame.shape
    return f"{width} x {height} with {num_channels} channels of {frame.dtype}"
