"""What keeps a store whole when workers die.

Ray runs a task whose worker died again, without end. So a task leaves a note that it began. Begun a second time, it
notes each clip before it takes it, and a clip that was in hand at two deaths is not taken again.
"""

from __future__ import annotations

from collections import Counter

from ser_ray.base import storage
from ser_ray.base.errors import UserError

MAX_DEATHS_OF_CLIP = 2  # one may be chance: a machine that went down, or one out of memory
MAX_DEATHS_OF_TASK = 8


class Attempts:
    """The attempts at one task, this one included.

    Args:
        path: Of the note, the same whenever and wherever the task runs.

    Raises:
        UserError: The task's workers died too often.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.again = storage.exists(path)
        self.deaths: Counter[str] = Counter()
        if self.again:
            note = storage.read_json(path)
            self.deaths = Counter(note["deaths"]) + Counter([note["clip"]])
        if self.deaths.total() > MAX_DEATHS_OF_TASK:
            raise UserError(
                f"a task lost its worker {self.deaths.total()} times: look for crashes or lack of memory in Ray's log "
                "files; what is done is kept, and the same command goes on from here"
            )
        self._note("")

    def take(self, clip: str) -> bool:
        """Note the clip that comes next; False means to leave it alone, since it killed its workers."""
        if self.deaths[clip] >= MAX_DEATHS_OF_CLIP:
            return False
        if self.again:
            self._note(clip)
        return True

    def end(self) -> None:
        """Delete the note: the task came back."""
        storage.remove(self.path)

    def _note(self, clip: str) -> None:
        storage.write_json(self.path, {"clip": clip, "deaths": self.deaths})
