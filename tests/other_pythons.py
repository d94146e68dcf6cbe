"""Install ser_ray and run its main job, small, in interpreters of other versions.

    python tests/other_pythons.py                                      # those that uv finds here, 3.11 to 3.13
    python tests/other_pythons.py ~/.pyenv/versions/3.13.0/bin/python  # or those that are named

No interpreter is downloaded, only packages.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.11", "3.12", "3.13")


def main() -> None:
    """Try each interpreter; exit code 1 if one fails."""
    results = [try_out(python) for python in sys.argv[1:] or filter(None, map(find, VERSIONS))]
    sys.exit(not all(results))


def find(version: str) -> str:
    """Return the path of an interpreter, or an empty text where there is none."""
    command = ["uv", "python", "find", "--no-python-downloads", "--system", version]
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    if not found:
        print(f"{version}: not there")
    return found


def try_out(python: str) -> bool:
    """Tell whether installing and the main job end well."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        programs = Path(folder) / "venv" / "bin"
        for step in (
            [python, "-m", "venv", programs.parent],
            [programs / "pip", "install", "-q", "-c", ROOT / "constraints.txt", "-e", ROOT],
            [programs / "ser-ray", "train", "--clips", "120", "--epochs", "3", "--output", "run"],
        ):
            started = time.monotonic()
            if subprocess.run(step, cwd=folder).returncode:
                print(f"{python}: FAILS at {' '.join(map(str, step))}", flush=True)
                return False
            times.append(time.monotonic() - started)
    print(f"{python}: runs; install {times[1]:.0f} s, main job {times[2]:.0f} s", flush=True)
    return True


if __name__ == "__main__":
    main()
