"""Agents and patches that mean harm end as ordinary outcomes of their own tasks, and touch nothing else."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from agent_doubles import ScriptedModel, call, make_instance, say

from harness.agent.external import ExternalAgent
from harness.agent.loop import Agent
from harness.config import AgentConfig, ExternalConfig, SamplingConfig
from harness.errors import UserError
from harness.grading.evaluate import evaluate
from harness.sandbox.docker import DockerFactory, connect
from harness.sandbox.images.sdist import build_base
from harness.sandbox.limits import Limits
from harness.sandbox.namespace import NamespaceFactory, probe
from harness.tree import commit_tree

pytestmark = pytest.mark.timeout(180)

LIMITS = Limits(memory_bytes=1 << 30, processes=64, disk_bytes=128 << 20, layer_bytes=128 << 20, file_bytes=96 << 20)
EVALUATION = """#!/bin/bash
set -uxo pipefail
cd /testbed
: '>>>>> Start Test Output'
python3 -c 'import module; assert module.VALUE == 2' && echo PASSED fixed || echo FAILED fixed
: '>>>>> End Test Output'
"""
FIX = "echo VALUE = 2 > module.py"
HARM = {
    "fork bomb": "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 7411",
    "disk filler": "for n in $(seq 9); do head -c 60M /dev/zero > /tmp/$n; sleep 0.3; done",
    "large output": "head -c 1G /dev/zero",
    "daemon": "setsid nohup sh -c 'while :; do sleep 7412; done' > /dev/null 2>&1 &",
    "kill process 1": "kill -9 1; kill 1; kill -9 -1; sleep 7413",
    "links out": "ln -s /etc/passwd passwd; echo sweq-evil >> passwd; ln -s / out; echo x > out/sweq-evil",
    "large binary file": "head -c 50M /dev/urandom > large.bin; head -c 1000 /dev/urandom > small.bin",
    "no repository": "rm -rf .git /tmp/* /var/tmp/*; git init -q; git config core.fsmonitor 'sleep 7414'",
}
ESCAPE = """diff --git a/../../tmp/sweq-evil b/../../tmp/sweq-evil
new file mode 100644
--- /dev/null
+++ b/../../tmp/sweq-evil
@@ -0,0 +1 @@
+evil
"""
LINK = """diff --git a/link b/link
new file mode 120000
--- /dev/null
+++ b/link
@@ -0,0 +1 @@
+/tmp
\\ No newline at end of file
diff --git a/link/sweq-evil b/link/sweq-evil
new file mode 100644
--- /dev/null
+++ b/link/sweq-evil
@@ -0,0 +1 @@
+evil
"""
LINE = "+" + "x" * 99 + "\n"
LARGE = f"""diff --git a/large.txt b/large.txt
new file mode 100644
--- /dev/null
+++ b/large.txt
@@ -0,0 +1,{500_000} @@
{LINE * 500_000}"""
PATCHES = {
    "paths out": (ESCAPE, {"patch_failed"}),
    "link out": (LINK, {"patch_failed"}),
    "noise": ("\x00\x01\udcff\udcfe" * 1000, {"patch_failed"}),
    "50 MB": (LARGE, {"unresolved"}),
}


class PouredFactory:
    """The base image, with the tree that the namespace sandbox would bring along."""

    name = "docker"

    def __init__(self):
        self._factory = DockerFactory(lambda instance: build_base(), LIMITS, run_id="tests-hostile")

    def create(self, instance):
        sandbox = self._factory.create(instance)
        sandbox.write_file("module.py", b"VALUE = 1\n")
        identity = "git config --global user.name a && git config --global user.email a"
        done = sandbox.exec(f"git init -q && {identity} && git add -A && git commit -qm base", timeout=60)
        assert done.exit_code == 0, done.output
        return sandbox


def make_docker_factory():
    try:
        connect().close()
    except UserError as error:
        pytest.skip(str(error))
    return PouredFactory()


def make_namespace_factory():
    if reason := probe():
        pytest.skip(reason)
    return NamespaceFactory(LIMITS)


@pytest.fixture(
    params=[
        pytest.param(make_namespace_factory, id="namespace", marks=pytest.mark.namespace),
        pytest.param(make_docker_factory, id="docker", marks=pytest.mark.docker),
    ]
)
def factory(request):
    return request.param()


@pytest.fixture
def instance(tmp_path):
    for name in ("tree", "copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.py").write_text("VALUE = 1\n")
    return make_instance(
        tree=tmp_path / "tree", base_commit=commit_tree(tmp_path / "copy"), eval_script=EVALUATION,
        fail_to_pass=("fixed",), pass_to_pass=(), patch="", test_patch="",
    )  # fmt: skip


def host_processes():
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if "sleep 741" in line]


def test_harm_stays_within_its_own_task(factory, instance, tmp_path):
    passwd, sandboxes = Path("/etc/passwd").read_bytes(), set(os.listdir("/tmp"))

    def work(name, commands):
        """The agent's commands, the fix, submission; then grading. Returns (result, verdict)."""
        replies = [call(("bash", {"command": command})) for command in (*commands, FIX)]
        agent = Agent(ScriptedModel(*replies, call(("submit", "{}"))), AgentConfig(command_timeout=5), SamplingConfig())
        path = tmp_path / f"{name}.json"
        with factory.create(instance) as sandbox:
            result = agent.run(instance, sandbox, seed=1, trajectory_path=path)
        return result, evaluate(instance, result.patch, factory, timeout=60).verdict

    with ThreadPoolExecutor(4) as pool:
        innocent = pool.submit(work, "innocent", ["sleep 1"] * 8)
        harmed = {name: pool.submit(work, name, [command]) for name, command in HARM.items()}
        judged = {
            name: pool.submit(evaluate, instance, patch, factory, timeout=60) for name, (patch, _) in PATCHES.items()
        }
    result, verdict = innocent.result()
    assert (result.submitted, verdict.status) == (True, "resolved")
    for name, done in harmed.items():
        result, verdict = done.result()
        assert result.submitted, name
        # What cost an agent its record cost it its patch; nothing else may.
        expected = "empty_patch" if result.notes and "destroyed" in result.notes[-1] else "resolved"
        assert verdict.status == expected, name
        assert (expected == "empty_patch") <= (name == "no repository")
    assert any("large.bin" in note for note in harmed["large binary file"].result()[0].notes)
    assert {name: done.result().verdict.status in PATCHES[name][1] for name, done in judged.items()} == dict.fromkeys(
        PATCHES, True
    )
    assert Path("/etc/passwd").read_bytes() == passwd
    assert not [name for name in set(os.listdir("/tmp")) - sandboxes if "evil" in name]
    assert not Path("/sweq-evil").exists()
    wait_until(lambda: not host_processes())
    if factory.name == "docker":
        left = {"label": "sweq.run=tests-hostile"}
        client = connect()
        assert client.containers.list(all=True, filters=left) == []
        client.close()


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.docker
def test_an_external_agent_reaches_its_model_from_a_container(instance, tmp_path):
    factory = make_docker_factory()
    if os.geteuid() != 0:
        pytest.skip("needs root, to reach into a container's network")
    model = ScriptedModel(call(("bash", {"command": FIX})), say("done"))
    external = ExternalConfig(name="own", command="python3 /tmp/agent.py")
    config = AgentConfig(profile="external", external=external)
    with factory.create(instance) as sandbox:
        sandbox.write_file("/tmp/agent.py", Path(__file__).with_name("own_agent.py").read_bytes())
        agent = ExternalAgent(model, config, SamplingConfig())
        result = agent.run(instance, sandbox, seed=1, trajectory_path=tmp_path / "trajectory.json")
    assert (result.submitted, result.steps) == (True, 2)
    assert "+VALUE = 2" in result.patch
