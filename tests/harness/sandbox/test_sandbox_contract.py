"""What every sandbox promises, asked of both."""

import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from docker.errors import NotFound

import harness
from harness.errors import SandboxError, UserError
from harness.instances import Instance
from harness.sandbox import namespace
from harness.sandbox.docker import DockerFactory, connect
from harness.sandbox.images.sdist import build_base
from harness.sandbox.limits import Limits
from harness.sandbox.namespace import NamespaceFactory, probe
from harness.tree import commit_tree

LIMITS = Limits(memory_bytes=1 << 30, processes=64, disk_bytes=64 << 20, layer_bytes=100 << 20, file_bytes=32 << 20)


def make_instance(folder: Path, image: str | None) -> Instance:
    tree, copy = folder / "tree", folder / "copy"
    for place in (tree, copy):
        place.mkdir()
        (place / "module.py").write_text("VALUE = 1\n")
    return Instance(
        instance_id="own__example-1",
        repo="own/example",
        base_commit=commit_tree(copy),
        version="1",
        problem_statement="",
        patch="",
        test_patch="",
        fail_to_pass=(),
        pass_to_pass=(),
        eval_script="",
        log_parser="",
        eval_type="",
        image=image,
        tree=tree,
    )


@pytest.fixture(
    scope="module",
    params=[pytest.param("namespace", marks=pytest.mark.namespace), pytest.param("docker", marks=pytest.mark.docker)],
)
def made(request, tmp_path_factory):
    """The factory and an instance that it can run."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "namespace":
        if reason := probe():
            pytest.skip(reason)
        return NamespaceFactory(LIMITS), make_instance(folder, None)
    try:
        connect().close()
    except UserError as error:
        pytest.skip(str(error))
    return DockerFactory(limits=LIMITS, run_id="tests"), make_instance(folder, build_base())


@pytest.fixture(scope="module")
def docker_made(tmp_path_factory):
    try:
        connect().close()
    except UserError as error:
        pytest.skip(str(error))
    return DockerFactory(limits=LIMITS, run_id="tests"), make_instance(tmp_path_factory.mktemp("own"), build_base())


@pytest.fixture(scope="module")
def box(made):
    factory, instance = made
    with factory.create(instance) as sandbox:
        yield sandbox


@pytest.fixture
def fresh(made):
    factory, instance = made
    with factory.create(instance) as sandbox:
        yield sandbox


def said(sandbox, command: str, **options) -> str:
    result = sandbox.exec(command, timeout=30, **options)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("command", "code"), [("true", 0), ("exit 7", 7), ("nonsense-command", 127), ("kill -9 $$", 137)]
)
def test_exit_code_is_the_commands_own(box, command, code):
    result = box.exec(command, timeout=30)
    assert (result.exit_code, result.timed_out, result.dropped_bytes) == (code, False, 0)


def test_output_is_both_streams_in_order(box):
    script = "for i in 1 2 3; do echo out $i; echo err $i >&2; done"
    assert said(box, script) == "out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n"


def test_output_is_decoded_with_replacement(box):
    assert said(box, r"printf 'a\377b'") == "a\ufffdb"


def test_long_output_keeps_head_and_tail(box):
    result = box.exec("echo first; seq 400000; echo last", timeout=30, output_limit=1000)
    assert result.output.startswith("first\n1\n2\n")
    assert result.output.endswith("400000\nlast\n")
    total = len("first\nlast\n") + sum(len(str(n)) + 1 for n in range(1, 400001))
    assert result.dropped_bytes == total - 1000
    assert str(result.dropped_bytes) in result.output
    assert len(result.output) < 1100


def test_environment_and_folder(box):
    assert said(box, 'echo "$GREETING"; pwd', cwd="/tmp", env={"GREETING": "hello there"}) == "hello there\n/tmp\n"
    assert said(box, "pwd") == "/testbed\n"


def test_the_harness_environment_stays_outside(box, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-host")
    assert "sk-secret" not in said(box, "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'; true")


def test_timeout_kills_the_whole_group_and_daemons(box):
    start = time.monotonic()
    result = box.exec(
        "(setsid sh -c 'sleep 7321 & sleep 7322' >/dev/null 2>&1 &); trap '' TERM INT HUP; echo begun; sleep 7323",
        timeout=1.5,
    )
    assert result.timed_out
    assert result.exit_code == 124
    assert result.output == "begun\n"
    assert time.monotonic() - start < 15
    assert not host_processes("sleep 732")
    assert said(box, "echo usable") == "usable\n"


def test_background_processes_end_with_their_command(box):
    result = box.exec("setsid sleep 7331 & sleep 7332 & echo done", timeout=30)
    assert (result.exit_code, result.output, result.timed_out) == (0, "done\n", False)
    assert result.seconds < 15
    assert not host_processes("sleep 733")


def host_processes(prefix: str) -> list[str]:
    """Command lines of running processes on the host (which sees those of both kinds of sandbox)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text.startswith(prefix):
            found.append(text)
    return found


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_files_round_trip(box):
    data = bytes(range(256)) * 300
    box.write_file("/tmp/deep/er/file.bin", data, mode=0o755)
    assert box.read_file("/tmp/deep/er/file.bin") == data
    assert said(box, "stat -c '%a %u' /tmp/deep/er/file.bin") == "755 0\n"
    box.write_file("/tmp/deep/er/file.bin", b"")
    assert box.read_file("/tmp/deep/er/file.bin") == b""


def test_files_with_odd_names_and_links(box):
    box.write_file("/tmp/a 'b' $c/-d\n.txt", b"odd")
    assert box.read_file("/tmp/a 'b' $c/-d\n.txt") == b"odd"
    said(box, "echo target > /tmp/target; ln -s target /tmp/link")
    assert box.read_file("/tmp/link") == b"target\n"
    box.write_file("/tmp/link", b"through")
    assert box.read_file("/tmp/target") == b"through"


def test_file_errors(box):
    said(box, "mkfifo /tmp/pipe")
    with pytest.raises(FileNotFoundError):
        box.read_file("/testbed/absent/file")
    with pytest.raises(IsADirectoryError):
        box.read_file("/testbed")
    with pytest.raises(IsADirectoryError):
        box.write_file("/tmp", b"")
    with pytest.raises(OSError, match="regular"):
        box.read_file("/tmp/pipe")
    with pytest.raises(OSError, match="sandbox"):
        box.write_file("/dev/null/child", b"")


def test_network_is_only_the_loopback(box):
    program = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
socket.create_connection(listener.getsockname(), 5).close()
print("loopback")
try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as error:
    print("nowhere", type(error).__name__)
"""
    box.write_file("/tmp/net.py", program.encode())
    assert said(box, "python3 /tmp/net.py") == "loopback\nnowhere OSError\n"


def test_sandboxes_do_not_see_each_other(made):
    factory, instance = made
    with factory.create(instance) as one, factory.create(instance) as other, ThreadPoolExecutor() as pool:
        one.write_file("/tmp/mine", b"1")
        one.write_file("/testbed/mine", b"1")
        slow = pool.submit(one.exec, "sleep 2; echo slept", timeout=30)
        wait_until(lambda: host_processes("sleep 2"))
        assert said(other, "ls /tmp/mine /testbed/mine 2>/dev/null || echo none") == "none\n"
        assert "sleep\x002\x00" not in said(other, "cat /proc/[0-9]*/cmdline")
        assert slow.result().output == "slept\n"


def test_fork_bomb_is_a_normal_result(fresh):
    result = fresh.exec("bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1; exit 5", timeout=20)
    assert result.exit_code != 0
    assert said(fresh, "echo alive") == "alive\n"


def test_timed_out_fork_bomb_leaves_nothing(fresh):
    result = fresh.exec("bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 7341", timeout=2)
    assert result.exit_code != 0
    assert not host_processes("sleep 734")
    assert said(fresh, "echo alive") == "alive\n"


@pytest.mark.docker
def test_process_1_collects_orphans_and_needs_no_other(docker_made):
    factory, instance = docker_made
    with factory.create(instance) as sandbox:
        state = "cat /proc/[0-9]*/stat | cut -d ' ' -f 1,3"
        said(sandbox, "for n in $(seq 20); do (sleep 0.05 & ) ; done; sleep 0.5; true")
        assert "Z" not in said(sandbox, state)
        assert said(sandbox, "cat /proc/1/task/1/children") == said(sandbox, "cat /proc/1/task/1/children") == ""


def test_too_large_a_file_is_a_normal_result(fresh):
    result = fresh.exec("head -c 50000000 /dev/zero > /tmp/large", timeout=30)
    assert result.exit_code != 0
    assert said(fresh, "stat -c %s /tmp/large") == f"{LIMITS.file_bytes}\n"


@pytest.mark.namespace
def test_the_harness_is_covered_where_the_interpreter_lies_around_it(tmp_path, monkeypatch):
    if reason := probe():
        pytest.skip(reason)
    package = Path(harness.__file__).resolve().parent
    shown = sorted([*namespace._visible([]), str(package.parent)])
    monkeypatch.setattr(namespace, "_visible", lambda folders: shown)
    with NamespaceFactory(LIMITS).create(make_instance(tmp_path, None)) as sandbox:
        assert package.name in said(sandbox, f"ls {package.parent}").split()
        assert said(sandbox, f"ls -A {package}") == ""


@pytest.mark.namespace
def test_full_disk_is_a_normal_result(tmp_path):
    if reason := probe():
        pytest.skip(reason)
    with NamespaceFactory(LIMITS).create(make_instance(tmp_path, None)) as sandbox:
        result = sandbox.exec("for n in 1 2 3; do head -c 30000000 /dev/zero > /tmp/$n || exit 9; done", timeout=30)
        assert result.exit_code == 9
        assert "No space left" in result.output
        assert said(sandbox, "rm /tmp/?; echo room > /testbed/x; cat /testbed/x") == "room\n"


@pytest.mark.docker
@pytest.mark.parametrize("pause", ["0.2", "0"], ids=["long", "brief"])
def test_filled_layer_ends_the_command_and_is_freed(docker_made, pause):
    factory, instance = docker_made
    with factory.create(instance) as sandbox:
        said(sandbox, "echo kept > /testbed/kept")
        filler = f"for n in $(seq 12); do head -c 30000000 /dev/zero > /var/tmp/$n; sleep {pause}; done; touch done"
        result = sandbox.exec(filler, timeout=60)
        assert (result.exit_code, result.timed_out) == (137, False)
        assert "took more than 100 MiB" in result.output
        assert said(sandbox, "ls /var/tmp; cat kept") == "kept\n"


@pytest.mark.docker
def test_unknown_host_and_runtime_are_said():
    with pytest.raises(UserError, match=r"no daemon answers at unix:///nowhere.sock"):
        DockerFactory(host="unix:///nowhere.sock")
    try:
        connect().close()
    except UserError as error:
        pytest.skip(str(error))
    with pytest.raises(UserError, match=r"docker.runtime: the daemon has no runtime 'absent'; it has .*runc"):
        DockerFactory(runtime="absent")


@pytest.mark.namespace
def test_a_killed_harness_leaves_nothing(tmp_path):
    if reason := probe():
        pytest.skip(reason)
    program = """
import sys
from harness.sandbox.namespace import NamespaceSandbox
from harness.sandbox.limits import Limits
from pathlib import Path
NamespaceSandbox(Path(sys.argv[1]), Limits()).exec("sleep 7361", timeout=60, cwd="/")
"""
    killed = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    wait_until(lambda: host_processes("sleep 736"))
    killed.kill()
    killed.wait()
    wait_until(lambda: not host_processes("sleep 736"))


@pytest.mark.docker
def test_containers_of_a_killed_harness_are_removed():
    try:
        client = connect()
    except UserError as error:
        pytest.skip(str(error))
    owner = f"{socket.gethostname()}:999999999:1"
    orphan = client.containers.create(build_base(), "true", labels={"sweq.owner": owner})
    DockerFactory()
    with pytest.raises(NotFound):
        client.containers.get(orphan.id)
    client.close()


def test_memory_hog_is_a_normal_result(fresh):
    result = fresh.exec("python3 -c 'x = bytearray(3 << 30)'", timeout=60)
    assert result.exit_code != 0
    assert said(fresh, "echo alive") == "alive\n"


def test_new_privileges_cannot_be_gained(box):
    assert "NoNewPrivs:\t1" in said(box, "cat /proc/self/status")
    allowed = int(re.search(r"CapBnd:\s*([0-9a-f]+)", said(box, "cat /proc/self/status"))[1], 16)
    assert allowed & ~0b11111011 == 0
    assert box.exec("mount -t tmpfs none /mnt", timeout=30).exit_code != 0


def test_gold_patches_and_results_are_not_inside(box):
    package = Path(harness.__file__).parent
    assert (package / "starter").is_dir()
    for path in (package / "starter", Path.cwd() / "results", Path("/run/docker.sock"), Path("/var/run/docker.sock")):
        assert box.exec(f"ls {path}", timeout=30).exit_code != 0
    assert said(box, "find / -xdev -name gold.patch 2>/dev/null; true") == ""


def test_close_twice_then_refuse(made):
    factory, instance = made
    sandbox = factory.create(instance)
    sandbox.close()
    sandbox.close()
    with pytest.raises(SandboxError):
        sandbox.exec("true", timeout=5)


def test_close_ends_a_running_command(made):
    factory, instance = made
    sandbox = factory.create(instance)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(sandbox.exec, "sleep 7351", timeout=60)
        wait_until(lambda: host_processes("sleep 735"))
        sandbox.close()
        assert not host_processes("sleep 735")
        assert running.exception(timeout=20) is not None or running.result().exit_code != 0


def test_user_is_root_inside(box):
    assert said(box, "id -u; touch /testbed/x; stat -c %u /testbed/x; rm /testbed/x") == "0\n0\n"
