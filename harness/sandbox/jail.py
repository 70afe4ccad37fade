"""The inner side of the namespace sandbox: a stand-alone script, run by `python -I -S`.

It never imports the harness and runs in three modes, each with a socket to the harness over which its JSON
specification comes as one line:

`hold` is process 1 of a sandbox. It builds a root file system in which only the system folders and the interpreter
exist (read-only) and everything writable lies on one size-limited tmpfs, then sleeps. When the harness closes the
socket or dies, it ends, and the kernel kills whatever else runs in the sandbox.

`run` is process 1 of one command, in a process namespace of its own inside the sandbox's. When the command ends or
the harness closes the socket, it ends, and the kernel kills whatever the command left behind: no daemon survives.
`listen` makes a listening socket in the sandbox's network, sends it to the harness and ends: a socket stays in the
network it was made in, whoever accepts from it.

The command itself gets a user namespace of its own, where it is root over its own files and nobody over the host's.
"""

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
from typing import Any

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY = 1
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SYS_PIVOT_ROOT, SYS_MOUNT_SETATTR = {"x86_64": (155, 442), "aarch64": (41, 442)}.get(os.uname().machine, (-1, -1))
CLONE_NEWUSER = 0x10000000
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
# chown, dac_override, fowner, fsetid, kill, setgid, setuid: what a test suite run as root may expect to work.
KEPT_CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7})
WRITABLE = ("testbed", "tmp", "home", "var/tmp", "run", "dev/shm")
SCRIPT = "/.sandbox.py"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, action: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{action}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    arguments = [text.encode() or None for text in (source, target, kind)]
    check(libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def bind_read_only(source: str, target: str) -> None:
    mount(source, target, flags=MS_BIND | MS_REC)
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    arguments = (SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, attributes, len(attributes))
    check(libc.syscall(*arguments), f"make {target} read-only")


def show_system(root: str, system: list[str]) -> None:
    """Mount the system folders read-only at their own paths."""
    for path in system:
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            os.makedirs(root + path)
            bind_read_only(path, root + path)


def show_interpreter(root: str, visible: list[str], masked: list[str]) -> None:
    """Mount the interpreter's folders read-only at their own paths; cover what must stay unseen.

    They may lie below a writable folder, such as a home or /tmp, so those must be there first.
    """
    for path in visible:
        if not os.path.isdir(root + path):
            os.makedirs(root + path)
            bind_read_only(path, root + path)
    for path in masked:
        if os.path.isdir(root + path):
            mount("none", root + path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k")


def make_devices(root: str) -> None:
    os.makedirs(root + "/dev/pts")
    for name in DEVICES:
        open(f"{root}/dev/{name}", "w").close()
        mount(f"/dev/{name}", f"{root}/dev/{name}", flags=MS_BIND)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{root}/dev/{name}")
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    mount("devpts", root + "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    os.symlink("pts/ptmx", f"{root}/dev/ptmx")


def make_writable(root: str, owner: int, disk_bytes: int) -> None:
    """One tmpfs behind every writable folder, so that one ceiling holds for all of them together."""
    scratch = root + "/scratch"
    os.mkdir(scratch)
    mount("scratch", scratch, "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_bytes},nr_inodes=500000,mode=755")
    for path in WRITABLE:
        source = f"{scratch}/{path.replace('/', '-')}"
        os.mkdir(source)
        os.chmod(source, 0o1777 if path.endswith(("tmp", "shm")) else 0o755)
        os.chown(source, owner, owner)
        os.makedirs(f"{root}/{path}", exist_ok=True)
        mount(source, f"{root}/{path}", flags=MS_BIND)
    check(libc.umount2(scratch.encode(), MNT_DETACH), "umount scratch")
    os.rmdir(scratch)


def enter_root(root: str) -> None:
    os.chdir(root)
    check(libc.syscall(SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount the host's root")
    os.chdir("/")
    mount("none", "/", flags=MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack("16xh14x", fcntl.ioctl(link, SIOCGIFFLAGS, request))
        fcntl.ioctl(link, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def hold(spec: dict[str, Any], harness: socket.socket) -> None:
    root: str = spec["root"]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    socket.sethostname("sandbox")
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("root", root, "tmpfs", MS_NOSUID, "size=1m,mode=755")
    show_system(root, spec["system"])
    make_devices(root)
    make_writable(root, spec["owner"], spec["disk_bytes"])
    show_interpreter(root, spec["visible"], spec["masked"])
    os.mkdir(root + "/proc")
    mount("proc", root + "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    write_text(root + SCRIPT, spec["script"])
    enter_root(root)
    raise_loopback()
    harness.sendall(b"ready\n")
    harness.recv(1)


def become_root_of(owner: int, prepared: int, mapped: int) -> None:
    """Enter a user namespace where user 0 is `owner` of the sandbox's, once process 1 has written its map."""
    if owner != 0:
        os.setgroups([])
    check(libc.unshare(CLONE_NEWUSER), "unshare user namespace")
    os.write(prepared, b"x")
    os.read(mapped, 1)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    for capability in range(64):
        if capability not in KEPT_CAPABILITIES:
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def start_command(spec: dict[str, Any], prepared: int, mapped: int) -> None:
    try:
        become_root_of(spec["owner"], prepared, mapped)
        for name, value in spec["rlimits"].items():
            kind = getattr(resource, name)
            ceiling = resource.getrlimit(kind)[1]
            value = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
            resource.setrlimit(kind, (value, value))
        os.setsid()
        os.chdir(spec["cwd"])
        # Python ignores these two; a command must not inherit that.
        for name in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(name, signal.SIG_DFL)
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except OSError as error:
        os.write(2, f"sandbox: {error}\n".encode())
    finally:
        os._exit(127)


def write_text(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def map_users(child: int, owner: int) -> None:
    write_text(f"/proc/{child}/setgroups", "deny")
    write_text(f"/proc/{child}/uid_map", f"0 {owner} 1")
    write_text(f"/proc/{child}/gid_map", f"0 {owner} 1")


def end_with(harness: socket.socket) -> None:
    harness.recv(1)
    os._exit(0)


def reap(child: int) -> int:
    """Wait for `child`, collecting orphans on the way; returns its exit code as a shell would."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def run(spec: dict[str, Any], harness: socket.socket) -> None:
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # Out of memory, the kernel takes the command rather than the harness.
    write_text("/proc/self/oom_score_adj", "1000")
    prepared_read, prepared_write = os.pipe()
    mapped_read, mapped_write = os.pipe()
    child = os.fork()
    if child == 0:
        start_command(spec, prepared_write, mapped_read)
    os.close(prepared_write)
    if os.read(prepared_read, 1):
        map_users(child, spec["owner"])
        os.write(mapped_write, b"x")
    threading.Thread(target=end_with, args=(harness,), daemon=True).start()
    harness.sendall(b"%d\n" % reap(child))
    os._exit(0)


def listen(spec: dict[str, Any], harness: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", spec["port"]), backlog=64) as listener:
        socket.send_fds(harness, [b"ready\n"], [listener.fileno()])


def main() -> None:
    harness = socket.socket(fileno=int(sys.argv[2]))
    harness.set_inheritable(False)
    with harness.makefile("rb") as lines:
        spec = json.loads(lines.readline())
    {"hold": hold, "run": run, "listen": listen}[sys.argv[1]](spec, harness)


if __name__ == "__main__":
    main()
