"""Walls around a program that a model wrote: Linux namespaces and Landlock, as far as the system has them.

Namespaces (`unshare` of util-linux): no network, no sight of other processes, a small disk of its own, and an end that
takes all children along. Landlock: files outside the program's folder cannot be written, and none but those of Python
and the system's libraries can be read; no signal reaches other processes. Neither needs rights of an administrator.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from luthier.errors import RunError

UNPROTECTED = "LUTHIER_UNPROTECTED_CODE"
"""Environment variable that lets a model's programs run without walls: a matter of the machine, not of a recipe."""
DISK_MEGABYTES = 64
PROCESSES = 64
NAMESPACES = (
    "unshare",
    *["--user", "--map-root-user", "--net", "--pid", "--ipc", "--mount", "--fork", "--kill-child", "--mount-proc"],
)
# The program's folder becomes a small disk in memory, which goes with the namespace.
OWN_DISK = f'mount -t tmpfs -o size={DISK_MEGABYTES}m,mode=700 tmpfs "$1" && cd "$1" && shift && exec "$@"'
CREATE_RULESET, RULESET_VERSION = 444, 1


@dataclass(frozen=True)
class Walls:
    """What the system can hold.

    Attributes:
        namespaces: whether `unshare` works for this user.
        landlock: version of Landlock's interface; 0 without it.
    """

    namespaces: bool
    landlock: int

    @property
    def suffice(self) -> bool:
        """Whether the user's files and the network are out of reach, but for protocols other than TCP."""
        return self.landlock >= 1 and (self.namespaces or self.landlock >= 4)

    @property
    def missing(self) -> list[str]:
        """What a program can reach all the same, in words."""
        reached = []
        if not self.landlock:
            reached.append("the user's files")
        if not self.namespaces:
            reached.append("the network" if self.landlock < 4 else "the network by other protocols than TCP")
            reached.append("other processes' names" if self.landlock >= 6 else "other processes")
        return reached

    def command(self, folder: str, command: Sequence[str]) -> list[str]:
        """The command that runs `command` in `folder`, behind namespaces where they work."""
        if not self.namespaces:
            return list(command)
        return [*NAMESPACES, "sh", "-c", OWN_DISK, "sh", folder, *command]

    def job(self) -> dict[str, object]:
        """What the child needs to know to put Landlock around itself (`CHILD`)."""
        return {
            "landlock": self.landlock,
            "readable": readable_paths(),
            "proc": self.namespaces,
            "processes": PROCESSES,
        }


def refuse_open_ground() -> None:
    """Refuse to run a model's programs where the system has no walls, unless the environment allows it.

    Raises:
        RunError: the user's files or the network are in reach.
    """
    if walls().suffice or os.environ.get(UNPROTECTED):
        return
    raise RunError(
        f"A program that a model wrote could reach {', '.join(walls().missing)} here.",
        f"On Linux, Landlock (5.13 or newer) and `unshare` hold them. In a container of its own set {UNPROTECTED}=1.",
    )


@cache
def walls() -> Walls:
    """What this system can hold, tried once."""
    return Walls(_namespaces_work(), _landlock_version())


def _namespaces_work() -> bool:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    try:
        command = [*NAMESPACES, "sh", "-c", OWN_DISK, "sh", "/tmp", "true"]
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _landlock_version() -> int:
    if sys.platform != "linux":
        return 0
    return max(0, ctypes.CDLL(None, use_errno=True).syscall(CREATE_RULESET, None, 0, RULESET_VERSION))


def readable_paths() -> list[str]:
    """Files and folders of Python and of the system's libraries."""
    paths = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime"]
    paths += ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"]
    paths += [sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()]
    return [path for path in dict.fromkeys(paths) if path != "/" and Path(path).exists()]


CHILD = """
def put_up_walls(walls, folder):
    import ctypes, struct
    try:
        import resource
        resource.setrlimit(resource.RLIMIT_NPROC, (walls["processes"],) * 2)
    except (ImportError, ValueError, OSError):
        pass
    version = walls["landlock"]
    if not version:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    read = 1 | 4 | 8  # execute, read a file, list a folder
    # Interface 2 knows moves between folders, 3 truncation, 5 device calls; 4 TCP; 6 signals and abstract sockets.
    files = (1 << 13) - 1 | (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
    attributes = struct.pack("QQQ", files, 3, 3)[: 8 + 8 * (version >= 4) + 8 * (version >= 6)]
    ruleset = libc.syscall(444, attributes, len(attributes), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "no ruleset of Landlock")
    for path, allowed in [*((path, read) for path in walls["readable"]), (folder, files), ("/dev/null", 2 | 4)]:
        descriptor = os.open(path, getattr(os, "O_PATH", 0x200000) | os.O_CLOEXEC)
        single = not os.path.isdir(path)
        # Rights on folders mean nothing for a single file, and are refused.
        rule = struct.pack("=Qi", allowed & (1 | 2 | 4 | 1 << 14 | 1 << 15 if single else files) & files, descriptor)
        if libc.syscall(445, ruleset, 1, rule, 0):
            raise OSError(ctypes.get_errno(), f"no rule for {path}")
        os.close(descriptor)
    if libc.prctl(38, 1, 0, 0, 0) or libc.syscall(446, ruleset, 0):
        raise OSError(ctypes.get_errno(), "Landlock cannot be put up")
    os.close(ruleset)
"""
