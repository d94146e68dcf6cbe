"""A step captured in a CUDA graph: launched as one, where it was hundreds of kernels that the card waited for.

What a graph replays reads the same memory each time. So whatever differs from step to step stands in tensors that stay:
rows, indices of the batch, epoch, and what `Step.pace` writes. Batches come in two sizes at most (`deal_batches`), each
of which has a graph of its own: padded to one size, they would have other statistics of batch normalization.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ser_ray.model.examples import Examples

WARM_UP = 3  # Steps of each size that are taken as usual first, in which libraries settle on their kernels.

Take = Callable[[Examples, Tensor, Tensor | int], Tensor]  # from rows, indices of a batch and epoch to the loss


class StepRecorder(Protocol):
    """What takes steps and records them."""

    def run(self, step: Callable[[], Tensor], watch: bool) -> Tensor:
        """Take a step as usual.

        Raises:
            WaitsError: It was to be watched, and waited for the device; it was taken all the same.
        """

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return what takes a step again and again; it is not taken meanwhile.

        Raises:
            RuntimeError: It cannot be recorded.
        """


class WaitsError(Exception):
    """A step waits for the device, as one that is captured must not; `loss` is what it gave."""

    def __init__(self, why: str, loss: Tensor) -> None:
        super().__init__(why)
        self.loss = loss


@dataclass
class _Size:
    """Batches of one size: their indices, the steps taken so far, and what replays one, once it is recorded."""

    index_B: Tensor
    taken: int = 0
    replay: Callable[[], Tensor] | None = None


class Captured:
    """Takes steps by CUDA graphs, after a few of each size that are taken as usual.

    Args:
        take: Takes a step without waiting for the device; what differs from step to step it reads from tensors.
        recorder: By what; None for CUDA graphs.

    Attributes:
        refusal: Why steps are taken as usual after all; empty where they are captured.
    """

    def __init__(self, take: Take, recorder: StepRecorder | None = None) -> None:
        self.take, self.recorder, self.refusal = take, recorder or GraphRecorder(), ""
        self._examples: Examples | None = None
        self._epoch: Tensor | None = None
        self._sizes: dict[int, _Size] = {}

    def __call__(self, examples: Examples, index_B: Tensor, epoch: int) -> Tensor:
        """Take a step and return its loss, which the next step overwrites.

        Args:
            examples: The rows, the same block of memory each time.
            index_B: Which of them.
            epoch: Its number.
        """
        if self.refusal:
            return self.take(examples, index_B, epoch)
        if self._examples is None:
            self._examples, self._epoch = examples, torch.zeros((), dtype=torch.long, device=index_B.device)
        if examples is not self._examples:
            raise ValueError("a captured step reads the same rows each time")
        size = self._sizes.setdefault(len(index_B), _Size(torch.empty_like(index_B)))
        size.index_B.copy_(index_B)
        self._epoch.fill_(epoch)
        try:
            if size.replay is None and size.taken >= WARM_UP:
                size.replay = self.recorder.record(lambda: self.take(examples, size.index_B, self._epoch))
            if size.replay:
                return size.replay()
            size.taken += 1
            last = size.taken == WARM_UP  # what is made ready in the first steps may wait for the device
            return self.recorder.run(lambda: self.take(examples, size.index_B, self._epoch), last)
        except WaitsError as wait:
            self.refusal = str(wait)
            return wait.loss
        except RuntimeError as error:
            if size.replay or size.taken < WARM_UP:  # no failure of recording
                raise
            self.refusal = _first_cause(error)
            return self.take(examples, index_B, epoch)


def _first_cause(error: BaseException) -> str:
    """Say in one line what failed first; a capture that a failure ends fails once more by that."""
    while error.__context__:
        error = error.__context__
    return str(error).partition("\n")[0].partition(". ")[0]


class GraphRecorder:
    """Records steps as CUDA graphs, on a stream of their own: torch captures none on the default one."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def run(self, step: Callable[[], Tensor], watch: bool) -> Tensor:
        """Take a step on the stream on which it will be captured."""
        usual, mode = torch.cuda.current_stream(), torch.cuda.get_sync_debug_mode()
        self.stream.wait_stream(usual)
        with torch.cuda.stream(self.stream), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn" if watch else mode)
            try:
                loss = step()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        usual.wait_stream(self.stream)
        waits = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
        if watch and waits:
            raise WaitsError(waits[0].partition("(")[0].strip(), loss)
        return loss

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Capture a step; other threads of the process may go on using the device."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                loss = step()
        except RuntimeError:
            # The generator of random numbers takes itself to be captured still, until a capture has ended well.
            with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self.stream):
                torch.zeros(1, device="cuda")
            raise

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay
