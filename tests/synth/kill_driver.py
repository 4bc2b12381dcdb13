"""Runs a corpus in child processes and kills them: `kill_driver.py OUT URL SEEDS KILLS SEED`.

The children are forks of this process, so that each begins at once; each but the last is killed at
a random instant after its start. Prints how many kills came before the corpus was done.
"""

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from phikit import synth_runs
from phikit.verify import choice, code, exact, math, number  # noqa: F401 (imported before forking)

TYPES = ("school-word-problem", "excerpt-tags", "reading-summary", "code-explain", "ask-back")


def work(out: Path, url: str, seeds: Path) -> None:
    settings = ("teacher.in_flight=8", "teacher.pause=0.01", "teacher.timeout=1.5")
    job = synth_runs.Job(TYPES, (seeds,), url, "m", 150, settings=settings)
    with contextlib.redirect_stdout(sys.stderr):
        synth_runs.run(job, out)


def main() -> None:
    out, url, seeds = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    rng, killed = random.Random(int(sys.argv[5])), 0
    for _ in range(int(sys.argv[4])):
        child = os.fork()
        if not child:
            work(out, url, seeds)
            os._exit(0)
        time.sleep(rng.uniform(0.05, 0.3))
        if not (out / "stage.json").exists():
            killed += 1
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    work(out, url, seeds)
    print(killed)


if __name__ == "__main__":
    main()
