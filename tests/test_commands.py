"""The command `ser-ray` as people meet it: its help, its jobs, completion, on narrow terminals and in log files."""

import contextlib
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import ser_ray
from ser_ray.base.settings import run_job
from ser_ray.commands.main import JOBS, find_job, main

ROOT = Path(__file__).parent.parent
MOST = {
    "train": {"--data", "--output", "--model", "--corpus", "--epochs"},
    "tune": {"--data", "--output", "--model", "--corpus", "--epochs"},
    "featurize": {"--data", "--store", "--features", "--augment", "--device"},
    "evaluate": {"--run", "--data", "--output", "--compare", "--embed-audio"},
    "predict": {"--run", "--input", "--output", "--channels", "--window-s"},
    "export": {"--run", "--output", "--input-rate"},
}


def ser_ray_says(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/ser-ray", *words])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_is_one_screen_and_names_every_job(monkeypatch, capsys, words):
    code, out, err = ser_ray_says(monkeypatch, capsys, *words)
    lines = out.splitlines()
    assert (code, err) == (0, "") and len(lines) <= 24 and max(map(len, lines)) <= 80, out
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in JOBS)


def test_help_comes_at_once_since_nothing_heavy_is_imported():
    code = "import sys; sys.argv = ['ser-ray', '--help']; from ser_ray.commands.main import main; main(); "
    code += "print({'torch', 'ray', 'pandas', 'matplotlib', 'librosa'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_the_version_is_told_and_a_job_that_is_none_costs_one_line(monkeypatch, capsys):
    assert ser_ray_says(monkeypatch, capsys, "--version") == (0, f"{ser_ray.__version__}\n", "")
    code, out, err = ser_ray_says(monkeypatch, capsys, "trian")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "choose train, featurize" in err
    code, _, err = ser_ray_says(monkeypatch, capsys, "evaluate")
    assert (code, err) == (2, "name one of --run RUN and --compare RUN RUN\n")


def test_a_job_has_the_same_flags_by_the_command_and_as_a_file(monkeypatch, capsys):
    assert set(JOBS) == {path.stem for path in (ROOT / "jobs").glob("*.py")}
    for name in JOBS:
        code, out, _ = ser_ray_says(monkeypatch, capsys, name, "--help")
        assert code == 0 and f"usage: ser-ray {name}" in out
        assert len((ROOT / "jobs" / f"{name}.py").read_text().splitlines()) < 15
        monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", "--help"])
        with pytest.raises(SystemExit):
            run_job(find_job(name))
        assert capsys.readouterr().out == out.replace(f"usage: ser-ray {name}", f"usage: jobs/{name}.py")


@pytest.mark.parametrize("name", sorted(MOST))
def test_help_of_a_job_names_what_matters_first_and_groups_the_rest(monkeypatch, capsys, name):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = ser_ray_says(monkeypatch, capsys, name, "--help")
    assert max(map(len, out.splitlines())) <= 80, out
    titles = re.findall(r"^[╭ ]─? ?([a-z ]+) options\b", out, re.MULTILINE)
    assert titles[0] == "most used" and titles[-1] in ("where to run", "features") and "other" not in titles
    if name in ("train", "tune"):
        wanted = ["most used", "data", "features", "network", "training", "search", "where to run"]
        assert titles == [title for title in wanted if name == "tune" or title != "search"]
    first = out.split("most used options")[1].split(f"{titles[1]} options")[0]
    assert set(re.findall(r"^[│ ] (--[\w-]+)", first, re.MULTILINE)) == MOST[name]


def test_help_in_a_log_file_without_utf_8_keeps_every_line():
    env = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80", "PYTHONUTF8": "0"}
    command = [sys.executable, ROOT / "jobs" / "predict.py", "--help"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "--abstain-below" in done.stdout
    assert done.stdout.isascii() and "?" not in done.stdout


def test_a_shell_completes_jobs_and_flags(monkeypatch, capsys):
    code, out, err = ser_ray_says(monkeypatch, capsys, "--tyro-print-completion", "bash")
    assert (code, err) == (0, "")
    offered = re.search(r"complete .*?-F (\S+)", out)[1]
    for words, wanted in (("tu", "tune"), ("train --speaker", "--speaker-norm"), ("predict --cs", "--csv")):
        asks = f"COMP_WORDS=(ser-ray {words}); COMP_CWORD={words.count(' ') + 1}; {offered}; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{out}\n{asks}"], capture_output=True, text=True)
        assert done.stdout.split() == [wanted], done.stderr


WIDE = """
import sys
from ser_ray.base.console import show_table, write_anywhere
write_anywhere()
row = {"corpus": "name_" * 9, "found": 123456, "featurized": 1, "rejected": 2, "reason": "why " * 30, "uar": 0.5}
show_table("Clips × folds", [row])
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_wide_table_is_whole_in_a_log_file(encoding):
    done = subprocess.run(
        [sys.executable, "-c", WIDE], env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True
    )
    lines = done.stdout.decode(encoding).splitlines()
    assert done.stderr == b"" and "name_" * 9 in lines[4] and "…" not in "".join(lines)
    assert "why " * 29 in lines[4] and "?" not in "".join(lines)


def test_a_wide_table_is_folded_not_cut_on_a_terminal_of_80_columns():
    terminal, other = os.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "dumb"}
    process = subprocess.Popen([sys.executable, "-c", WIDE], env=env, stdout=other, stderr=other)
    os.close(other)
    said = b""
    with contextlib.suppress(OSError):  # which is how the end of a terminal reads
        while part := os.read(terminal, 65536):
            said += part
    assert process.wait() == 0
    lines = re.sub(r"\x1b\[[\d;]*m", "", said.decode()).splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in said.decode()
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]
    assert "".join(row[0] for row in cells if len(row) == 6).endswith("name_" * 9)
    assert " ".join(row[4] for row in cells if len(row) == 6).count("why") == 30
