"""Which images we brought to a daemon: a small file that survives any end of the process.

An image is entered *before* it is brought, so that one that arrived in the last instant is known as ours; one that was
here already is never entered, and so never removed. One process at a time owns the file.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import replace_file

Entry = dict[str, Any]


def default_path(daemon_id: str) -> Path:
    """The ledger of a daemon: `$XDG_STATE_HOME/sweq/images-<id>.json` (XDG base directory specification)."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    name = "".join(letter for letter in daemon_id if letter.isalnum())[:24]
    return state / "sweq" / f"images-{name or 'daemon'}.json"


def read_entries(path: Path) -> dict[str, Entry]:
    """The entries by image, least recently used first; `UserError` for a file that is no ledger."""
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
        return {str(image): dict(entry) for image, entry in data["images"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a list of images that sweq wrote; move it away, its images then stay") from None


class Ledger:
    """The open ledger. `entries` may only be changed through its methods, each of which is on disk when it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = path.with_suffix(".lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(
                f"{path}: another sweq manages the images of this daemon; wait for it, or use images.source=local"
            ) from None
        self._closed = False
        try:
            self.entries = read_entries(path)
        except UserError:
            self._lock.close()
            raise

    def note(self, image: str, **fields: Any) -> None:
        """Put `fields` into the entry of `image`, which becomes the most recently used."""
        self.entries[image] = {**self.entries.pop(image, {}), **fields}
        self._save()

    def drop(self, image: str) -> None:
        """The image is not ours, or not here, any more."""
        if self.entries.pop(image, None) is not None:
            self._save()

    def close(self) -> None:
        """Let another process have it; changes from then on are lost, which an entry made in time survives."""
        self._closed = True
        self._lock.close()

    def _save(self) -> None:
        if self._closed:
            return
        replace_file(self.path, (json.dumps({"images": self.entries}, indent=1) + "\n").encode())
