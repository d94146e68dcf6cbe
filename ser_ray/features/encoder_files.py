"""Where pretrained encoders lie, and what their files tell of them, without torch.

An encoder is a folder with `config.json`, or one file of weights that `torchaudio.pipelines` names. It is looked for
where its name says, in the folders that `SER_RAY_ENCODERS` names, and in the caches of the Hugging Face hub and torch
hub. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from ser_ray.base.errors import UserError
from ser_ray.features.known_encoders import (
    FAMILIES,
    OUTPUTS,
    PIPELINE_LICENCE,
    PIPELINES,
    SPOKEN,
    Pipeline,
    find_heard,
)

SAMPLE_RATE = 16_000  # Hz, which all these encoders take
HOP = 320  # Samples from frame to frame of all these encoders.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
PLACES = "SER_RAY_ENCODERS"  # environment variable: folders that hold encoders, as PATH has them
_SAYS_NOTHING = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"}  # of the rows
_KERNELS, _STRIDES = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]  # of the convolutions, where config.json has none
_SNAPSHOT = re.compile(r"models--(.+)--(.+?)[/\\]snapshots[/\\](\w+)$")


class Pretrained(NamedTuple):
    """What its files tell of an encoder.

    Attributes:
        family: The `model_type` of config.json, or `torchaudio`.
        settings: `config.json`; of a pipeline what builds it.
        preprocessor: `preprocessor_config.json`.
        weights: Paths of the files that hold the weights.
        epsilon: Added to the variance when waveforms are brought to mean 0 and deviation 1; None where they are not.
        digest: Of all that.
        digests: Of each file of weights, with its path, size and time of change.
        library: What runs it, with its version; empty for ser_ray itself.
        num_states: How many states it has.
        width: Numbers of one frame of a state.
        first_samples: What its first frame takes; each further one takes `HOP`.
        longest_s: The longest clip that it takes, seconds; None for any.
        told: What people want to know of it: `model`, `revision`, `licence`, `states`, `heard`, `heard_by`.
    """

    family: str
    settings: dict[str, Any]
    preprocessor: dict[str, Any]
    weights: list[str]
    epsilon: float | None
    digest: str
    digests: dict[tuple[str, int, int], str]
    library: str
    num_states: int
    width: int
    first_samples: int
    longest_s: float | None
    told: dict[str, Any]


def find_encoder(name: str) -> str:
    """Return the absolute path of an encoder: a folder, or a file of `torchaudio.pipelines`.

    Args:
        name: A path; a name in one of the folders of `SER_RAY_ENCODERS`; one of `torchaudio.pipelines`; or that of a
            model on the Hugging Face hub that this machine's cache holds, with `@revision` where it is not `main`.

    Raises:
        UserError: There is none; the message says what to bring where.
    """
    if name in PIPELINES:
        file = PIPELINES[name].file
        places = [*_places(), _torch_hub()]
        for place in places:
            if (place / file).is_file():
                return os.path.abspath(place / file)
        raise UserError(f"--encoder {name}: bring {file} into {places[-1]}, or into a folder that {PLACES} names")
    for place in (Path(name).expanduser(), *(place / Path(name).name for place in _places())):
        if path := _as_encoder(place):
            return path
        if place.exists():
            raise UserError(f"--encoder {name} is a file; name the folder that holds it")
    if cached := _in_hub_cache(name):
        return cached
    if re.fullmatch("[A-Z0-9_]+", name):
        raise UserError(f"--encoder {name}: there is none of this name; torchaudio has {', '.join(PIPELINES)}")
    raise UserError(
        f"--encoder {name}: there is no such folder on this machine; bring {CONFIG}, {PREPROCESSOR} and {WEIGHTS[0]} "
        "of a speech encoder into one and name it (docs/encoders.md)"
    )


def find_moved(path: str, model: str, revision: str) -> Iterator[str]:
    """Yield where an encoder may be that once was at a path, most likely places first."""
    file = PIPELINES[model].file if model in PIPELINES else Path(path).name
    for name in dict.fromkeys((path, file, f"{model}@{revision}" if revision else model, model)):
        try:
            yield find_encoder(name)
        except UserError:
            continue


def _places() -> list[Path]:
    return [Path(place).expanduser() for place in os.environ.get(PLACES, "").split(os.pathsep) if place]


def _torch_hub() -> Path:
    """Return where torch hub keeps files (`torch.hub.get_dir`)."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or Path(cache, "torch"), "hub", "checkpoints").expanduser()


def _as_encoder(path: Path) -> str:
    """Return the path of the encoder that is at a place, or an empty text."""
    files = {pipeline.file for pipeline in PIPELINES.values()}
    if path.is_file() and path.name in files:
        return os.path.abspath(path)
    if not path.is_dir():
        return ""
    inside = [path / file for file in sorted(files) if (path / file).is_file()]
    if len(inside) > 1 and not (path / CONFIG).exists():
        raise UserError(f"--encoder {path} holds several encoders; name one of them, such as {inside[0]}")
    return os.path.abspath(inside[0] if inside and not (path / CONFIG).exists() else path)


def _in_hub_cache(name: str) -> str:
    """Return the folder of a model of the Hugging Face hub in that library's cache, or an empty text."""
    model, _, revision = name.partition("@")
    if model.count("/") != 1:
        return ""
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface", "hub")
    cached = Path(hub).expanduser() / f"models--{model.replace('/', '--')}"
    reference = cached / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = cached / "snapshots" / commit
    return os.path.abspath(folder) if commit and folder.is_dir() else ""


def look_into(path: str, known: dict[tuple[str, int, int], str] | None = None) -> Pretrained:
    """Find out about the encoder at a path.

    Args:
        path: From `find_encoder`.
        known: Digests of files by path, size and time of change, which are not read again.

    Raises:
        UserError: It is none that can be used; the message says what to bring.
    """
    for name, pipeline in PIPELINES.items():
        if os.path.basename(path) == pipeline.file:
            return _look_into_pipeline(path, name, pipeline, known or {})
    settings = _read_json(path, CONFIG)
    kind = settings.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"--encoder {path}: {CONFIG} is of {kind or 'no known model'}; choose {SPOKEN}")
    family = FAMILIES[kind]
    own = not family.network  # ser_ray's own network hears the waveform as it is
    try:
        layers, width = int(settings[family.layers]), int(settings[family.width])
        longest_s = settings["max_source_positions"] * HOP / SAMPLE_RATE if own else None
        first = HOP if own else _first_samples(kind, settings)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--encoder {path}: {CONFIG} lacks {error}; bring the one of the same model") from None
    preprocessor = {} if own else _read_json(path, PREPROCESSOR)
    if preprocessor.get("sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
        raise UserError(f"--encoder {path} takes {preprocessor['sampling_rate']} Hz; choose one that takes 16000 Hz")
    banked = kind == "wav2vec2-bert"  # hears filter banks, by the library's own preprocessor
    epsilon = 1e-7 if not (own or banked) and preprocessor.get("do_normalize", True) else None
    weights = _find_weights(path)
    digests = _digest_files(weights, known or {})
    said = [{key: value for key, value in sorted(settings.items()) if key not in _SAYS_NOTHING}]
    said += [preprocessor] if banked else []
    digest = _join(json.dumps(said, sort_keys=True), str(epsilon), *digests.values())
    library = "" if own else _library("transformers", kind)
    told = {"states": family.states, **_tell(path, settings)}
    shape = layers + 1, width, first, longest_s
    return Pretrained(kind, settings, preprocessor, weights, epsilon, digest, digests, library, *shape, told)


def _look_into_pipeline(path: str, name: str, pipeline: Pipeline, known: dict[tuple[str, int, int], str]) -> Pretrained:
    _check_whole(os.path.dirname(path), pipeline.file)
    digests = _digest_files([path], known)
    epsilon = 1e-5 if pipeline.normalizes else None  # that of `layer_norm`, by which torchaudio does it
    settings = {"factory": pipeline.factory, **pipeline.settings}
    digest = _join(name, json.dumps(settings, sort_keys=True), str(epsilon), *digests.values())
    told = {"model": name, "revision": "", "licence": PIPELINE_LICENCE, "states": OUTPUTS, "heard": (), "heard_by": ""}
    shape = pipeline.layers, pipeline.width, _first_samples("torchaudio", {}), None
    library = _library("torchaudio", name)
    return Pretrained("torchaudio", settings, {}, [path], epsilon, digest, digests, library, *shape, told)


def _first_samples(kind: str, settings: dict[str, Any]) -> int:
    """Return how many samples the first frame takes: the receptive field of the convolutions."""
    if kind == "wav2vec2-bert":
        return 400 + 160  # two frames of its filter banks, 25 ms long and 10 ms apart, are one of its own
    first, hop = 1, 1
    pairs = zip(settings.get("conv_kernel", _KERNELS), settings.get("conv_stride", _STRIDES), strict=True)
    for kernel, stride in pairs:
        first += (kernel - 1) * hop
        hop *= stride
    if hop != HOP:
        raise ValueError(f"convolutions of {HOP} samples in all, but of {hop}")
    return first


def _tell(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what people want to know of the encoder in a folder."""
    snapshot = _SNAPSHOT.search(path)
    named = str(settings.get("_name_or_path") or "")
    model = "/".join(snapshot.groups()[:2]) if snapshot else named if named.count("/") == 1 else os.path.basename(path)
    revision = snapshot.group(3) if snapshot else ""
    note = Path(path, ".cache", "huggingface", "download", f"{CONFIG}.metadata")  # which `hf download` leaves
    if not revision and note.is_file():
        revision = (note.read_text(errors="replace").split() or [""])[0]
    card = _read_card(path)
    heard, by = find_heard((path, model, named), settings, _as_list(card.get("datasets")))
    licence = ", ".join(map(str, _as_list(card.get("license")))) or "not told in its folder"
    return {"model": model, "revision": revision, "licence": licence, "heard": heard, "heard_by": by}


def _read_card(folder: str) -> dict[str, Any]:
    """Return what stands at the head of a model card, `README.md`."""
    import yaml  # which few need

    try:
        text = Path(folder, "README.md").read_text(errors="replace")
        head = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except (OSError, yaml.YAMLError):
        return {}
    return head if isinstance(head, dict) else {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


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
            parts = _read_json(folder, f"{name}.index.json").get("weight_map", {}).values()
            names = sorted({os.path.basename(str(part)) for part in parts})
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


def _digest_files(paths: list[str], known: dict[tuple[str, int, int], str]) -> dict[tuple[str, int, int], str]:
    """Return the sha256 of files by path, size and time of change."""
    digests = {}
    for path in paths:
        stat = os.stat(path)
        key = path, stat.st_size, stat.st_mtime_ns
        if not (digest := known.get(key)):
            with open(path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        digests[key] = digest
    return digests


def _join(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _library(name: str, what: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        raise UserError(
            f"--encoder: {what} needs the library {name}: pip install -c constraints.txt -e '.[encoders]'; "
            "Whisper does without"
        ) from None
