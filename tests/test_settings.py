import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, fields

import pytest

from ser_ray.base.errors import UserError
from ser_ray.base.settings import between, check_settings, choice, parse_flags, peek_flag, pick_config, run_job
from ser_ray.experiment.experiment import Experiment
from ser_ray.experiment.protocols import SplitConfig
from ser_ray.features.recipe import FeaturizeConfig
from ser_ray.features.spec import find_features
from ser_ray.networks.spec import NETWORKS
from ser_ray.search.space import TuneConfig
from ser_ray.training.settings import Compute, FrameAugmentConfig, TrainConfig


@dataclass(frozen=True)
class Net:
    """A network.

    Attributes:
        width: Channels.
        rate: Step size, per step.
        seed: Of weights.
        names: Some names.
    """

    width: int = 8
    rate: float = 0.1
    seed: int = 0
    names: tuple[str, ...] = ("x",)


@dataclass(frozen=True)
class Flags:
    """Flags of a job.

    Attributes:
        net: Has its own flags.
        seed: Of everything.
        config: A file.
        features: Which kind.
    """

    net: Net = Net()
    seed: int = 1
    config: str | None = None
    features: str = "summary"


def parse(*argv):
    return parse_flags(argv, "A job.", Flags)


def test_flags_are_flat_and_shared_fields_stand_once():
    values = parse("--width", "3", "--names", "a", "b", "--features", "log_mel")
    assert values == {
        **{"seed": 1, "config": None, "features": "log_mel"},
        **{"width": 3, "rate": 0.1, "names": ("a", "b")},
    }
    assert pick_config(Flags, {**values, "rate": 1.0}) == Flags(Net(3, 1.0, 1, ("a", "b")), 1, None, "log_mel")


@pytest.mark.parametrize(
    ("name", "write"), [("c.json", json.dumps), ("c.yaml", lambda d: "\n".join(f"{k}: {v}" for k, v in d.items()))]
)
def test_a_flag_beats_the_config_file(tmp_path, name, write):
    path = tmp_path / name
    path.write_text(write({"width": 5, "names": ["p", "q"], "seed": 7}))
    values = parse("--config", str(path), "--width", "6")
    assert (values["width"], values["names"], values["seed"]) == (6, ("p", "q"), 7)
    assert peek_flag(["--config", str(path)], "seed") == "7"
    assert peek_flag([f"--config={path}", "--seed=8"], "seed") == "8"


@pytest.mark.parametrize("text", ["widht: 3", "- 1\n- 2", "{", ""])
def test_a_useless_config_file_is_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="--config"):
        parse("--config", str(path))


def test_a_flag_given_twice_is_an_error_not_a_loss():
    with pytest.raises(UserError, match="--names is given twice"):
        parse("--names", "a", "--names", "b")


@pytest.mark.parametrize("argv", [["--widht", "3"], ["--width", "three"], ["stray"]])
def test_what_tyro_refuses_ends_with_code_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "Step size, per step." in text and "Which kind." in text and "0.1" in text


def test_a_users_mistake_is_one_line_and_code_2(capsys):
    def job(argv):
        raise UserError("no such thing; name another")

    with pytest.raises(SystemExit) as stop:
        run_job(job)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "no such thing; name another\n"


@pytest.mark.parametrize("say", ["print", "say"])
def test_output_that_nobody_reads_to_its_end_is_no_error(say):
    code = "from ser_ray.base.settings import run_job; from ser_ray.base.console import say; "
    code += f"run_job(lambda argv: [{say}('x' * 1000) for _ in range(1000)])"
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "x" * 1000 + "\n"
    job.stdout.close()
    assert (job.stderr.read(), job.wait()) == ("", 141)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"width": 0}, "--width must be 1 to 9, got 0"),
        ({"width": 10}, "--width must be 1 to 9, got 10"),
        ({"least_s": -1}, "--least-s must be 0 or more, got -1"),
        ({"rate": 0}, "--rate must be above 0, got 0"),
        ({"rate": None}, "--rate must be above 0, got None"),
        ({"form": "c"}, "--form c: choose a or b"),
    ],
)
def test_a_field_says_what_it_allows(values, says):
    @dataclass(frozen=True)
    class Bounded:
        width: int = between(3, 1, 9)
        least_s: float | None = between(1.0, 0, optional=True)
        rate: float = between(0.1, 0, above=True)
        form: str = choice("a", "b")

    check_settings(Bounded(1, None, 1e-9, "b"))
    check_settings(Bounded())
    with pytest.raises(UserError) as refused:
        check_settings(Bounded(**values))
    assert str(refused.value) == says


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_no_two_settings_share_a_flag_but_the_seed(network):
    changes = (FrameAugmentConfig,) if network.changes_frames else ()
    configs = (Experiment, SplitConfig, network, TrainConfig, *changes, Compute, FeaturizeConfig, TuneConfig)
    names = Counter(field.name for config in (*configs, find_features(network.features)) for field in fields(config))
    assert {name for name, count in names.items() if count > 1} == {"seed"}
