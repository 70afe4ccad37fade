"""Run a command that must not outlive the harness: `python -m harness.guard COMMAND...`.

The harness starts the guard in a session of its own and holds the other end of its stdin. However the harness ends,
kill -9 included, the kernel closes that end, and the guard kills its own process group, the command with all its
children. A parent-death signal would not do: it follows the thread that forked, not the process.
"""

import os
import signal
import subprocess
import sys
import threading


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Run the command to its end and return its exit status (128 + signal number where a signal ended it)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
