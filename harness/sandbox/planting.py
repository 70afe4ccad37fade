"""What a sandbox without an image starts from: the instance's base tree as a git repository, in one archive."""

import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

from harness.errors import UserError
from harness.instances import Instance
from harness.sandbox.base import TESTBED
from harness.tree import commit_tree, write_tree

HOME = "/home"
_GITCONFIG = "[user]\n\tname = sweq\n\temail = sweq@localhost\n"


def pack_tree(instance: Instance, folder: Path) -> bytes:
    """The instance's tree, committed, and the sandbox's git identity as one tar archive with paths from the root.

    `folder`, which does not exist yet, is where the tree is made. Raises `UserError` for a tree that is missing or
    gives another commit than the instance says.
    """
    if isinstance(instance.tree, Mapping):
        write_tree(instance.tree, folder)
    elif instance.tree is not None and instance.tree.is_dir():
        shutil.copytree(instance.tree, folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".git"))
    else:
        raise UserError(f"{instance.instance_id}: no folder at {instance.tree}: `tree` must be its base tree")
    commit = commit_tree(folder)
    if commit != instance.base_commit:
        source = "its tree" if isinstance(instance.tree, Mapping) else instance.tree
        raise UserError(
            f"{instance.instance_id}: {source} gives commit {commit}, but base_commit is {instance.base_commit}"
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=TESTBED[1:], filter=_as_root)
        entry = tarfile.TarInfo(f"{HOME[1:]}/.gitconfig")
        entry.size = len(_GITCONFIG)
        archive.addfile(entry, io.BytesIO(_GITCONFIG.encode()))
    return buffer.getvalue()


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
