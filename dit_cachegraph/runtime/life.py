"""The life of an image's state: how long its tensors are held.

    the next image under the same conditioning begins    freed, unless a companion shows that the
                                                         image belongs to another request
    ... under another `request(key)`                     freed once two have begun since its last
                                                         call, if it looks whole
    the last step, where the number of steps is known    freed: nothing is held while the VAE runs
    more bytes than `max_state_bytes`                    freed, least recently used first

An image that lost its tensors goes on knowing its step; it computes, and says why.
"""

from dataclasses import dataclass, field

from dit_cachegraph.runtime.branch_table import BranchTable
from dit_cachegraph.runtime.cache_state import Branch, Image
from dit_cachegraph.runtime.find_image import are_twins
from dit_cachegraph.runtime.step_log import log_image
from dit_cachegraph.runtime.trajectory import Clock, looks_whole

MAX_IMAGES = 16
MAX_SCHEDULES = 16
MAX_ENDED = 8
OVER = "its state was freed after what was taken for the last step"
NEXT_BEGAN = "its state was freed when the next image began under the same conditioning"


@dataclass(eq=False, slots=True)
class Schedules:
    """How images of this model ended: the number of their calls, and the last clock."""

    ends: dict[int, Clock] = field(default_factory=dict)

    def learn(self, image: Image) -> None:
        """Remember the end of an image that is over, if it ran its whole schedule."""
        trajectory = image.trajectory
        if trajectory.last is not None and looks_whole(trajectory):
            self.ends.pop(trajectory.num_calls, None)
            self.ends[trajectory.num_calls] = trajectory.last
            while len(self.ends) > MAX_SCHEDULES:
                del self.ends[next(iter(self.ends))]

    def is_end(self, image: Image) -> bool:
        trajectory = image.trajectory
        end = self.ends.get(trajectory.num_calls)
        return end is not None and end == trajectory.last

    def unlearn(self, image: Image) -> None:
        """The image went on after this point."""
        self.ends.pop(image.trajectory.num_calls, None)


def begin_image(table: BranchTable, schedules: Schedules, image: Image) -> None:
    """The first step of an image is done. Those before it on its branch have most likely ended."""
    branch = image.branch
    for earlier in list(branch.images):
        if earlier.is_complete:
            table.remove(earlier)
        elif looks_whole(earlier.trajectory):
            schedules.learn(earlier)
            complete(earlier)
    _end_namesakes(table, schedules, branch)
    image.first_call = table.next_call()
    branch.images.append(image)
    for other in list(table.called_with(image.latents)):
        if _are_of_one_step(image, other):
            image.companions.append(other)
            other.companions.append(image)
    for affected in {image.branch, *(other.branch for other in image.companions)}:
        _strip_earlier(affected)
    while len(branch.images) > MAX_IMAGES:
        table.remove(branch.images[0])


def _end_namesakes(table: BranchTable, schedules: Schedules, branch: Branch) -> None:
    """A server may give each image a key, under a prompt that lives on. An image by another name
    may still be under way, unless one has begun and this one begins without it. The last few that
    ended go on knowing their step, without tensors."""
    others = table.namesakes(branch)
    begun = max((image.first_call for other in others for image in other.images), default=0)
    ended = []
    for other in others:
        for image in list(other.images):
            is_left = not image.is_complete and image.last_call < begun
            if is_left and looks_whole(image.trajectory):
                schedules.learn(image)
                complete(image)
        if other.images and all(image.is_complete for image in other.images):
            ended.append(other)
    ended.sort(key=lambda other: other.last_call)
    for other in ended[:-MAX_ENDED]:
        table.end(other)


def _are_of_one_step(image: Image, other: Image) -> bool:
    """True for two passes of guidance, which were called with one latents object: they differ in
    their conditioning, or in the trunk."""
    are_apart = other.branch is not image.branch or other.signature != image.signature
    return are_apart and other.trajectory.last == image.trajectory.last


def _strip_earlier(branch: Branch) -> None:
    for earlier in branch.images[:-1]:
        if earlier.kept is not None and not _is_of_another_request(earlier):
            log_image(earlier)
            earlier.strip(NEXT_BEGAN)
            earlier.has_successor = True


def _is_of_another_request(image: Image) -> bool:
    """True if a companion has state of its own and is the last that its branch has seen."""
    return any(c.kept is not None and c.branch.images[-1:] == [c] for c in image.companions)


def end_step(
    table: BranchTable,
    schedules: Schedules,
    image: Image,
    num_inference_steps: int | None,
    max_state_bytes: int | None,
) -> None:
    """What is freed at the end of a step."""
    image.last_call = table.next_call()
    _supersede(table, image)
    if image.history.step == num_inference_steps or schedules.is_end(image):
        for companion in image.companions:
            if _has_fallen_behind(companion, image):
                complete(companion)
        complete(image)
    if max_state_bytes is not None:
        _evict(table, max_state_bytes)


def _supersede(table: BranchTable, image: Image) -> None:
    """Remove an image that this one has come up with: one that was aborted at this very point, and
    is drawn again from the same noise."""
    for other in list(image.branch.images):
        is_twin = other is not image and are_twins(image, other)
        if is_twin and other.signature == image.signature and not _is_of_another_request(other):
            table.remove(other)


def complete(image: Image) -> None:
    """The image is over, as far as one knows."""
    log_image(image)
    image.is_complete = True
    image.strip(OVER)


def _has_fallen_behind(companion: Image, image: Image) -> bool:
    """True for a guidance branch that ended half-way: it saw neither this step nor the last."""
    trajectory = image.trajectory
    return companion.trajectory.last not in (trajectory.last, trajectory.before_last)


def _evict(table: BranchTable, max_state_bytes: int) -> None:
    if table.nbytes <= max_state_bytes:
        return
    for image in sorted(table.images(), key=lambda image: image.last_call):
        image.strip(f"its state was freed under max_state_bytes={max_state_bytes}")
        if table.nbytes <= max_state_bytes:
            return
