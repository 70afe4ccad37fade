import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[3] / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_sixty_streams_at_once_get_every_token_once_and_leave_nothing() -> None:
    command = [sys.executable, str(SOAK), "--streams", "60", "--requests", "8", "--tokens", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    table = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert table["streams with a wrong, lost or doubled token"].strip() == "0"
    assert "blocks_used 0" in table["in use in the end"]
