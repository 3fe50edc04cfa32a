"""Pictures, film strips and decision curves as what a page holds in itself: data URIs and SVG."""

import base64
import io
from collections.abc import Sequence

from PIL import Image
from torch import Tensor, cat
from torch.nn.functional import pad

DIFFERENCE_TIMES = 5
FRAMES_A_LINE = 4
CURVE_WIDTH, CURVE_HEIGHT = 128, 36  # pixels


def data_uri(picture: Tensor) -> str:
    """A PNG of [3, H, W] in [0, 1], or of a clip [F, 3, H, W] as lines of a film strip."""
    flat = film_strip(picture) if picture.dim() == 4 else picture
    pixels = (flat.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def film_strip(clip: Tensor) -> Tensor:
    """[F, 3, H, W] -> lines of four frames, with white between them."""
    frames = list(pad(clip, (0, 1, 0, 1), value=1.0).unbind(0))
    lines = [frames[i : i + FRAMES_A_LINE] for i in range(0, len(frames), FRAMES_A_LINE)]
    return cat([cat(line, -1) for line in lines], -2)


def difference(picture: Tensor, reference: Tensor) -> Tensor:
    """Black where equal; enlarged, so that what the eye would pass over is seen."""
    return (DIFFERENCE_TIMES * (picture - reference).abs()).clamp(0, 1)


def curve_svg(shares: Sequence[float], seen: Sequence[float | None]) -> str:
    """A bar a step, as high as the share of blocks that ran; over it, what was compared there, with
    its own scale."""
    width = CURVE_WIDTH / max(1, len(shares))
    bars = "".join(
        f'<rect class="bar" x="{i * width:.1f}" width="{0.85 * width:.1f}" '
        f'y="{CURVE_HEIGHT * (1 - share):.1f}" height="{CURVE_HEIGHT * share:.1f}"/>'
        for i, share in enumerate(shares)
    )
    return (
        f'<svg width="{CURVE_WIDTH}" height="{CURVE_HEIGHT}" role="img" '
        f'aria-label="share of blocks run, step by step">{bars}{_seen_line(seen, width)}</svg>'
    )


def _seen_line(seen: Sequence[float | None], width: float) -> str:
    known = [(i, value) for i, value in enumerate(seen) if value is not None]
    most = max((value for _, value in known), default=0.0)
    if most <= 0:
        return ""
    points = " ".join(
        f"{(i + 0.4) * width:.1f},{CURVE_HEIGHT * (1 - 0.95 * value / most):.1f}"
        for i, value in known
    )
    return f'<polyline class="seen" points="{points}"><title>up to {most:.3g}</title></polyline>'
