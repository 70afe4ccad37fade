"""What one sandbox may use of the machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Ceilings of one sandbox; a command that meets one fails like any other command.

    Docker enforces memory, processes and cores by cgroup for the whole container; its writable layer is measured, and a
    command that fills it beyond `layer_bytes` is ended (see `LayerCeiling`).
    Namespaces need no cgroup: memory is each process's address space, processes are counted for each command, and the
    disk ceiling holds for all files the sandbox writes (they live in memory).
    """

    memory_bytes: int = 8 << 30
    processes: int = 1024
    cpus: float = 2.0
    disk_bytes: int = 2 << 30
    layer_bytes: int = 8 << 30
    file_bytes: int = 1 << 30
    open_files: int = 4096
