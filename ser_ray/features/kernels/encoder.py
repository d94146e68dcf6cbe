"""Pretrained encoders at work: waveforms in, mean and deviation of every state out.

Clips are cut to whole frames, and only clips of as many frames go through an encoder together: some encoders normalize
over time before any mask could keep padding out. So a clip's row does not depend on what else is there.

Shapes: B clips of one length, T samples, N frames, W width of a state, S states, D = 2W.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ser_ray.features.encoder import Encoder
from ser_ray.features.encoder_files import HOP, SAMPLE_RATE, look_into
from ser_ray.features.kernels import copies
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
        """Return the row `[S, D]` of each waveform."""
        alike: dict[int, list[int]] = {}
        for place, waveform_T in enumerate(waveforms):
            alike.setdefault(len(waveform_T), []).append(place)
        rows: list[Tensor] = [torch.empty(0)] * len(waveforms)
        for places in alike.values():
            batch_BT = torch.stack([waveforms[place] for place in places])
            for place, row_SD in zip(places, self._hear_alike(batch_BT), strict=True):
                rows[place] = row_SD
        return rows

    def _hear_alike(self, waveform_BT: Tensor) -> Tensor:
        """Return the rows `[B, S, D]` of waveforms, in batches that memory allows."""
        most = max(1, int(self.batch_s * SAMPLE_RATE / waveform_BT.shape[1]))
        if len(waveform_BT) > most:
            return torch.cat([self._hear_alike(part_BT) for part_BT in waveform_BT.split(most)])
        try:
            return self.pool(waveform_BT.to(self.device)).cpu()
        except torch.OutOfMemoryError:
            if len(waveform_BT) == 1:
                raise
        torch.cuda.empty_cache()  # here, where the failed batch's own memory is free
        self.batch_s = len(waveform_BT) * waveform_BT.shape[1] / SAMPLE_RATE / 2
        return self._hear_alike(waveform_BT)

    def pool(self, waveform_BT: Tensor) -> Tensor:
        """Return `[B, S, D]`: mean and standard deviation over frames of each state of clips of one length."""
        if self.found.epsilon is not None:
            variance_B1, mean_B1 = torch.var_mean(waveform_BT, 1, correction=0, keepdim=True)
            waveform_BT = (waveform_BT - mean_B1) / (variance_B1 + self.found.epsilon).sqrt()
        with torch.autocast(waveform_BT.device.type, torch.bfloat16, enabled=self.bf16):
            states = [state_BNW.float() for state_BNW in self.network(waveform_BT)]
        return torch.stack([torch.cat([s_BNW.mean(1), s_BNW.std(1, correction=0)], 1) for s_BNW in states], 1)


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
