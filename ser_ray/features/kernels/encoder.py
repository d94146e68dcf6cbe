"""Pretrained encoders at work: waveforms in, mean and deviation of every state out.

Clips are cut to whole frames. On CPUs only clips of as many frames go through an encoder together, so that a clip's row
is the same to the last bit whatever else is there. A GPU, which a clip alone leaves idle, takes clips of nearly one
length, where the encoder keeps their padding out (`kernels.padding`): the same row but for rounding.

Shapes: B clips, T samples, N frames, W width of a state, S states, D = 2W.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ser_ray.features.encoder import Encoder
from ser_ray.features.encoder_files import HOP, SAMPLE_RATE, look_into
from ser_ray.features.kernels import copies, padding
from ser_ray.features.kernels.pretrained import build_encoder
from ser_ray.features.recipe import parse_augmentation
from ser_ray.speech.audio import AudioError

LEAST_SAMPLES = 400  # 25 ms, which a frame of these encoders hears
BATCH_S = 240.0  # seconds of sound that go through an encoder together, at most, on a GPU


@lru_cache(maxsize=1)
def load_kernel(config: Encoder) -> EncoderKernel:
    """Return the kernel of an encoder, which is loaded once."""
    return EncoderKernel(config)


class EncoderKernel:
    """Computes `encoder` (`features.spec.Kernel`), on a GPU in bfloat16.

    Args:
        config: What to compute.

    Raises:
        UserError: The encoder is not there, is another one, or its weights do not fit.
    """

    def __init__(self, config: Encoder) -> None:
        here = config.locate()
        self.found = look_into(here.encoder, here.digests)
        self.network = build_encoder(self.found, here.encoder)
        self.device, self.bf16 = "cpu", False
        self.batch_s = BATCH_S

    def to(self, device: str) -> EncoderKernel:
        """Move to `cpu` or `cuda`."""
        self.network.to(device)
        self.device, self.bf16 = device, device != "cpu"
        return self

    def rows(
        self, waveform_T: np.ndarray, utterance_id: str, augmentations: Sequence[str], seed: int
    ) -> list[np.ndarray]:
        """Compute the rows of one clip, one per augmentation, each `[S, D]` float32.

        They are rounded to half precision where all values are within its range, as stores hold them.

        Raises:
            AudioError: The clip is too short or too long for the encoder, or its answer is no number.
        """
        (rows,) = self.rows_of_clips([(waveform_T, utterance_id)], augmentations, seed)
        if isinstance(rows, Exception):
            raise rows
        return rows

    @torch.inference_mode()
    def rows_of_clips(
        self, clips: Sequence[tuple[np.ndarray, str]], augmentations: Sequence[str], seed: int
    ) -> list[list[np.ndarray] | Exception]:
        """Compute the rows of several clips as `rows` does, those of as many frames together.

        Args:
            clips: Waveform and utterance_id of each.
            augmentations: Rows of each clip.
            seed: Of the run.

        Returns:
            The rows of each clip, or what is wrong with it.
        """
        answers: list[list[np.ndarray] | Exception] = [[] for _ in clips]
        waveforms: list[tuple[int, Tensor]] = []  # in the order of clips and augmentations
        for place, (waveform_T, utterance_id) in enumerate(clips):
            try:
                changed = list(_change(torch.from_numpy(waveform_T), utterance_id, augmentations, seed))
                waveforms += [(place, clip_T[: self._whole_frames(len(clip_T))]) for clip_T in changed]
            except AudioError as error:
                answers[place] = error
        rows = self._hear([waveform_T for _, waveform_T in waveforms])
        for (place, _), row_SD in zip(waveforms, rows, strict=True):
            answer = answers[place]
            if isinstance(answer, list):
                try:
                    answer.append(round_to_half(row_SD))
                except AudioError as error:
                    answers[place] = error
        return answers

    def _whole_frames(self, count: int) -> int:
        """Return how many of some samples fill whole frames: the rest, less than 20 ms, is not heard.

        Raises:
            AudioError: They are too few or too many for the encoder.
        """
        first, longest_s = self.found.first_samples, self.found.longest_s
        if count < max(LEAST_SAMPLES, first):
            raise AudioError(
                f"too short for the encoder: {count / SAMPLE_RATE:.3f} s, and one frame of it takes "
                f"{max(LEAST_SAMPLES, first) / SAMPLE_RATE:g} s"
            )
        if longest_s is not None and count > longest_s * SAMPLE_RATE:
            raise AudioError(f"too long for the encoder: {count / SAMPLE_RATE:.1f} s, and it takes {longest_s:g} s")
        return first + (count - first) // HOP * HOP

    def _hear(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Return the row `[S, D]` of each waveform, in batches that memory allows."""
        padded = padding.PADDED if self.device != "cpu" and self.network.takes_lengths else 0.0
        rows: list[Tensor] = [torch.empty(0)] * len(waveforms)
        todo = sorted(range(len(waveforms)), key=lambda place: -len(waveforms[place]))
        while todo:
            lengths = [len(waveforms[place]) for place in todo]
            places = todo[: padding.count_alike(lengths, int(self.batch_s * SAMPLE_RATE), padded)]
            row_BSD = None
            try:
                row_BSD = self._hear_together([waveforms[place] for place in places])
            except torch.OutOfMemoryError:
                if len(places) == 1:
                    raise
            if row_BSD is None:
                torch.cuda.empty_cache()  # here, where the failed batch's own memory is free
                self.batch_s = len(places) * lengths[0] / SAMPLE_RATE / 2
                continue
            for place, row_SD in zip(places, row_BSD, strict=True):
                rows[place] = row_SD
            todo = todo[len(places) :]
        return rows

    def _hear_together(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Return the rows `[B, S, D]` of waveforms, which are padded where they differ in length."""
        counts = [len(waveform_T) for waveform_T in waveforms]
        waveform_BT = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True).to(self.device)
        lengths_B = None if min(counts) == max(counts) else torch.tensor(counts, device=self.device)
        return self.pool(waveform_BT, lengths_B).cpu()

    def pool(self, waveform_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return `[B, S, D]`: mean and standard deviation over frames of each state.

        Args:
            waveform_BT: Clips of whole frames.
            lengths_B: Samples of each without padding; None where none is padded.
        """
        if self.found.epsilon is not None:
            waveform_BT = _standardize(waveform_BT, lengths_B, self.found.epsilon)
        heard = (waveform_BT,) if lengths_B is None else (waveform_BT, lengths_B)
        with torch.autocast(waveform_BT.device.type, torch.bfloat16, enabled=self.bf16):
            states = [state_BNW.float() for state_BNW in self.network(*heard)]
        own_BN = None
        if lengths_B is not None:
            frames_B = (lengths_B - self.found.first_samples) // HOP + 1
            own_BN = padding.own_mask(frames_B, states[0].shape[1])
        return torch.stack([torch.cat(padding.mean_and_deviation(state_BNW, own_BN), 1) for state_BNW in states], 1)


def _standardize(waveform_BT: Tensor, lengths_B: Tensor | None, epsilon: float) -> Tensor:
    """Bring each clip to mean 0 and deviation 1, and what follows it to 0."""
    if lengths_B is None:
        variance_B1, mean_B1 = torch.var_mean(waveform_BT, 1, correction=0, keepdim=True)
        return (waveform_BT - mean_B1) / (variance_B1 + epsilon).sqrt()
    own_BT = padding.own_mask(lengths_B, waveform_BT.shape[1])
    mean_B1, std_B1 = padding.mean_and_deviation(waveform_BT[..., None], own_BT)
    return torch.where(own_BT, (waveform_BT - mean_B1) / (std_B1.square() + epsilon).sqrt(), 0.0)


def _change(clip_T: Tensor, utterance_id: str, augmentations: Sequence[str], seed: int) -> Iterator[Tensor]:
    """Yield the waveform of each augmentation."""
    for name in augmentations:
        steps = parse_augmentation(name)
        if steps:
            yield copies.augment(clip_T[None], steps, copies.make_generator(seed, utterance_id, name))[0]
        else:
            yield clip_T


def round_to_half(row_SD: Tensor) -> np.ndarray:
    """Return a row in the numbers that a store holds of it: of half precision where all are within its range.

    Raises:
        AudioError: They are not finite.
    """
    if not row_SD.isfinite().all():
        raise AudioError("the encoder's answer is no number")
    half_SD = row_SD.half().float()
    return (half_SD if half_SD.isfinite().all() else row_SD).numpy()
