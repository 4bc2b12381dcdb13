"""Runs generated Python where it can do no harm: one call, many programs, one outcome for each.

Programs run in children of a warm server process inside namespaces of its own (see
`phikit.verify.inside`): no network, no environment, no view of the system but Python's library, no
capabilities, and limits on time, memory, processes, files and output. A tiny program costs about
two milliseconds. Where namespaces cannot be made nothing is run at all.
"""

from __future__ import annotations

import functools
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from phikit.errors import PhikitError
from phikit.verify.inside.wire import receive, send

GRACE_SECONDS = 10.0  # beyond a program's own limit, before its server counts as hung
LIBRARY = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

    Attributes:
        cpu_seconds: processor time of each of its processes, in whole seconds; one that ignores the
            signal it then gets is killed a second later.
        wall_seconds: time until it and all it started are killed. Kept well above `cpu_seconds`,
            so that a busy machine does not turn a right program into a wrong one.
        memory_mb: address space of each of its processes.
        processes: processes and threads at one time, itself included.
        file_mb: the largest file it may write, in its private /tmp of 64 MB.
        output_bytes: what is kept of its standard output, and of its standard error.
    """

    cpu_seconds: int = 2
    wall_seconds: float = 10.0
    memory_mb: int = 512
    processes: int = 8
    file_mb: int = 16
    output_bytes: int = 20_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise PhikitError(f"the sandbox's limit {name} is {value}; it must be above 0")


@dataclass(frozen=True, slots=True)
class Check:
    """Something to find out after a program ran, in its own namespace.

    A "value" check evaluates an expression and returns its value as text; a "statement" check
    passes if it raises nothing. Prefer values: see `phikit.verify.inside.child` for why.
    """

    kind: Literal["value", "statement"]
    source: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`key` equals `values.key_of(expected)` exactly if the value was the expected one."""

    passed: bool = False
    key: str = ""
    shown: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """Source code, and what to check once it has run.

    Without checks it runs as `__main__`; with checks as a module that is imported.
    """

    source: str
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one program.

    Attributes:
        status: "ok" (the program ran to its end, and so did every check, passed or not), "raised",
            "exited" (it left by itself before its end), "timeout", "killed" (a limit, a crash).
        error: what was raised, or what killed it.
        checks: one per check that was begun and reported; shorter if the program ended before.
        cut: more was printed than is kept.
        isolation: what separated the program from the machine.
    """

    status: Literal["ok", "raised", "exited", "timeout", "killed"]
    stdout: str = ""
    stderr: str = ""
    error: str = ""
    checks: tuple[CheckResult, ...] = ()
    cut: bool = False
    seconds: float = 0.0
    isolation: str = ""

    @property
    def ok(self) -> bool:
        return self.status == "ok"


DEFAULT = Limits()


def run_python(
    programs: Sequence[str | Program], limits: Limits = DEFAULT, workers: int = 0
) -> list[Outcome]:
    """Runs every program in the sandbox; outcomes in the same order.

    `workers` is how many run at one time (0: one per core). The outcome of a program does not
    depend on the others. Nothing is ever run outside the sandbox.

    Raises:
        PhikitError: this machine does not allow the sandbox; names what is missing.
    """
    wanted = [Program(p) if isinstance(p, str) else p for p in programs]
    if not wanted:
        return []
    workers = min(workers or len(os.sched_getaffinity(0)), len(wanted))
    return _sandbox(os.getpid()).run(wanted, limits, workers)


@functools.lru_cache(maxsize=1)
def _sandbox(pid: int) -> Sandbox:
    """This process's servers, kept warm. By process number: a forked copy must start its own."""
    return Sandbox()


class Sandbox:
    """Keeps servers warm and hands them programs. One thread at a time may use it; others wait."""

    def __init__(self) -> None:
        self._servers: list[_Server] = []
        self._lock = threading.Lock()

    def run(self, programs: Sequence[Program], limits: Limits, workers: int) -> list[Outcome]:
        """Runs programs, `workers` at once, and returns their outcomes in the programs' order."""
        with self._lock:
            while len(self._servers) < workers:
                self._servers.append(_Server())
            return self._run(programs, limits, self._servers[:workers])

    def _run(
        self, programs: Sequence[Program], limits: Limits, servers: list[_Server]
    ) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        waiting = deque(range(len(programs)))
        with selectors.DefaultSelector() as selector:
            for server in servers:
                if waiting:
                    _hand_out(server, waiting, programs, limits, selector)
            while len(outcomes) < len(programs):
                for key, _ in selector.select(1.0):
                    server = key.data
                    selector.unregister(key.fileobj)
                    outcomes[server.job] = server.answer()
                    if waiting:
                        _hand_out(server, waiting, programs, limits, selector)
                for key in list(selector.get_map().values()):
                    server = key.data
                    if time.monotonic() > server.deadline:
                        server.process.kill()  # its socket closes, which the loop above sees
        return [outcomes[i] for i in range(len(programs))]

    def close(self) -> None:
        """Ends the servers."""
        with self._lock:
            for server in self._servers:
                server.close()
            self._servers.clear()


def _hand_out(
    server: _Server,
    waiting: deque[int],
    programs: Sequence[Program],
    limits: Limits,
    selector: selectors.BaseSelector,
) -> None:
    server.ask(waiting[0], programs[waiting[0]], limits)
    waiting.popleft()
    selector.register(server.socket, selectors.EVENT_READ, server)


class _Server:
    """One server process (`phikit.verify.inside.server`) and the socket to it."""

    def __init__(self) -> None:
        self.job = -1
        self.deadline = 0.0
        self.start()

    def start(self) -> None:
        """Starts the process and waits until its prison stands.

        Raises:
            PhikitError: the machine does not allow it.
        """
        if not sys.platform.startswith("linux"):
            raise PhikitError(
                f"generated code is only run in Linux namespaces, and this is {sys.platform}",
                "run this stage on Linux, in a virtual machine or in a container",
            )
        self.socket, theirs = socket.socketpair()
        command = (
            f"import sys; sys.path.append({LIBRARY!r})\n"
            "from phikit.verify.inside.server import main\n"
            f"main({LIBRARY!r})"
        )
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", command],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={"PYTHONHASHSEED": "0"},  # the order of a program's sets is reproducible
                start_new_session=True,
            )
        hello = receive(self.socket) or {"failed": "start its process", "error": "it ended"}
        if "failed" in hello:
            self.close()
            raise PhikitError(
                "this machine does not let phikit isolate generated code: could not "
                f"{hello['failed']} ({hello['error']})",
                "nothing was run. As an ordinary user: allow user namespaces (sysctl "
                "user.max_user_namespaces, and kernel.apparmor_restrict_unprivileged_userns=0 on "
                "Ubuntu); in a container: start it with --cap-add SYS_ADMIN and --security-opt "
                "seccomp=unconfined apparmor=unconfined; Linux 5.12 or newer is needed",
            )
        self.isolation: str = hello["isolation"]

    def ask(self, job: int, program: Program, limits: Limits) -> None:
        if self.process.poll() is not None:
            self.close()
            self.start()
        self.job, self.program, self.limits = job, program, limits
        self.deadline = time.monotonic() + limits.wall_seconds + GRACE_SECONDS
        checks = [(c.kind, c.source) for c in program.checks]
        try:
            send(
                self.socket, {"source": program.source, "checks": checks, "limits": asdict(limits)}
            )
        except BrokenPipeError:
            self.process.kill()  # it died just now; `answer` says so

    def answer(self) -> Outcome:
        reply = receive(self.socket)
        if reply is None:
            if self.process.wait() == 1:
                raise RuntimeError("the sandbox's server failed; its traceback is on stderr")
            self.close()
            self.start()
            return Outcome(
                status="killed",
                error="the whole sandbox was killed: out of memory, or it did not answer",
                isolation=self.isolation,
            )
        outcome = _outcome(reply, self.program, self.limits, self.isolation)
        if not reply["clean"]:
            self.close()
            self.start()
        return outcome

    def close(self) -> None:
        self.socket.close()
        self.process.kill()
        self.process.wait()


def _outcome(reply: dict[str, Any], program: Program, limits: Limits, isolation: str) -> Outcome:
    events: dict[str, dict[str, Any]] = {}
    checks: dict[int, CheckResult] = {}
    for report in reply["reports"]:
        event = report.pop("event")
        if event == "check":
            checks.setdefault(report.pop("number"), CheckResult(**report))
        else:
            events.setdefault(event, report)
    done = tuple(checks[i] for i in range(len(program.checks)) if i in checks)
    status: Literal["ok", "raised", "exited", "timeout", "killed"]
    error = ""
    if "raised" in events:
        status = "exited" if events["raised"]["exit"] else "raised"
        error = events["raised"]["error"]
    elif not reply["in_time"]:
        status, error = "timeout", f"not done after {limits.wall_seconds:g} s"
    elif reply["signal"]:
        status, error = "killed", _why_killed(reply, limits)
    elif "ran" not in events or (program.checks and "end" not in events):
        status, error = "exited", "the program ended itself before its end"
    else:
        status = "ok"
    if status != "ok" and "ran" in events and program.checks:
        error += f", in check {len(done) + 1} of {len(program.checks)}"
    return Outcome(
        status=status,
        stdout=reply["stdout"],
        stderr=reply["stderr"],
        error=error,
        checks=done,
        cut=reply["cut"],
        seconds=reply["seconds"],
        isolation=isolation,
    )


def _why_killed(reply: dict[str, Any], limits: Limits) -> str:
    """Says nothing that differs from run to run: it becomes part of verdicts, which are hashed."""
    number = reply["signal"]
    stubborn = number == signal.SIGKILL and reply["cpu_seconds"] > 0.9 * (limits.cpu_seconds + 1)
    if number == signal.SIGXCPU or stubborn:
        return f"not done after {limits.cpu_seconds} s of processor time"
    if number == signal.SIGKILL:
        return "killed by itself, or for want of memory"
    return f"ended by {signal.Signals(number).name}"
