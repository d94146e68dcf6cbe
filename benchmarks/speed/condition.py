r"""What the domain check costs: measuring the condition of sound, alone and as a share of a prediction on one core.

python benchmarks/speed/condition.py --run runs/first --minutes 10
"""

import argparse
import io
import time

import numpy as np
import soundfile as sf
import torch

from ser_ray.base.console import say, show_table
from ser_ray.model.answers import answer_windows
from ser_ray.model.files import load_model
from ser_ray.model.windows import Hearing, WindowConfig
from ser_ray.speech.condition import Meter, measure

REPEATS = 5


def fastest(work, repeats: int) -> float:
    """Return the fewest seconds that some work took."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a finished run")
    parser.add_argument("--minutes", type=float, default=10, help="length of the recording")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    model, seconds = load_model(flags.run), 60 * flags.minutes
    rows = []
    for rate in (16_000, 48_000):
        time_T = np.arange(int(seconds * rate)) / rate
        noise_T = np.random.default_rng(0).standard_normal(len(time_T))
        sound_T = (noise_T * (0.05 + 0.05 * np.sin(time_T))).astype(np.float32)
        file = io.BytesIO()
        sf.write(file, sound_T, rate, format="WAV", subtype="PCM_16")

        def predict(file: io.BytesIO = file) -> None:
            file.seek(0)
            answer_windows([model], Hearing(file, WindowConfig(), model.features))

        whole_s = fastest(predict, 2)
        measured, Meter.feed = Meter.feed, lambda self, signal_T: None
        without_s = fastest(predict, 2)
        Meter.feed = measured
        alone_s = fastest(lambda sound_T=sound_T, rate=rate: measure(sound_T, rate), REPEATS)
        rows.append(
            {
                "rate": rate,
                "prediction": f"{seconds / whole_s:.0f} x real time",
                "without": f"{seconds / without_s:.0f} x",
                "measuring alone": f"{seconds / alone_s:.0f} x",
                "its share": f"{100 * alone_s / whole_s:.1f} %",
            }
        )
    show_table(f"{flags.minutes:g} minutes, {model.network.name}, one core", rows)
    say("The fastest of several times each; x: times as fast as real time")


if __name__ == "__main__":
    main()
