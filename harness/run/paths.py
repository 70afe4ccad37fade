"""Every path of a run, in one place."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TaskPaths:
    """What one task (level, instance, repeat) leaves behind. `agent` and `task` mark its two finished steps."""

    root: Path

    @property
    def trajectory(self) -> Path:
        """Messages and usage, rewritten after every step of the agent."""
        return self.root / "trajectory.json"

    @property
    def patch(self) -> Path:
        """The diff that the harness took."""
        return self.root / "patch.diff"

    @property
    def agent(self) -> Path:
        """Written last by the agent stage: where it exists, only grading is left to do."""
        return self.root / "agent.json"

    @property
    def test_output(self) -> Path:
        """The log of the eval script, as it was judged."""
        return self.root / "test_output.txt"

    @property
    def report(self) -> Path:
        """The official report entry."""
        return self.root / "report.json"

    @property
    def tampering(self) -> Path:
        """What patch and trajectory show of meddling with the tests; beside the verdict, never part of it."""
        return self.root / "tamper.json"

    @property
    def error(self) -> Path:
        """The last attempt's traceback, where the machine failed."""
        return self.root / "error.txt"

    @property
    def task(self) -> Path:
        """The task's row; written last of all: where it exists, the task is done."""
        return self.root / "task.json"


@dataclass(frozen=True)
class LevelPaths:
    """The folder of one quantization level."""

    root: Path

    @property
    def log(self) -> Path:
        """What the level's server wrote to stdout and stderr."""
        return self.root / "server.log"

    def predictions(self, repeat: int = 0) -> Path:
        """Official predictions file; repeats beyond the first have files of their own, because ids are unique in it."""
        return self.root / ("predictions.jsonl" if repeat == 0 else f"predictions.{repeat}.jsonl")

    def task(self, instance_id: str, repeat: int = 0) -> TaskPaths:
        """Paths of one task of this level."""
        return TaskPaths(self.root / "instances" / instance_id / str(repeat))


@dataclass(frozen=True)
class RunPaths:
    """The folder of a run: `<results>/<run_id>`."""

    root: Path

    @property
    def record(self) -> Path:
        """The whole record of the run: configuration, hashes, identities, seeds, times."""
        return self.root / "run.json"

    @property
    def lock(self) -> Path:
        """Held by the process that works on the run."""
        return self.root / "lock"

    @property
    def results(self) -> Path:
        """One row per finished task."""
        return self.root / "results.parquet"

    @property
    def plot(self) -> Path:
        """Score against weights in memory, a point per level."""
        return self.root / "levels.png"

    @property
    def page(self) -> Path:
        """The self-contained report page."""
        return self.root / "report.html"

    @property
    def comparison(self) -> Path:
        """What `sweq compare` wrote last."""
        return self.root / "compare.json"

    def level(self, name: str) -> LevelPaths:
        """Paths of one level."""
        return LevelPaths(self.root / "levels" / name)
