"""`python -m harness.starter.generate --write|--check`: make `starter-500` from its seeds, or compare it with them.

The committed file was made with Python 3.11; other versions word some errors, which issues quote, differently.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

from harness.errors import UserError
from harness.starter.archive import ARCHIVE, load_archive, write_archive
from harness.starter.generate.rows import to_row
from harness.starter.generate.selection import select_instances


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when `--check` finds that the committed file is not what the generator makes now."""
    parser = argparse.ArgumentParser(prog="python -m harness.starter.generate", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write the file anew")
    action.add_argument("--check", action="store_true", help="write nothing; fail when the file is stale")
    options = parser.parse_args(arguments)
    rows = [to_row(instance) for instance in select_instances()]
    counts = ", ".join(f"{number} {part}" for part, number in Counter(row["part"] for row in rows).items())
    if options.write:
        write_archive(rows)
        print(f"{ARCHIVE.name}: wrote {counts}; {ARCHIVE.stat().st_size:,} bytes")
        return 0
    stale = [new or old for new, old in zip_longest(rows, load_archive()) if new != old]
    news = f"{len(stale)} stale, first {stale[0]['instance_id']}" if stale else "up to date"
    print(f"{ARCHIVE.name}: {counts}; {news}")
    return int(bool(stale))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"sweq: {error}", file=sys.stderr)
        sys.exit(2)
