"""The agent's work as a diff, taken by the harness rather than by the agent.

At the start the whole working tree is recorded as a git tree object, in a repository of our own outside `/testbed`:
HEAD at start, plus whatever the image left changed or untracked, so that set-up edits are no part of the diff. At the
end the working tree is recorded again and the two are compared. The agent's own `.git` is read once, at the start, and
never written: its commits, resets, staged files, hooks, filters and configuration have no influence, and neither has
the loss of `.git` itself.
"""

import shlex
from dataclasses import dataclass

from harness.errors import SandboxError
from harness.sandbox.base import TESTBED, ExecResult, Sandbox

DIFF_LIMIT = 8 << 20
"""Bytes: a larger diff is no patch that anybody would apply, and is recorded as empty with a note."""

FILE_LIMIT = 4 << 20
"""Bytes: larger files of the working tree are left out of the diff unless they are unchanged, with a note."""

_SHADOW = "/tmp/.sweq-snapshot"
_TIMEOUT = 300.0
_LOST = 65
# Bytes kept free for the diff, so that an agent that has filled its disk still ends with one.
_RESERVE = 3 * DIFF_LIMIT

# The environment and options shut out every configuration but the shadow repository's own.
_GIT = f"""
export GIT_DIR={_SHADOW} GIT_WORK_TREE={TESTBED} GIT_INDEX_FILE={_SHADOW}/index
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_ATTR_NOSYSTEM=1 LC_ALL=C
unset GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_EXTERNAL_DIFF GIT_PREFIX
git() {{
  command git -c core.excludesFile=/dev/null -c core.attributesFile=/dev/null -c core.hooksPath=/dev/null \\
    -c core.autocrlf=false -c core.safecrlf=false -c core.fsmonitor=false -c core.untrackedCache=false \\
    -c core.quotePath=true -c gc.auto=0 -c advice.addEmbeddedRepo=false -c advice.addIgnoredFile=false "$@"
}}
cd {TESTBED}
"""

# The pack holds the start tree's objects alone, copied from the packs of the agent's repository without recompression.
_TAKE = f"""
set -euo pipefail
rm -rf {_SHADOW}
source_git={TESTBED}/.git
objects=$(GIT_DIR=$source_git command git rev-parse --git-path objects)
exclude=$(GIT_DIR=$source_git command git rev-parse --git-path info/exclude)
index=$(GIT_DIR=$source_git command git rev-parse --git-path index)
command git -c init.defaultBranch=main init -q --bare {_SHADOW}
{_GIT}
printf '%s\\n' "$(realpath "$objects")" > {_SHADOW}/objects/info/alternates
if [ -f "$exclude" ]; then cp "$exclude" {_SHADOW}/info/exclude; fi
if [ -f "$index" ]; then cp "$index" {_SHADOW}/index; fi
@ADD@
tree=$(git write-tree)
git rev-list --objects --no-object-names "$tree" \\
  | git pack-objects -q --window=0 --compression=1 {_SHADOW}/objects/pack/pack > /dev/null
rm {_SHADOW}/objects/info/alternates
git cat-file -e "$tree"
head -c {_RESERVE} /dev/zero > {_SHADOW}/reserve
printf '\\nsweq-tree %s\\n' "$tree"
"""

# Tracked files first, because a repository that the agent made inside a tracked folder hides them from `add -A`.
_ADD = f"""
skip=()
while IFS= read -r -d '' path; do
  path=${{path#./}}
  tracked=$(git ls-files -- ":(literal)$path")
  if [ -n "$tracked" ] && git diff --quiet -- ":(literal)$path"; then continue; fi
  skip+=(":(top,exclude,literal)$path"); printf 'sweq-skip file of more than {FILE_LIMIT} bytes: %q\n' "$path"
done < <(find . -path ./.git -prune -o -type f -size +{FILE_LIMIT}c -print0)
git add -u --ignore-errors -- . ${{skip[@]+"${{skip[@]}}"}} || @FAILED@
while IFS= read -r -d '' path; do
  path=${{path#./}}; path=${{path%/.git}}
  skip+=(":(top,exclude,literal)$path"); printf 'sweq-skip untracked files of the repository inside: %q\n' "$path"
done < <(find . -mindepth 2 -name .git -print0 -prune)
git add -A --ignore-errors -- . ${{skip[@]+"${{skip[@]}}"}} || @FAILED@
"""

_DIFF = f"""
{_GIT}
git cat-file -e @TREE@ || exit {_LOST}
rm -f {_SHADOW}/index.lock {_SHADOW}/reserve
@ADD@
printf '%s' "@ATTRIBUTES@" > {_SHADOW}/info/attributes
set -e
git diff --cached --binary --full-index --no-color --no-renames --no-ext-diff --no-textconv \\
  --src-prefix=a/ --dst-prefix=b/ @TREE@ > {_SHADOW}/patch.diff
printf '\\nsweq-bytes %s\\n' "$(stat -c %s {_SHADOW}/patch.diff)"
"""


@dataclass(frozen=True)
class Diff:
    """`patch` applies to the tree at start with `git apply`; `notes` say what it does not hold, and why."""

    patch: str
    notes: tuple[str, ...] = ()


class Snapshot:
    """The state of `/testbed` at one moment, to compare a later state with. `skipped` is what it does not cover."""

    def __init__(self, sandbox: Sandbox, tree: str, skipped: tuple[str, ...]) -> None:
        self._sandbox = sandbox
        self._tree = tree
        self._skipped = skipped

    @classmethod
    def take(cls, sandbox: Sandbox) -> "Snapshot":
        """Record the tree; raises `SandboxError` where `/testbed` is no git repository or git is missing."""
        result = _run(sandbox, _TAKE.replace("@ADD@", _ADD).replace("@FAILED@", "exit 4"))
        tree = _fields(result, "sweq-tree")
        if result.exit_code != 0 or not tree:
            raise SandboxError(f"{TESTBED} cannot be recorded before the agent starts: {_last_line(result)}")
        return cls(sandbox, tree[-1], _fields(result, "sweq-skip"))

    def diff(self) -> Diff:
        """What changed since, untracked files included, ignored ones not; the agent's repository stays as it is.

        A change of bytes that are not UTF-8 turns the whole patch into binary hunks, because a prediction is a JSON
        string. Raises `SandboxError` where git fails.
        """
        try:
            return self._diff(attributes="")
        except UnicodeDecodeError:
            return self._diff(attributes="* -diff")

    def _diff(self, attributes: str) -> Diff:
        script = _DIFF.replace("@ADD@", _ADD).replace("@FAILED@", "echo sweq-skip files that git could not read")
        result = _run(self._sandbox, script.replace("@TREE@", self._tree).replace("@ATTRIBUTES@", attributes))
        if result.exit_code == _LOST:
            return Diff("", ("the record of the start was destroyed inside the sandbox",))
        size = _fields(result, "sweq-bytes")
        if result.exit_code != 0 or not size:
            raise SandboxError(f"the diff cannot be taken: {_last_line(result)}")
        notes = tuple(f"left out: {note}" for note in _fields(result, "sweq-skip") if note not in self._skipped)
        if int(size[-1]) > DIFF_LIMIT:
            return Diff("", (*notes, f"the diff has {size[-1]} bytes, more than the {DIFF_LIMIT} allowed"))
        return Diff(self._sandbox.read_file(f"{_SHADOW}/patch.diff").decode("utf-8"), notes)


def _run(sandbox: Sandbox, script: str) -> ExecResult:
    """A shell without start-up files, so that nothing the agent wrote into one has a say."""
    command = f"env -u BASH_ENV -u ENV bash --noprofile --norc -c {shlex.quote(script)}"
    result = sandbox.exec(command, timeout=_TIMEOUT)
    if result.timed_out:
        raise SandboxError(f"git did not finish within {_TIMEOUT:.0f} s in {TESTBED}")
    return result


def _fields(result: ExecResult, name: str) -> tuple[str, ...]:
    """What stands after `name` on the lines that start with it."""
    lines = (line.partition(" ") for line in result.output.splitlines())
    return tuple(value for key, _, value in lines if key == name)


def _last_line(result: ExecResult) -> str:
    lines = result.output.strip().splitlines()
    return f"exit code {result.exit_code}: {lines[-1] if lines else 'no output'}"
