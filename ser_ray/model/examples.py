"""Examples in memory and what a network says of them: what training and answering share.

Shape suffixes: N examples, B batch, T frames, F features, C classes.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ser_ray.features.arrays import decode_features, shape_of
from ser_ray.model.speakers import Speakers
from ser_ray.speech.emotions import LabelSet
from ser_ray.store.rows import Rows

CLIPS = 64  # Most clips that a network answers at a time.
FRAMES = {"cpu": 2048, "cuda": 65536}  # Largest batch that a network answers, in frames with padding, by device.
EVEN = 32  # A batch has a multiple of so many frames: kernels and freed memory serve again where shapes recur.
_ROWS = 4096  # Rows of one shape that statistics read at a time.
COLUMNS = ["utterance_id", "corpus", "speaker_id", "emotion"]  # Metadata that examples are made from.


@dataclass
class Examples:
    """Features and targets of many clips, in one block of memory.

    Attributes:
        values: `[N, *shape]` where all clips have one shape; where lengths vary, all frames one after the other,
            `[frames, n_mels]`.
        offsets: `[N + 1]`; example i is `values[offsets[i] : offsets[i + 1]]`.
        targets: `[N]` class indices, -1 for an emotion that is not among the labels.
        keys: `[N]` int64 drawn from each clip's id, whatever else is there.
        groups: `[N]` place of each clip's corpus in the list of corpora.
        framed: Whether lengths vary.
    """

    values: Tensor
    offsets: Tensor
    targets: Tensor
    keys: Tensor
    groups: Tensor
    framed: bool

    @classmethod
    def from_rows(cls, rows: Rows, labels: LabelSet, speakers: Speakers | None = None) -> Examples:
        """Read rows of a store, in their order.

        Args:
            rows: The clips.
            labels: The classes.
            speakers: By whom to normalize; None not to.
        """
        table = rows.table(COLUMNS).append_column("features", rows.features())
        return cls.from_table(table, labels, rows.corpora, speakers)

    @classmethod
    def from_table(
        cls, table: pa.Table, labels: LabelSet, corpora: Sequence[str], speakers: Speakers | None = None
    ) -> Examples:
        """Take examples from a table with the columns `COLUMNS` and `features`.

        Args:
            table: One row per example.
            labels: The classes.
            corpora: All corpora there are, by whose places examples are grouped.
            speakers: By whom to normalize; None not to.
        """
        values, offsets = decode_features(table["features"])
        if speakers:
            values = speakers.normalize(values, offsets, table["speaker_id"].to_pylist())
        index = {emotion: labels.index(emotion) for emotion in table["emotion"].unique().to_pylist()}
        targets = [-1 if index[e] is None else index[e] for e in table["emotion"].to_pylist()]
        digests = [hashlib.sha256(name.encode()).digest() for name in table["utterance_id"].to_pylist()]
        keys = [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]
        groups = [corpora.index(name) for name in table["corpus"].to_pylist()]
        framed = shape_of(table["features"].type)[0] is None
        return cls(*map(torch.tensor, (values, offsets, targets, keys, groups)), framed)

    @classmethod
    def from_arrays(cls, arrays: dict[str, Any]) -> Examples:
        """Take what `arrays` gave, without copying; it must not be written to."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if name != "framed"}
        return cls(**tensors, framed=arrays["framed"])

    def arrays(self) -> dict[str, Any]:
        """Return everything as NumPy arrays, which processes can share."""
        tensors = {name: value.numpy() for name, value in vars(self).items() if name != "framed"}
        return {**tensors, "framed": self.framed}

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index_N: Tensor) -> Examples:
        """Return a copy of some examples."""
        clips = [self.values[self.offsets[i] : self.offsets[i + 1]] for i in index_N.tolist()]
        offsets = torch.tensor([0, *map(len, clips)], device=self.offsets.device).cumsum(0)
        others = (tensor[index_N] for tensor in (self.targets, self.keys, self.groups))
        return Examples(torch.cat(clips), offsets, *others, self.framed)

    def statistics(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each feature over some examples' rows or frames, in float64."""
        if not self.framed:
            parts = (self.values[part].double() for part in index_N.split(_ROWS))
        else:
            clips = zip(self.offsets[index_N].tolist(), self.offsets[index_N + 1].tolist(), strict=True)
            parts = (self.values[begin:end].double() for begin, end in clips)
        return moments((len(part), part.sum(0), part.square().sum(0)) for part in parts)

    def to(self, device: torch.device) -> Examples:
        """Move everything to a device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if name != "framed"}
        return Examples(**tensors, framed=self.framed)

    def batch(self, index_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features of some examples and `lengths_B`.

        Those of one shape come as `[B, *shape]`, with None for lengths; others padded, `[B, T, F]`, where T is a
        multiple of `EVEN`.
        """
        if not self.framed:
            return self.values[index_B], None
        lengths_B = self.offsets[index_B + 1] - self.offsets[index_B]
        clips = [self.values[self.offsets[i] : self.offsets[i + 1]] for i in index_B.tolist()]
        clip_BTF = pad_sequence(clips, batch_first=True)
        return functional.pad(clip_BTF, (0, 0, 0, -clip_BTF.shape[1] % EVEN)), lengths_B


def moments(parts: Iterable[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation from parts: their counts, sums and sums of squares, in float64."""
    count, total_F, square_F = 0, 0, 0
    for part in parts:
        count, total_F, square_F = count + part[0], total_F + part[1], square_F + part[2]
    mean_F = total_F / count
    return mean_F, (square_F / count - mean_F.square()).clamp(min=0).sqrt()


@torch.inference_mode()
def predict_logits(network: nn.Module, examples: Examples, index_N: Tensor | None = None) -> Tensor:
    """Return `logits_NC` of some examples, or of all, none dropped; the network is left in evaluation mode."""
    if network.training:
        network.eval()
    index_N = torch.arange(len(examples), device=examples.offsets.device) if index_N is None else index_N
    by_length_N = examples.offsets.diff()[index_N].argsort(stable=True)  # clips of like length share a batch
    sizes = _batch_sizes(examples.offsets.diff()[index_N[by_length_N]].tolist(), FRAMES[index_N.device.type])
    logits = [network(*examples.batch(index_N[place_B])).float() for place_B in by_length_N.split(sizes)]
    return torch.cat(logits)[by_length_N.argsort()]


def _batch_sizes(lengths: Sequence[int], most: int) -> list[int]:
    """Cut clips of ascending lengths into batches that padded have at most so many frames, or one clip."""
    sizes = [0]
    for length in lengths:
        if sizes[-1] == CLIPS or (sizes[-1] and (sizes[-1] + 1) * (length + -length % EVEN) > most):
            sizes.append(0)
        sizes[-1] += 1
    return sizes


def accuracy_and_uar(logits_NC: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return accuracy and unweighted average recall over the classes that occur in the targets.

    The final scores are scikit-learn's; workers, which need these after each epoch, are spared its import.
    """
    hits_N = (logits_NC.argmax(1) == targets_N).double()
    counts_C = torch.bincount(targets_N, minlength=logits_NC.shape[1])
    hits_C = torch.zeros_like(counts_C, dtype=torch.double).index_add_(0, targets_N, hits_N)
    present_C = counts_C > 0
    return hits_N.mean(), (hits_C[present_C] / counts_C[present_C]).mean()
