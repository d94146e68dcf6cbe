"""How to search, and what to change: ranges and choices for the flags of training, network and augmentation."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields, replace
from importlib.util import find_spec
from typing import Any

import yaml

from ser_ray.base import storage
from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings, choice
from ser_ray.experiment.experiment import Experiment
from ser_ray.networks.space import Range, Space

PARTS = ("train", "network", "changes")  # of an experiment, whose fields may be searched
FIXED = ("epochs", "monitor", "precision", "seed")  # of those, what all trials share


@dataclass(frozen=True)
class TuneConfig:
    """How to search.

    Attributes:
        num_samples: How many settings to try.
        search: `tpe`, Optuna's tree-structured Parzen estimator, or `random`.
        early_stopping: Stop trials early that do worse than most at the same epoch (ASHA).
        inner_folds: Folds of the speakers that are not tested over which a trial is judged; 1 takes the validation
            speakers of the split.
        max_concurrent: Trials at a time; 0 for as many as there are CPUs or GPUs for.
        workers_per_trial: Training workers of each trial; a single one is the trial's own process.
        time_budget_s: Seconds after which no trial begins, and those that run end with an epoch; 0 for no limit.
        mlflow: Address of an MLflow server that shall have every trial too; empty for none.
    """

    num_samples: int = between(30, 1)
    search: str = choice("tpe", "random")
    early_stopping: bool = True
    inner_folds: int = between(1, 1)
    max_concurrent: int = between(0, 0)
    workers_per_trial: int = between(1, 1)
    time_budget_s: float = between(0.0, 0)
    mlflow: str = ""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.search == "tpe" and find_spec("optuna") is None:
            raise UserError("--search tpe needs Optuna: pip install -e '.[tune]', or --search random")


def read_space(path: str | None, experiment: Experiment) -> Space:
    """Return the space of a YAML file, or the usual one of the experiment's model.

    A file holds one line per flag: a list of choices, or a range such as `{low: 1e-4, high: 1e-2, log: true}`.

    Args:
        path: The file, here or at a URI; None for the usual space.
        experiment: Every end of a range and every choice must make sense in it.

    Raises:
        UserError: The file cannot be read, or something in it makes no sense; the message names it.
    """
    if path is None:
        return experiment.network.space
    try:
        with storage.open_read(path) as stream:
            content = yaml.safe_load(stream.read())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--space {path}: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"--space {path}: give flags with choices or ranges, such as `dropout: {{low: 0, high: 0.5}}`")
    space: Space = {}
    for name, wish in content.items():
        name = str(name).replace("-", "_")
        try:
            space[name] = _domain(wish, _type_of(experiment, name))
            ends = space[name]
            for value in (ends.low, ends.high) if isinstance(ends, Range) else ends:
                put_in(experiment, {name: value})
        except (UserError, ValueError, TypeError) as error:
            raise UserError(f"--space {path}: {name}: {error}") from None
    return space


def _type_of(experiment: Experiment, name: str) -> str:
    """Return the type of a flag that can be searched, as its dataclass has it."""
    for part in PARTS:
        for field in _fields(getattr(experiment, part)):
            if field.name == name and name not in FIXED:
                return str(field.type)
    raise UserError("no such flag that can be searched")


def _domain(wish: Any, type_: str) -> Range | tuple[Any, ...]:
    number: Any = {"int": _whole, "float": float}.get(type_)
    if isinstance(wish, list) and wish:
        return tuple(map(number, wish)) if number else tuple(wish)
    if not isinstance(wish, dict) or not {"low", "high"} <= set(wish) <= {"low", "high", "log"}:
        raise ValueError("give a list of choices, or low and high, and log: true for a logarithmic scale")
    if number is None:
        raise ValueError("takes choices, such as [one, other]")
    low, high = (number(wish[end]) for end in ("low", "high"))
    log = bool(wish.get("log", False))
    if not low < high or (log and low <= 0):
        raise ValueError(f"low must be below high, and above 0 for log; got {low} and {high}")
    return Range(low, high, log)


def _whole(value: Any) -> int:
    if float(value) != int(float(value)):
        raise ValueError(f"takes whole numbers, got {value}")
    return int(float(value))


def put_in(experiment: Experiment, values: dict[str, Any]) -> Experiment:
    """Return the experiment with some values, by flag, put in.

    Raises:
        UserError: There is no such flag, or a value makes no sense.
    """
    left = dict(values)
    changed: dict[str, Any] = {"speaker_norm": left.pop("speaker_norm", experiment.speaker_norm)}
    for part in PARTS:
        config = getattr(experiment, part)
        names = {field.name for field in _fields(config)}
        if config is None:
            continue
        changed[part] = replace(config, **{name: left.pop(name) for name in names & set(left)})
    if left:
        raise UserError(f"{next(iter(left))} is no flag of a training")
    return replace(experiment, **changed)


def usual_values(experiment: Experiment, space: Space) -> dict[str, Any] | None:
    """Return the settings that an experiment has already; None where a space does not allow them."""
    values = {}
    for name, domain in space.items():
        value = next(getattr(config, name) for part in PARTS if hasattr(config := getattr(experiment, part), name))
        if not (domain.low <= value <= domain.high if isinstance(domain, Range) else value in domain):
            return None
        values[name] = value
    return values


def flags_of(experiment: Experiment) -> dict[str, Any]:
    """Return the flags, by name, by which the training of an experiment differs from the usual one of its network."""
    flags: dict[str, Any] = {"model": experiment.network.name, "epochs": experiment.train.epochs}
    if experiment.speaker_norm:
        flags["speaker_norm"] = True
    plain = Experiment(network=type(experiment.network)())
    for part in PARTS:
        config, other = getattr(experiment, part), getattr(plain, part)
        names = [field.name for field in _fields(config)]
        flags |= {name: getattr(config, name) for name in names if getattr(config, name) != getattr(other, name)}
    return flags


def _fields(config: Any) -> tuple[Field, ...]:
    return () if config is None else fields(config)
