"""What a process that serves from a GPU must be able to do without."""

import subprocess
import sys

SCRIPT = """
import sys
sys.modules.update(dict.fromkeys(["numba", "llvmlite", "xgrammar"]))  # None: importing one is an ImportError
from importlib.util import find_spec
import engine.llm, engine.kernels.cuda
from engine.kernels.ops import family
assert family("cuda").__name__ == ("engine.kernels.triton" if find_spec("triton") else "engine.kernels.cuda")
"""


def test_the_engine_serves_from_a_gpu_without_numba_and_xgrammar() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
