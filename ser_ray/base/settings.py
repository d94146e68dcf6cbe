"""Settings as frozen dataclasses: what their fields allow, said once, and the flags that are made from them.

A field says what it allows where it is declared, by `between` or `choice`; `check_settings` in `__post_init__` holds it
to that. Flags are flat, documented by the dataclass's own docstring, and a user's mistake is answered by one line.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

import docstring_parser
import tyro
import yaml

from ser_ray.base import storage
from ser_ray.base.console import write_anywhere
from ser_ray.base.errors import UserError

Config = TypeVar("Config")


def between(default: Any, low: float, high: float = math.inf, *, above: bool = False, optional: bool = False) -> Any:
    """Declare a number of a settings dataclass.

    Args:
        default: Its usual value.
        low: The least value.
        high: The largest value.
        above: Whether the value must be more than `low`, not that itself.
        optional: Whether None is a value, too.
    """
    return dataclasses.field(default=default, metadata={"between": (low, high, above, optional)})


def choice(default: str, *others: str) -> Any:
    """Declare a text of a settings dataclass that is one of a few; the first is the usual one."""
    return dataclasses.field(default=default, metadata={"choice": tuple(dict.fromkeys((default, *others)))})


def fact(default: Any, *, compare: bool = True) -> Any:
    """Declare what a settings dataclass finds out by itself, and so is no flag; `compare` is as dataclasses have it."""
    return dataclasses.field(default=default, compare=compare, metadata={"fact": True})


def check_settings(config: Any) -> None:
    """Hold a settings dataclass to what its fields declare.

    Raises:
        UserError: A value is not allowed; the message names its flag and what is.
    """
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if limits := field.metadata.get("between"):
            low, high, above, optional = limits
            if value is None and optional:
                continue
            if value is None or not (low < value if above else low <= value) or not value <= high:
                least = f"above {low:g}" if above else f"{low:g} or more"
                raise UserError(f"{flag} must be {least if high == math.inf else f'{low:g} to {high:g}'}, got {value}")
        choices = field.metadata.get("choice", (value,))
        if value not in choices:
            raise UserError(f"{flag} {value}: choose {' or '.join(choices)}")


def parse_flags(
    argv: Sequence[str],
    description: str,
    *configs: type,
    defaults: dict[str, Any] | None = None,
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Read flags for the fields of some config dataclasses.

    A field that is a dataclass itself stands for its own fields; where two fields share a name, the first one's flag
    counts for both.
    `--config FILE` (YAML or JSON, flag names and values) gives values that flags beat.

    Args:
        argv: The words of the command line.
        description: What the job does, for `--help`.
        *configs: Dataclasses with an `Attributes` section, the help of their flags.
        defaults: Values, by field name, that differ from those in the dataclasses.
        without: Names of fields that get no flag.

    Returns:
        Values by field name.

    Raises:
        UserError: A flag is given twice, or the config file is not usable.
        SystemExit: tyro refuses a flag (code 2) or has printed the help (code 0).
    """
    _refuse_repeated(argv)
    fields: dict[str, tuple[Any, Any]] = {}
    for config in configs:
        _collect(config, fields, defaults or {}, without)
    flags = dataclasses.make_dataclass(
        "Flags", [(name, type_, dataclasses.field(default=default)) for name, (type_, default) in fields.items()]
    )
    words = [*_config_words(peek_flag(argv, "config"), set(fields)), *argv]
    return vars(tyro.cli(flags, args=words, description=description))


def pick_config(config: type[Config], values: dict[str, Any]) -> Config:
    """Make a config dataclass, and those in its fields, from parsed values; what has none keeps its default."""
    given = {}
    for name, hint in _hints(config).items():
        if dataclasses.is_dataclass(hint):
            given[name] = pick_config(hint, values)
        elif name in values:
            given[name] = values[name]
    return config(**given)


def peek_flag(argv: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag before all flags are parsed, since defaults of others hang on it."""
    for i, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == f"--{flag}":
            return value if equals else next(iter(argv[i + 1 : i + 2]), None)
    config = peek_flag(argv, "config") if flag != "config" else None
    return str(_read_config(config)[flag]) if config and flag in _read_config(config) else None


def run_job(job: Callable[[Sequence[str]], None]) -> None:
    """Run a job with the words of the command line; a user's mistake becomes one line and exit code 2."""
    write_anywhere()
    try:
        job(sys.argv[1:])
    except UserError as error:
        print(f"{error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # what reads the output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted; what is done is kept, and the same --store or --output goes on from here", file=sys.stderr)
        sys.exit(130)
    finally:
        gc.freeze()  # or Python looks through all of torch for garbage once more before it ends, which takes a second


def _hints(config: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name."""
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def _collect(
    config: type, fields: dict[str, tuple[Any, Any]], defaults: dict[str, Any], without: Sequence[str]
) -> None:
    """Add type and default of each flag that a dataclass asks for, in order."""
    texts = {p.arg_name: " ".join(p.description.split()) for p in docstring_parser.parse(config.__doc__).params}
    usual = {field.name: field.default for field in dataclasses.fields(config)}
    facts = {field.name for field in dataclasses.fields(config) if field.metadata.get("fact")}
    hints = {name: hint for name, hint in _hints(config).items() if name not in facts.union(without)}
    for name, hint in hints.items():
        if not dataclasses.is_dataclass(hint) and name not in fields:
            fields[name] = Annotated[hint, tyro.conf.arg(help=texts[name])], defaults.get(name, usual[name])
    for hint in filter(dataclasses.is_dataclass, hints.values()):
        _collect(hint, fields, defaults, without)


def _refuse_repeated(argv: Sequence[str]) -> None:
    names = [word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} is given twice; name all its values after one {name}, as in {name} A B")


def _read_config(path: str) -> dict[str, Any]:
    try:
        with storage.open_read(path) as stream:
            values = yaml.safe_load(stream.read())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected flag names with values, such as `epochs: 20`")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _config_words(path: str | None, known: set[str]) -> list[str]:
    words: list[str] = []
    for name, value in (_read_config(path) if path else {}).items():
        if name not in known:
            raise UserError(f"--config {path}: no such flag: {name}; see --help")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        else:
            words += [f"--{name}", str(value)]
    return words
