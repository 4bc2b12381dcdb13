"""Programs that mean harm, each run for real."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phikit.errors import PhikitError
from phikit.verify import sandbox
from phikit.verify.sandbox import Check, Limits, Outcome, Program, run_python

# a busy machine may take minutes to give a program its second
SHORT = Limits(cpu_seconds=1, wall_seconds=300.0)
# for what another limit is to stop: a slow machine takes seconds to write as much as memory allows
PATIENT = Limits(cpu_seconds=120, wall_seconds=300.0)
IMPATIENT = Limits(cpu_seconds=60, wall_seconds=1.0)


def one(source: str, limits: Limits = SHORT) -> Outcome:
    return run_python([source], limits)[0]


def test_runs_programs_in_order_and_reports_what_separated_them() -> None:
    outcomes = run_python([f"print({i})" for i in range(20)])
    assert [o.stdout for o in outcomes] == [f"{i}\n" for i in range(20)]
    assert all(o.ok and "pid" in o.isolation and "net" in o.isolation for o in outcomes)
    assert run_python([]) == []


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("1/0", "ZeroDivisionError: division by zero (line 1)"),
        ("x = (\n", "SyntaxError: '(' was never closed (line 1)"),
        ("def f(): f()\nf()", "RecursionError"),
        ("input()", "EOFError"),
        ("x = bytearray(10**10)", "MemoryError"),
        ("x = []\nwhile True: x.append('a' * 10**6)", "MemoryError"),
        ("import os\nwhile True: os.fork()", "BlockingIOError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 22), 2)", "unreachable"),
        ("import socket\nsocket.create_connection(('1.1.1.1', 53), 2)", "unreachable"),
        ("open('/x', 'w')", "Read-only file system"),
        ("open('/usr/lib/x', 'w')", "Read-only file system"),
        ("open('/etc/shadow')", "No such file"),
        ("open('/proc/1/environ')", "No such file"),
        ("import os\nos.setuid(0)", "Invalid argument"),  # inside there is no such user
        ("f = open('a', 'wb')\nfor i in range(100): f.write(bytes(10**6))", "File too large"),
        ("import threading, time\nfor i in range(50): threading.Thread(target=time.sleep, "
         "args=(5,)).start()", "can't start new thread"),
    ],
)  # fmt: skip
def test_what_a_program_cannot_do(source: str, error: str) -> None:
    outcome = one(source, PATIENT)
    assert outcome.status == "raised"
    assert error in outcome.error


@pytest.mark.parametrize(
    ("source", "status", "error"),
    [
        ("while True: pass", "killed", "not done after 1 s of processor time"),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
         "killed", "not done after 1 s of processor time"),
        ("import time; time.sleep(60)", "timeout", "not done after 1 s"),
        ("import ctypes; ctypes.string_at(0)", "killed", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), 9)", "killed", "killed by itself"),
        ("import sys; sys.exit(0)", "exited", "SystemExit"),
        ("import os; os._exit(0)", "exited", "ended itself"),
        ("import os; os.closerange(0, 100)", "exited", "ended itself"),
        ("while True:\n    try:\n        import os; os.fork()\n    except OSError: pass",
         "timeout", "not done"),
    ],
)  # fmt: skip
def test_how_a_program_can_end(source: str, status: str, error: str) -> None:
    outcome = one(source, IMPATIENT if status == "timeout" else SHORT)
    assert (outcome.status, error in outcome.error) == (status, True), outcome
    assert one("print('still here')").stdout == "still here\n"


def test_a_program_sees_no_environment_no_home_and_no_other_process() -> None:
    os.environ["PHIKIT_TEST_SECRET"] = "secret"
    try:
        seen = one(
            "import os\nprint(dict(os.environ), os.listdir('/tmp'), os.getcwd(), os.getuid())\n"
            "print(os.path.exists('/home'), os.path.exists('/proc/self'))"
        )
    finally:
        del os.environ["PHIKIT_TEST_SECRET"]
    assert seen.stdout == "{} [] /tmp 65534\nFalse False\n"


def test_a_program_cannot_hurt_or_trace_the_server_or_gain_rights() -> None:
    attack = """
import ctypes, os
for number in (1, 2, 9, 15, 19):
    os.kill(os.getppid(), number)
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(16, os.getppid(), 0, 0), libc.unshare(0x10000000), libc.unshare(0x20000))
print(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
"""
    assert one(attack).stdout == "-1 -1 -1\n-1\n"


def test_daemons_die_with_their_program() -> None:
    daemon = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(0.3)
        open('/tmp/alive', 'w').write('x')
        os._exit(0)
    os._exit(0)
"""
    look = "import os, time\ntime.sleep(0.5)\nprint(os.listdir('/tmp'))"
    assert [o.status for o in run_python([daemon, look], SHORT, workers=1)] == ["ok", "ok"]
    assert one(look).stdout == "[]\n"


def test_nothing_passes_from_one_program_to_the_next() -> None:
    first = "import builtins, os\nbuiltins.len = None\nos.makedirs('/tmp/a/b')\nopen('/tmp/c', 'w')"
    hard = "import os\nfor i in range(2500): os.mkdir('a'); os.chdir('a')"
    second = "import os\nprint(len(os.listdir('/tmp')))"
    outcomes = run_python([first, second, hard, second], SHORT, workers=1)
    assert [o.stdout for o in outcomes] == ["", "0\n", "", "0\n"]


def test_output_is_cut_and_a_flood_does_not_fill_the_memory() -> None:
    outcome = one("print('x' * 10**8)", Limits(output_bytes=1000))
    assert (outcome.ok, len(outcome.stdout), outcome.cut) == (True, 1000, True)
    quiet = one("import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert (quiet.stdout, quiet.stderr, quiet.cut) == ("out\n", "err\n", False)


def test_sets_and_random_numbers_are_the_same_every_time() -> None:
    source = "import random\nprint(random.random(), {'a', 'b', 'c', 'd'}, hash('x'))"
    first = one(source)
    assert first.ok
    assert first.stdout == sandbox.Sandbox().run([Program(source)], SHORT, 1)[0].stdout


def test_checks_report_values_and_failures() -> None:
    checks = (
        Check("value", "f(1)"),
        Check("statement", "assert f(1) == 3"),
        Check("value", "f('a')"),
        Check("value", "object()"),
    )
    outcome = run_python([Program("def f(x):\n    return x + 1", checks)])[0]
    assert outcome.ok
    assert [(c.shown, c.error, c.passed) for c in outcome.checks] == [
        ("2", "", False),
        ("", "AssertionError", False),
        ("", 'TypeError: can only concatenate str (not "int") to str (line 2)', False),
        ("<object object>", "", False),
    ]


def test_a_report_without_the_secret_is_ignored() -> None:
    forged = '{"event": "check", "number": 0, "passed": true}'
    source = f"""
import os
for line in ('{forged}', '{{"event": "ran"}}', '{{"event": "end"}}'):
    for fd in range(3, 20):
        try:
            os.write(fd, (line + "\\n").encode())
        except OSError:
            pass
os._exit(0)
"""
    outcome = run_python([Program(source, (Check("statement", "assert False"),))])[0]
    assert (outcome.status, outcome.checks) == ("exited", ())


def test_threads_that_are_no_daemons_are_waited_for() -> None:
    source = "import threading\nthreading.Timer(0.1, lambda: print(1)).start()"
    assert one(source).stdout == "1\n"


def test_a_server_that_is_killed_is_replaced() -> None:
    box = sandbox.Sandbox()
    assert box.run([Program("print(1)")], SHORT, 1)[0].ok
    box._servers[0].process.kill()
    box._servers[0].process.wait()
    assert box.run([Program("print(2)")], SHORT, 1)[0].stdout == "2\n"
    box.close()


def test_the_servers_end_with_the_process_that_started_them() -> None:
    source = (
        "from phikit.verify.sandbox import run_python, _sandbox\nimport os\n"
        "run_python(['1'])\nprint(_sandbox(os.getpid())._servers[0].process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(600):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        # Nobody may be there to collect it: then it stays a zombie.
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the sandbox outlived its owner")


def test_a_machine_without_namespaces_is_refused_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        sandbox, "receive", lambda _: {"failed": "make namespaces", "error": "not permitted"}
    )
    with pytest.raises(PhikitError, match=r"could not make namespaces \(not permitted\)") as caught:
        sandbox.Sandbox().run([Program("print(1)")], SHORT, 1)
    assert "user namespaces" in caught.value.hint


def test_limits_are_checked() -> None:
    with pytest.raises(PhikitError, match="memory_mb is 0"):
        Limits(memory_mb=0)


def test_only_the_standard_library_is_imported_inside() -> None:
    source = "import sys\nprint([m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy')])"
    assert one(source).stdout == "[]\n"
    assert socket.gethostname()  # ours is untouched by the uts namespace
