"""Install ser_ray and run its main job, small, in each interpreter from 3.11 to 3.13 that is there.

    python tests/other_pythons.py

Interpreters are those that `uv python list --no-python-downloads` finds; nothing is downloaded but packages.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.11", "3.12", "3.13")


def main() -> None:
    """Try each version; exit code 1 if one that is there fails."""
    failed = False
    for version in VERSIONS:
        found = subprocess.run(
            ["uv", "python", "find", "--no-python-downloads", "--system", version], capture_output=True, text=True
        )
        if found.returncode:
            print(f"{version}: not there")
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            bin_ = Path(folder) / "venv" / "bin"
            steps = [
                [found.stdout.strip(), "-m", "venv", bin_.parent],
                [bin_ / "pip", "install", "-q", "-c", ROOT / "constraints.txt", "-e", ROOT],
                [bin_ / "ser-ray", "train", "--clips", "120", "--epochs", "3", "--output", "run"],
            ]
            ended = all(subprocess.run(step, cwd=folder).returncode == 0 for step in steps)
        print(f"{version}: {'runs' if ended else 'FAILS'}, {time.monotonic() - started:.0f} s")
        failed |= not ended
    sys.exit(failed)


if __name__ == "__main__":
    main()
