"""The official order of attempts at a patch, each on a tree from which the one before was taken out: real sandboxes."""

import pytest

from harness.grading.patch import apply_patch
from harness.instances import load_instances
from harness.sandbox.base import Sandbox
from harness.sandbox.namespace import NamespaceFactory

pytestmark = [pytest.mark.namespace, pytest.mark.slow]

INSTANCE = "sweq__slugtext-1"
FILE = "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n"


def hunk(path: str, *, context: str = "three", old: str = "four", new: str = "FOUR") -> str:
    return f"--- a/{path}\n+++ b/{path}\n@@ -2,5 +2,5 @@\n two\n {context}\n-{old}\n+{new}\n five\n six\n"


@pytest.fixture(scope="module")
def factory() -> NamespaceFactory:
    return NamespaceFactory()


@pytest.fixture
def box(factory: NamespaceFactory):
    with factory.create(load_instances("starter", [INSTANCE])[0]) as sandbox:
        for name in ("a.txt", "b.txt"):
            sandbox.write_file(name, FILE.encode())
        assert sandbox.exec("git add -A && git commit -qm files", timeout=30).exit_code == 0
        yield sandbox


def read(box: Sandbox, name: str) -> str:
    return box.read_file(name).decode()


def test_a_clean_patch_and_one_without_its_last_newline(box: Sandbox) -> None:
    assert apply_patch(box, hunk("a.txt").rstrip("\n")).applied
    assert read(box, "a.txt") == FILE.replace("four", "FOUR")


def test_context_that_git_refuses_goes_through_with_fuzz(box: Sandbox) -> None:
    done = apply_patch(box, hunk("a.txt", context="drei"))
    assert done.applied
    assert "fuzz" in done.output
    assert read(box, "a.txt") == FILE.replace("four", "FOUR")


def test_what_one_attempt_left_is_gone_before_the_next(box: Sandbox) -> None:
    """`--reject` puts in a.txt's half and leaves b.txt.rej; only then does fuzz put in both, once."""
    done = apply_patch(box, hunk("a.txt") + hunk("b.txt", context="drei"))
    assert done.applied
    assert read(box, "a.txt") == read(box, "b.txt") == FILE.replace("four", "FOUR")
    assert box.exec("ls", timeout=30).output.count(".rej") == 0


def test_a_patch_that_is_in_already_counts_as_applied(box: Sandbox) -> None:
    box.write_file("a.txt", FILE.replace("four", "FOUR").encode())
    assert box.exec("git commit -qam in", timeout=30).exit_code == 0
    assert apply_patch(box, hunk("a.txt")).applied
    assert read(box, "a.txt") == FILE.replace("four", "FOUR")


def test_a_hopeless_patch_is_not_applied(box: Sandbox) -> None:
    done = apply_patch(box, hunk("a.txt", context="drei", old="vier"))
    assert not done.applied
    assert "FAILED" in done.output
