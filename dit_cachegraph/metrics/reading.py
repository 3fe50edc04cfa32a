"""The frames of a file with every value as it was written.

Pillow cuts colours of 16 bits to 8, FFmpeg clips of 10 bits, and both drop transparency, all
without a word: what would lose anything is read in another way, or refused.
"""

from collections.abc import Iterator
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from dit_cachegraph.metrics.exc import CannotMeasure

# Those whose bits `_num_bits` knows: Pillow goes by what a file holds, whatever its ending.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
PNG_DEPTH_OFFSET = 24
TIFF_BITS_PER_SAMPLE = 258

Frame = np.ndarray


def picture_frames(path: Path) -> Iterator[Frame]:
    """Each picture of the file, mostly one: uint16 where 16 bits a value were written.

    Raises:
        CannotMeasure: it has transparency, colours other than RGB, or more bits than can be read.
        OSError, ValueError: Pillow cannot read it.
    """
    with Image.open(path, formats=PICTURE_FORMATS) as image:
        are_deep = [_is_deep_colour(page, path) for page in ImageSequence.Iterator(image)]
        is_png = isinstance(image, PngImageFile)
    if not any(are_deep):
        yield from iio.imiter(path, plugin="pillow")
    elif is_png and len(are_deep) == 1:
        yield from _with_all_bits(path)
    else:
        # FFmpeg takes tiles of a TIFF for rows, and the first of several pages for all.
        raise CannotMeasure(
            f"{path} holds colours of more than 8 bits a value, which are read from a PNG of one "
            "picture alone: save it as such"
        )


def _is_deep_colour(page: Image.Image, path: Path) -> bool:
    if page.has_transparency_data:
        raise CannotMeasure(
            f"{path} has an alpha channel or a transparent colour, which no metric here knows how "
            "to weigh: save it without"
        )
    is_colour = len(page.getbands()) > 1
    if is_colour and page.mode != "RGB":
        raise CannotMeasure(f"{path} holds colours as {page.mode}: save them as RGB")
    num_bits = _num_bits(page, path)
    if page.mode.startswith("I;16") and num_bits != 16:
        raise CannotMeasure(
            f"{path} holds {num_bits} bits a value, which would be taken for 16: save it with 8 "
            "or 16"
        )
    return is_colour and num_bits > 8


def _num_bits(page: Image.Image, path: Path) -> int:
    # Pillow's mode doesn't say: it is RGB for 8 and for 16.
    if isinstance(page, PngImageFile):
        with path.open("rb") as file:
            return file.read(PNG_DEPTH_OFFSET + 1)[PNG_DEPTH_OFFSET]
    if isinstance(page, TiffImageFile):
        return max(page.tag_v2.get(TIFF_BITS_PER_SAMPLE, (1,)))
    return 8


def _with_all_bits(path: Path) -> Iterator[Frame]:
    with path.open("rb") as file, av.open(file, mode="r") as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray()


def clip_frames(path: Path) -> Iterator[Frame]:
    """Each frame in RGB of 8 bits.

    Raises:
        CannotMeasure: it holds more bits a value, or a frame has transparency.
        OSError, ValueError: FFmpeg cannot read it.
    """
    with path.open("rb") as file, av.open(file, mode="r") as container:
        if container.streams.video:
            for frame in container.decode(video=0):
                _check_clip_frame(frame, path)
                yield frame.to_ndarray(format="rgb24")


def _check_clip_frame(frame: av.VideoFrame, path: Path) -> None:
    parts = frame.format.components
    num_bits = max(part.bits for part in parts)
    if num_bits > 8:
        raise CannotMeasure(
            f"{path} holds {num_bits} bits a value ({frame.format.name}), and clips are read with "
            "8: convert it to a pixel format of 8 such as yuv420p, or its frames to PNGs of 16"
        )
    # An alpha channel alone says little: FFmpeg makes one for every GIF.
    is_alpha = any(part.is_alpha for part in parts)
    if is_alpha and frame.to_ndarray(format="rgba")[..., 3].min() < 255:
        raise CannotMeasure(
            f"{path} has transparent pixels, which no metric here knows how to weigh: save it "
            "without an alpha channel"
        )
