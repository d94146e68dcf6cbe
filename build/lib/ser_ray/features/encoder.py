"""`encoder`: what a pretrained speech encoder makes of a clip, averaged over time (docs/encoders.md).

Of each of the encoder's states, from the lowest layer to the last, a row holds the mean and the standard deviation over
the clip's frames. The user brings the weights; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings, fact

SAMPLE_RATE = 16_000  # Hz, which all these encoders take
HOP = 320  # Samples from frame to frame of all these encoders.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
FAMILIES = {  # by the `model_type` of config.json: how it calls the number of layers and their width
    "whisper": ("encoder_layers", "d_model"),
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "data2vec-audio"), ("num_hidden_layers", "hidden_size")),
}
_SPOKEN = "Whisper, wav2vec2, HuBERT, WavLM or data2vec-audio"
_SAYS_NOTHING = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"}  # of the rows


@dataclass(frozen=True)
class Encoder:
    """Settings of a pretrained encoder's states, and what was found out about the encoder.

    Attributes:
        encoder: Folder of a pretrained speech encoder, with `config.json`, `preprocessor_config.json` and
            `model.safetensors` or `pytorch_model.bin`; or its name on the Hugging Face hub, where this machine holds it
            in that library's cache.
        sample_rate: Of the analysed waveform, Hz; encoders take 16000.
        offset_s: Start of the window within the clip, seconds.
        duration_s: Length of the window, seconds, at most 30 for Whisper; None for the rest of the clip.
        digest: Of the weights and of what else decides over the rows; wherever the folder lies, rows are the same.
        library: What runs the encoder, with its version; empty for ser_ray itself.
        num_states: The encoder's layers and one.
        width: Numbers of one frame of a state.
    """

    name: ClassVar[str] = "encoder"
    version: ClassVar[int] = 1
    augment: ClassVar[tuple[str, ...]] = ("none",)

    encoder: str = field(default="", compare=False)
    sample_rate: int = SAMPLE_RATE
    offset_s: float = between(0.0, 0, 1e6)
    duration_s: float | None = between(30.0, 0.1, 1e6, optional=True)
    digest: str = fact("")
    library: str = fact("")
    num_states: int = fact(0)
    width: int = fact(0)

    def __post_init__(self) -> None:
        """Check the settings, and find out about the encoder where that is not known.

        A store or a model that was made elsewhere knows it, and is read where there is no such folder.

        Raises:
            UserError: The folder or what it holds cannot be used; the message says what to bring.
        """
        check_settings(self)
        if self.sample_rate != SAMPLE_RATE:
            raise UserError(f"--sample-rate must be {SAMPLE_RATE}, which encoders take, got {self.sample_rate}")
        if not self.encoder or self.digest:
            return
        folder = find_folder(self.encoder)
        found = look_into(folder)
        if found.longest_s is not None and not (self.duration_s or 1e9) <= found.longest_s:
            raise UserError(f"--duration-s must be at most {found.longest_s:g} for this encoder, got {self.duration_s}")
        object.__setattr__(self, "encoder", folder)
        for name in ("digest", "library", "num_states", "width"):
            object.__setattr__(self, name, getattr(found, name))

    def arrow_type(self) -> pa.DataType:
        """Return a list of the states, each of `2 * width` float32 numbers: means, then standard deviations."""
        return pa.list_(pa.list_(pa.float32(), 2 * self.width), self.num_states)

    def identity(self) -> dict[str, Any]:
        """Return what decides over the rows: the encoder by its content, wherever it lies, and the window.

        Raises:
            UserError: No encoder was named.
        """
        if not self.digest:
            raise UserError(f"--encoder is missing: name the folder of a speech encoder ({_SPOKEN}; docs/encoders.md)")
        window = {"offset_s": self.offset_s, "duration_s": self.duration_s}
        return {"digest": self.digest, "library": self.library, **window}

    def kernel(self) -> Any:
        """Load the encoder, once in a process."""
        self.identity()
        from ser_ray.features.kernels.encoder import load_kernel

        return load_kernel(self)


class Pretrained(NamedTuple):
    """What a folder tells of the encoder in it.

    Attributes:
        settings: `config.json`.
        weights: Paths of the files that hold the weights.
        normalizes: Whether waveforms are brought to mean 0 and deviation 1 first.
        digest: Of all that.
        library: What runs it, with its version; empty for ser_ray itself.
        num_states: Its layers and one.
        width: Numbers of one frame of a state.
        longest_s: The longest clip that it takes, seconds; None for any.
    """

    settings: dict[str, Any]
    weights: list[str]
    normalizes: bool
    digest: str
    library: str
    num_states: int
    width: int
    longest_s: float | None


def find_folder(name: str) -> str:
    """Return the absolute path of an encoder's folder.

    Args:
        name: The folder, or the name of a model on the Hugging Face hub that this machine's cache holds.

    Raises:
        UserError: There is none.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return os.path.abspath(path)
    if path.exists():
        raise UserError(f"--encoder {name} is a file; name the folder that holds it")
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface", "hub")
    cached = Path(hub).expanduser() / f"models--{name.replace('/', '--')}"
    main = cached / "refs" / "main"
    if name.count("/") == 1 and main.is_file():
        return os.path.abspath(cached / "snapshots" / main.read_text().strip())
    raise UserError(
        f"--encoder {name}: there is no such folder on this machine; bring {CONFIG}, {PREPROCESSOR} and {WEIGHTS[0]} "
        "of a speech encoder into one and name it (docs/encoders.md)"
    )


def look_into(folder: str) -> Pretrained:
    """Find out about the encoder in a folder, without torch.

    Raises:
        UserError: It is none that can be used; the message says what to bring.
    """
    settings = _read_json(folder, CONFIG)
    family = settings.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"--encoder {folder}: {CONFIG} is of {family or 'no known model'}; choose {_SPOKEN}")
    try:
        layers, width = (int(settings[key]) for key in FAMILIES[family])
        longest_s = settings["max_source_positions"] * HOP / SAMPLE_RATE if family == "whisper" else None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--encoder {folder}: {CONFIG} lacks {error}; bring the one of the same model") from None
    # Whisper's kernel is ser_ray's own, and hears the waveform as it is.
    preprocessor = {} if family == "whisper" else _read_json(folder, PREPROCESSOR)
    if preprocessor.get("sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
        raise UserError(f"--encoder {folder} takes {preprocessor['sampling_rate']} Hz; choose one that takes 16000 Hz")
    normalizes = family != "whisper" and bool(preprocessor.get("do_normalize", True))
    weights = _find_weights(folder)
    said = {key: value for key, value in sorted(settings.items()) if key not in _SAYS_NOTHING}
    parts = [json.dumps(said, sort_keys=True), str(normalizes)]
    parts += [_digest_file(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in weights]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    library = "" if family == "whisper" else _library(family)
    return Pretrained(settings, weights, normalizes, digest, library, layers + 1, width, longest_s)


def _read_json(folder: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(folder, name).read_text())
    except FileNotFoundError:
        raise UserError(f"--encoder {folder}: {name} is missing; bring it there, from where the model is") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--encoder {folder}: {name}: {str(error).splitlines()[0]}; bring it there again") from None
    if not isinstance(content, dict):
        raise UserError(f"--encoder {folder}: {name} holds no settings; bring it there again")
    return content


def _find_weights(folder: str) -> list[str]:
    """Return the files that hold the weights: one, or the parts that an index names."""
    for name in WEIGHTS:
        names = [name] if Path(folder, name).exists() else []
        if not names and Path(folder, f"{name}.index.json").exists():
            names = sorted(
                {
                    os.path.basename(str(part))
                    for part in _read_json(folder, f"{name}.index.json").get("weight_map", {}).values()
                }
            )
        for part in names:
            _check_whole(folder, part)
        if names:
            return [os.path.join(folder, part) for part in names]
    raise UserError(f"--encoder {folder}: the weights are missing; bring {' or '.join(WEIGHTS)} there")


def _check_whole(folder: str, name: str) -> None:
    """Refuse weights that are not there, or were cut short, by what their head says."""
    path, again = Path(folder, name), f"bring {name} there again"
    if not path.is_file():
        raise UserError(f"--encoder {folder}: {name} is missing; bring it there")
    size = path.stat().st_size
    if not name.endswith(".safetensors"):
        if size < 1024:
            raise UserError(f"--encoder {folder}: {name} has {size} bytes and so no weights; {again}")
        return
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            head = json.loads(stream.read(length)) if 0 < length <= size - 8 else None
        ends = [entry["data_offsets"][1] for key, entry in (head or {}).items() if key != "__metadata__"]
        whole = 8 + length + max(ends)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise UserError(f"--encoder {folder}: {name} is no safetensors file, or cut short; {again}") from None
    if size != whole:
        raise UserError(f"--encoder {folder}: {name} has {size} of {whole} bytes; {again}")


@lru_cache(maxsize=16)
def _digest_file(path: str, size: int, changed_ns: int) -> str:
    """Return the sha256 of a file; it is read again where size or time of change are others."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _library(family: str) -> str:
    try:
        return f"transformers {version('transformers')}"
    except PackageNotFoundError:
        raise UserError(
            f"--encoder: {family} needs the library transformers: pip install -c constraints.txt -e '.[encoders]'; "
            "Whisper does without"
        ) from None
