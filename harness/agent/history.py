"""The future of a repository is removed before an agent sees it: what HEAD does not reach may hold the answer.

Images are made from clones, and a clone knows later commits: through remote branches, tags, reflogs, stashes, replace
references, other worktrees, borrowed object stores, or merely as objects that lie in a pack. All of it goes; tags and
replace references that point into HEAD's own past stay, because version numbers are derived from tags. The object
store is rewritten only where it holds an object too many, and is counted again afterwards.
"""

from dataclasses import dataclass

from harness.errors import SandboxError
from harness.sandbox.base import TESTBED, Sandbox

_TIMEOUT = 600.0

# Replacements would let one commit stand for another while histories are compared.
_FORGET = f"""
set -euo pipefail
export GIT_NO_REPLACE_OBJECTS=1 LC_ALL=C
git() {{ command git -c safe.directory={TESTBED} -c core.hooksPath=/dev/null -c gc.auto=0 "$@"; }}
cd {TESTBED}
store=$(git rev-parse --absolute-git-dir)
if [ "$store" != "$(realpath "$(git rev-parse --git-common-dir)")" ]; then echo 'a linked worktree'; exit 3; fi
head=$(git rev-parse --verify 'HEAD^{{commit}}')
branch=$(git symbolic-ref -q HEAD || true)

for remote in $(git remote); do git config --remove-section "remote.$remote"; done
git config --get-regexp --name-only '^branch\\..*\\.(remote|merge|pushremote)$' | sort -u | while IFS= read -r key; do
  git config --unset-all "$key"
done || true
rm -rf "$store"/logs "$store"/worktrees "$store"/rr-cache "$store"/lost-found "$store"/info/refs
find "$store" -maxdepth 1 -type f -name '*_HEAD' -delete

past=$(git rev-list "$head" | sort)
git for-each-ref --format='%(refname) %(if)%(*objectname)%(then)%(*objectname)%(else)%(objectname)%(end)' \\
  | while read -r name target; do
  case $name in
    "$branch") continue ;;
    refs/tags/*|refs/replace/*) if grep -qxF "$target" <<< "$past"; then continue; fi ;;
  esac
  printf 'option no-deref\\ndelete %s\\n' "$name"
done | git update-ref --stdin

count_all() {{ git cat-file --batch-all-objects --unordered --batch-check='%(objectname)' | sort -u | wc -l; }}
reached=$(git rev-list --objects --no-object-names --indexed-objects --all HEAD | sort -u | wc -l)
before=$(count_all)
if [ "$before" -ne "$reached" ] || [ -e "$store/objects/info/alternates" ]; then
  find "$store/objects/pack" -type f \\( -name '*.keep' -o -name '*.bitmap' -o -name 'multi-pack-index*' \\) -delete
  rm -rf "$store"/objects/info/commit-graph "$store"/objects/info/commit-graphs "$store"/objects/info/packs
  # Packed are all objects that references, HEAD and the index reach, with their deltas as they are.
  git repack -q -a -d --window=0
  rm -f "$store/objects/info/alternates"
  find "$store/objects" -mindepth 2 -maxdepth 2 -type f -path "$store/objects/??/*" -delete
fi
after=$(count_all)
later=$(git rev-list --all --reflog --not "$head" | wc -l)
printf '\\nsweq-history %s %s %s %s %s\\n' "$head" "$before" "$reached" "$after" "$later"
"""


@dataclass(frozen=True)
class History:
    """`head` is the commit that the work starts from; `removed` counts objects that it did not reach."""

    head: str
    removed: int


def forget_future(sandbox: Sandbox) -> History:
    """Remove from `/testbed`'s repository all that HEAD does not reach; files and index stay as they are.

    Raises `SandboxError` where git fails, or where an object or commit is left that HEAD does not reach.
    """
    result = sandbox.exec(_FORGET, timeout=_TIMEOUT)
    lines = [line.split()[1:] for line in result.output.splitlines() if line.startswith("sweq-history ")]
    if result.exit_code != 0 or not lines:
        said = [line for line in result.output.splitlines() if line.strip()] or ["no message"]
        raise SandboxError(f"{TESTBED}: later history cannot be removed: {said[-1].strip()}")
    head, (before, reached, after, later) = lines[-1][0], map(int, lines[-1][1:])
    if after != reached or later:
        raise SandboxError(
            f"{TESTBED}: {after - reached} objects and {later} commits that HEAD does not reach are still there"
        )
    return History(head, before - after)
