"""`encoder`: what a pretrained speech encoder makes of a clip, averaged over time (docs/encoders.md).

Of each of the encoder's states, from the lowest layer to the last, a row holds the mean and the standard deviation over
the clip's frames. The user brings the weights; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pyarrow as pa

from ser_ray.base.console import say
from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings, fact
from ser_ray.features.encoder_files import SAMPLE_RATE, find_encoder, find_moved, look_into
from ser_ray.features.known_encoders import SPOKEN


@dataclass(frozen=True)
class Encoder:
    """Settings of a pretrained encoder's states, and what was found out about the encoder.

    Attributes:
        encoder: A pretrained speech encoder: a folder with `config.json`, `preprocessor_config.json` and
            `model.safetensors` or `pytorch_model.bin`; a name of `torchaudio.pipelines`, such as `WAVLM_BASE_PLUS`, or
            the file of its weights; or a name on the Hugging Face hub, with `@revision` where it is not `main`.
            Nothing is downloaded: names are looked for in the folders that `SER_RAY_ENCODERS` names and in the caches
            of torch hub and the Hugging Face hub.
        sample_rate: Of the analysed waveform, Hz; encoders take 16000.
        offset_s: Start of the window within the clip, seconds.
        duration_s: Length of the window, seconds, at most 30 for Whisper; None for the rest of the clip.
        digest: Of the weights and of what else decides over the rows; wherever the files lie, rows are the same.
        library: What runs the encoder, with its version; empty for ser_ray itself.
        num_states: How many states it has.
        width: Numbers of one frame of a state.
        model: What the encoder is called.
        revision: On the Hugging Face hub; empty where nothing tells.
        licence: Of the weights, as their model card or torchaudio has it.
        states: Which states these are, in words.
        heard: Corpora that it was trained on, as far as anything tells.
        heard_by: What tells so.
    """

    name: ClassVar[str] = "encoder"
    version: ClassVar[int] = 2
    augment: ClassVar[tuple[str, ...]] = ("none",)
    wants_gpu: ClassVar[bool] = True  # where there is one

    encoder: str = field(default="", compare=False)
    sample_rate: int = SAMPLE_RATE
    offset_s: float = between(0.0, 0, 1e6)
    duration_s: float | None = between(30.0, 0.1, 1e6, optional=True)
    digest: str = fact("")
    library: str = fact("")
    num_states: int = fact(0)
    width: int = fact(0)
    model: str = fact("", compare=False)
    revision: str = fact("", compare=False)
    licence: str = fact("", compare=False)
    states: str = fact("", compare=False)
    heard: tuple[str, ...] = fact((), compare=False)
    heard_by: str = fact("", compare=False)

    def __post_init__(self) -> None:
        """Check the settings, and find out about the encoder where that is not known.

        A store or a model that was made elsewhere knows it, and is read where there is no such folder.

        Raises:
            UserError: The encoder or what it consists of cannot be used; the message says what to bring.
        """
        check_settings(self)
        object.__setattr__(self, "heard", tuple(self.heard))
        object.__setattr__(self, "digests", {})  # of files that were read, so that workers need not read them again
        if self.sample_rate != SAMPLE_RATE:
            raise UserError(f"--sample-rate must be {SAMPLE_RATE}, which encoders take, got {self.sample_rate}")
        if not self.encoder or self.digest:
            return
        path = find_encoder(self.encoder)
        found = look_into(path)
        if found.longest_s is not None and not (self.duration_s or 1e9) <= found.longest_s:
            raise UserError(f"--duration-s must be at most {found.longest_s:g} for this encoder, got {self.duration_s}")
        facts = {name: getattr(found, name) for name in ("digest", "digests", "library", "num_states", "width")}
        for name, value in {"encoder": path, **facts, **found.told}.items():
            object.__setattr__(self, name, value)

    def arrow_type(self) -> pa.DataType:
        """Return a list of the states, each of `2 * width` numbers: means, then standard deviations.

        They are of half precision; `encode_features` takes float32 where a value is beyond its range.
        """
        return pa.list_(pa.list_(pa.float16(), 2 * self.width), self.num_states)

    def identity(self) -> dict[str, Any]:
        """Return what decides over the rows: the encoder by its content, wherever it lies, and the window.

        Raises:
            UserError: No encoder was named.
        """
        if not self.digest:
            raise UserError(f"--encoder is missing: name a speech encoder ({SPOKEN}; docs/encoders.md)")
        window = {"offset_s": self.offset_s, "duration_s": self.duration_s}
        return {"digest": self.digest, "library": self.library, **window}

    def origin(self) -> str:
        """Say in words which encoder this is, and under which licence."""
        revision = f", revision {self.revision}" if self.revision else ""
        text = f"{self.model}{revision}, licence: {self.licence}, sha256 {self.digest[:12]}; rows hold {self.states}"
        return f"{text}; trained on {', '.join(self.heard)} ({self.heard_by})" if self.heard else text

    def locate(self, places: Sequence[str] = ()) -> Encoder:
        """Return these features with the encoder where it is now, which is told by its content.

        Args:
            places: Where to look first, named as `encoder` is; those that hold other encoders are passed over.

        Raises:
            UserError: It is nowhere.
        """
        other = ""
        for path in (*map(find_encoder, places), *find_moved(self.encoder, self.model, self.revision)):
            found = look_into(path, self.digests)
            if found.digest == self.digest:
                if found.library != self.library:
                    say(f"{self.model}: run by {found.library} here, by {self.library} where these features were made")
                here = replace(self, encoder=path, library=found.library)
                object.__setattr__(here, "digests", found.digests)
                return here
            other = other or path
        if other:
            raise UserError(f"{other} holds another encoder than these features were made by; bring that one there")
        raise UserError(
            f"--encoder: the encoder {self.model} is not on this machine; it was {self.encoder}; bring it there, "
            "or into a folder that SER_RAY_ENCODERS names, or name its new place by --encoder"
        )

    def kernel(self) -> Any:
        """Load the encoder, once in a process."""
        self.identity()
        from ser_ray.features.kernels.encoder import load_kernel

        return load_kernel(self)
