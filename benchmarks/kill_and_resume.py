"""Kill a run with SIGKILL at random points and resume it: `python benchmarks/kill_and_resume.py --kills 50`.

Exit status 1, with what was wrong, when a task is lost or scored twice, a file is torn, or a process is left behind.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "harness" / "run")]

from scripted_runs import IDLE, SOLVED, WRONG, KillDrill, write_config  # noqa: E402

OUTCOMES = {SOLVED: "resolved", WRONG: "unresolved", IDLE: "empty_patch"}


def main() -> int:
    """Run the drill and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=6, help="repeats of three instances at two levels")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sweq-kill-") as folder:
        config = write_config(Path(folder), OUTCOMES, repeats=arguments.repeats)
        drill = KillDrill(config, OUTCOMES, arguments.repeats, arguments.seed, lambda line: print(line, flush=True))
        try:
            drill.run(arguments.kills)
        except AssertionError as error:
            print(f"FAILED after {sum(drill.killed.values())} kills: {error}")
            return 1
    tasks = arguments.repeats * len(OUTCOMES) * 2
    seconds = time.monotonic() - start
    where = ", ".join(f"{count} {name}" for name, count in drill.killed.items())
    print(f"{arguments.kills} kills ({where}) in {seconds:.0f} s: {tasks} tasks, each with one row; no torn file,")
    print("no step done twice, no process left, trajectories whole, predictions equal to the patches")
    return 0


if __name__ == "__main__":
    sys.exit(main())
