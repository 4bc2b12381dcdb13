"""The prison that generated programs run in: Linux namespaces, without any helper binary.

- mount: a new root holding only Python's library and the system's shared libraries, read-only, and
  an empty private /tmp. No /etc, no /home, no /proc, no /sys.
- pid: the process that built it is number 1 inside: its death is the death of everything in it,
  signals sent to it from within are ignored, and one kill(-1) ends all that a program left behind.
- net, ipc, uts: none of the host's; not even the loopback interface is up.
- user: everyone is `nobody`, without capabilities, and can make no further user namespace.
Started with the right to (CAP_SYS_ADMIN) it builds all that and then gives its rights up; otherwise
it needs user namespaces to be allowed to ordinary users.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

# linux/sched.h, linux/mount.h, linux/prctl.h
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000  # one number on every machine
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
CAPABILITY_VERSION = 0x20080522
NOBODY = 65534

SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


class Prison:
    """Builds the namespaces, one system call at a time. `step` says which one failed."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.step = "starting"

    def call(self, step: str, name: str, *args: Any) -> int:
        self.step = step
        result = getattr(self.libc, name)(*args)
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(result)

    def build(self) -> None:
        """Ends in a forked process: number 1 of the new pid namespace, `nobody`, in the new root.

        Raises:
            OSError: the machine does not allow `self.step`.
        """
        spaces = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
        _write("/proc/self/oom_score_adj", "1000")  # short of memory, the kernel ends us first
        sysctl_fd = os.open("/proc/sys", os.O_PATH | os.O_DIRECTORY)
        try:
            self.call("make namespaces", "unshare", spaces)
            entitled = True
        except PermissionError:
            entitled = False
            if os.geteuid() == 0:  # a container's: no limit on processes would hold for it
                self._become_nobody()
            uid, gid = os.geteuid(), os.getegid()
            self.call("make a user namespace", "unshare", spaces | CLONE_NEWUSER)
            self._map_nobody(uid, gid)
        self._new_root()
        self.fork_inside()
        if entitled:
            self._become_nobody()
            self.call("make a user namespace", "unshare", CLONE_NEWUSER)
        self.step = "forbid further user namespaces"
        _write("user/max_user_namespaces", "0", dir_fd=sysctl_fd)
        os.close(sysctl_fd)
        self._drop_capabilities()

    def fork_inside(self) -> None:
        """Goes on in process 1 of the new pid namespace; the old process waits for its end."""
        self.step = "fork into the pid namespace"
        pid = os.fork()
        if pid:
            _, status = os.waitpid(pid, 0)
            os._exit(min(255, os.waitstatus_to_exitcode(status) & 0xFF))

    def _map_nobody(self, uid: int, gid: int) -> None:
        self.step = "map the user"
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {uid} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {gid} 1")

    def _become_nobody(self) -> None:
        """Gives up root's rights for good."""
        self.step = "become nobody"
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        self.call("own the files in /proc/self", "prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)

    def _open_sources(self) -> dict[str, int]:
        """What is to be shown inside, opened before the new root is mounted over some of it."""
        self.step = "open Python's library"
        prefix = os.path.realpath(sys.base_prefix)
        wanted = [*SYSTEM_LIBRARIES, f"{prefix}/lib", f"{prefix}/lib64"]
        directories = [p for p in wanted if Path(p).is_dir()]
        return {p: os.open(p, os.O_PATH) for p in [*directories, *DEVICES]}

    def _new_root(self) -> None:
        sources = self._open_sources()
        root = tempfile.gettempdir()
        self._mount("keep mounts private", None, "/", None, MS_REC | MS_PRIVATE)
        self._mount("mount a new root", "tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        done: list[str] = []
        for path in sources:
            if path in DEVICES or any(path == d or path.startswith(d + "/") for d in done):
                continue
            self._show(sources[path], path, root)
            done.append(path)
        for path in DEVICES:
            Path(root + path).parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(root + path, os.O_CREAT | os.O_WRONLY, 0o644))
            self._mount(
                "show devices", f"/proc/self/fd/{sources[path]}", root + path, None, MS_BIND
            )
            self._restrict(root + path, ATTR_RDONLY | ATTR_NOSUID)
        Path(root + "/tmp").mkdir()
        self._restrict(root, ATTR_RDONLY)
        self._mount(
            "mount /tmp", "tmpfs", root + "/tmp", "tmpfs", MS_NOSUID | MS_NODEV,
            "mode=1777,size=64m,nr_inodes=4096",
        )  # fmt: skip
        for fd in sources.values():
            os.close(fd)
        os.chdir(root)
        self.call("change the root", "pivot_root", b".", b".")
        self.call("leave the old root", "umount2", b".", MNT_DETACH)
        os.chdir("/tmp")

    def _show(self, source_fd: int, path: str, root: str) -> None:
        """Binds a directory, read-only, at the same path below the new root."""
        Path(root + path).mkdir(parents=True, exist_ok=True)
        source = f"/proc/self/fd/{source_fd}"
        self._mount(f"show {path}", source, root + path, None, MS_BIND | MS_REC)
        self._restrict(root + path, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)

    def _restrict(self, path: str, flags: int) -> None:
        attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
        self.call(
            f"make {path} read-only (Linux 5.12)", "syscall", SYS_MOUNT_SETATTR, AT_FDCWD,
            path.encode(), AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes),
        )  # fmt: skip

    def _mount(
        self, step: str, source: str | None, target: str, kind: str | None, flags: int,
        options: str | None = None,
    ) -> None:  # fmt: skip
        texts = [t.encode() if t else None for t in (source, target, kind, options)]
        self.call(step, "mount", *texts[:3], ctypes.c_ulong(flags), texts[3])

    def _drop_capabilities(self) -> None:
        for capability in range(64):
            if self.libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
                break  # past the last capability that this kernel knows
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
        nothing = (ctypes.c_uint32 * 6)()
        self.call("drop capabilities", "capset", header, nothing)
        self.call("gain no privileges", "prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # Programs share our user id: not dumpable, we cannot be traced or read by them.
        self.call("hide from programs", "prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
        self.call("die with the parent", "prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _write(path: str, text: str, dir_fd: int | None = None) -> None:
    fd = os.open(path, os.O_WRONLY, dir_fd=dir_fd)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
