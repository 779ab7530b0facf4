"""What untrusted programs may do, and may not."""

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lit_spectral.code_execution import available, run, sandbox, system_calls
from lit_spectral.errors import InputError

REASON = available()
isolated = pytest.mark.skipif(REASON is not None, reason=f"no isolation here: {REASON}")


@isolated
def test_a_program_that_ends_has_passed():
    assert run("import math\nassert math.gcd(4, 6) == 2").status == "passed"


@isolated
@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("assert 1 == 2, 'not equal'", "AssertionError: not equal"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise ValueError('\\ud800')", r"ValueError: \ud800"),
        ("'\x00'", "source code string cannot contain null bytes"),
    ],
)
def test_an_error_is_told_by_its_last_line(program, error):
    outcome = run(program)
    assert outcome.status == "failed"
    assert error in outcome.error


@isolated
@pytest.mark.parametrize(
    "leave",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os\nos.write(3, b'passed')\nos._exit(0)",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'passed ')\n    except OSError: pass\nos._exit(0)",
        "import os\nif os.fork():\n    os.wait()\n    os._exit(0)",  # the copy comes to the end, not the program
    ],
)
def test_leaving_early_is_no_pass(leave):
    assert run(f"{leave}\nassert True").status == "failed"


@isolated
@pytest.mark.parametrize("hang", ["while True: pass", "import time; time.sleep(60)"])
def test_a_program_that_hangs_is_timed_out(hang):
    assert run(hang, timeout=0.5).status == "timed out"


@isolated
def test_a_caller_whose_files_are_for_no_one_else_can_run_programs():
    before = os.umask(0o077)
    try:
        assert run("open('file', 'w').write('x')").status == "passed"
    finally:
        os.umask(before)


@isolated
def test_input_is_at_its_end():
    assert run("input()").error == "EOFError: EOF when reading a line"


@isolated
def test_signals_are_no_way_to_outstay_the_time():
    program = (
        "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\n"
    )
    assert run(f"{program}while True: pass", timeout=0.5).status == "timed out"


@isolated
@pytest.mark.parametrize("eat", ["x = bytearray(1 << 30)", "x = [0]\nwhile True: x += x", "x = 'a' * (1 << 34)"])
def test_a_memory_eater_is_stopped(eat):
    outcome = run(eat, memory=256)
    assert (outcome.status, outcome.error) == ("out of memory", "more than 256 MiB")


# A C function's or a system call's answer as Python would give it; numbers from 424 on are the same on all machines.
CALLS = """
import ctypes, fcntl, mmap, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def take(answer):
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer
def call(x86, arm, *arguments):
    return take(libc.syscall(ctypes.c_long(arm if os.uname().machine == "aarch64" else x86), *arguments))
"""

# What the kernel would keep for a program beside its address space.
KEPT = {
    "semaphores": "take(libc.semget(0, 32000, 0o1600))",
    "message queues": "take(libc.msgget(0, 0o1600))",
    "shared memory by key": "take(libc.shmget(0, 1 << 20, 0o1600))",
    "shared memory of which one page stays mapped": "mmap.mmap(-1, 1 << 26)",
    "files without a name": "os.memfd_create('x')",
    "secret memory": "call(447, 447, 0)",
    "POSIX message queues": "call(240, 180, b'x', 0o102, 0o600, None)",
    "watches": "take(libc.inotify_init())",
    "watches of mounts": "call(300, 262, 0, 0)",
    "sets of watched files": "import select\nselect.epoll()",
    "timers": "call(222, 107, 1, None, ctypes.byref(ctypes.c_int()))",
    "timers as files": "call(283, 85, 1, 0)",
    "counters as files": "call(290, 19, 0, 0)",
    "signals as files": "call(289, 74, -1, ctypes.byref(ctypes.c_long()), 8, 0)",
    "keys": "call(248, 217, b'user', b'a', b'b', 1, -3)",
    "requests of asynchronous input": "call(206, 0, 1000, ctypes.byref(ctypes.c_ulong()))",
    "rings of requests": "call(425, 425, 8, ctypes.create_string_buffer(120))",
    "page faults": "call(323, 282, 1)",
    "rule sets": "call(444, 444, struct.pack('QQ', 1, 0), ctypes.c_size_t(16), 0)",
    "kernel programs": "call(321, 280, 0, struct.pack('IIII', 1, 4, 4, 1) + bytes(112), 128)",
    "performance counters": "call(298, 241, struct.pack('II', 1, 128) + bytes(120), 0, -1, -1, 0)",
    "another process's memory": "call(101, 117, 0, 0, 0, 0)",
    "locked memory": "take(libc.mlock(ctypes.create_string_buffer(4096), 4096))",
    "locks on parts of a file": "fcntl.lockf(open('x', 'w'), fcntl.LOCK_EX, 1)",
    "attributes of files": "open('x', 'w').close()\nos.setxattr('x', 'user.x', bytes(1000))",
    "big pipes": "fcntl.fcntl(os.pipe()[1], 1031, 1 << 20)",
    "big socket buffers": "socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)",
    "senders without end": "socket.socketpair(type=socket.SOCK_DGRAM)",
    "files in flight": "socket.send_fds(socket.socketpair()[0], [b'x'], [0])",
    "names for sockets": "socket.socketpair()[0].bind(chr(0) + 'x')",
    "kernel sockets": "socket.socket(socket.AF_NETLINK)",
    "a core dump": "take(libc.prctl(4, 1, 0, 0, 0))",
    "another program": "os.execv('/lib/x', ['x'])",
    "processors of others": "os.sched_setaffinity(0, range(1024))",
    "a priority": "os.nice(0)",
}


@isolated
@pytest.mark.parametrize("what", KEPT)
def test_the_kernel_keeps_nothing_that_no_limit_covers(what):
    assert run(CALLS + KEPT[what]).error.startswith("PermissionError: [Errno 1] Operation not permitted")


@isolated
def test_a_call_that_is_yet_to_be_invented_is_answered_as_by_an_older_kernel():
    assert run(f"{CALLS}call(1 << 20, 1 << 20)").error == "OSError: [Errno 38] Function not implemented"


@isolated
def test_of_huge_pages_nothing_is_kept():
    program = """
import mmap, resource
memory = mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
try: memory.madvise(mmap.MADV_HUGEPAGE)
except OSError: pass  # a kernel without them
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for offset in range(0, 4 << 20, mmap.PAGESIZE): memory[offset] = 1
pages = (4 << 20) // mmap.PAGESIZE
assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before >= pages, "pages came by the hundred"
"""
    assert run(program, timeout=20).error == ""


@isolated
@pytest.mark.parametrize(
    ("make", "grow", "most"),
    [
        (
            "[end.detach() for end in socket.socketpair()]",
            "libc.setsockopt(end, socket.SOL_SOCKET, socket.SO_SNDBUF, ctypes.byref(ctypes.c_int(1 << 22)), 4)",
            64 * (int(Path("/proc/sys/net/core/wmem_default").read_text("ascii")) + (1 << 16)) if REASON is None else 0,
        ),
        ("os.pipe()", "libc.fcntl(end, 1031, 1 << 20)", 32 * 16 * os.sysconf("SC_PAGE_SIZE")),
    ],
    ids=["sockets", "pipes"],
)
def test_what_waits_between_two_ends_is_bounded(make, grow, most):
    program = f"""
ends, taken = [], 0
try:
    while True: ends += {make}
except OSError: pass
for end in ends:
    {grow}
    os.set_blocking(end, False)
    try:
        while True: taken += os.write(end, bytes(1 << 14))
    except OSError: pass
assert 0 < taken <= {most}, taken
"""
    assert run(CALLS + program, timeout=20).error == ""


@isolated
def test_scratch_space_is_bounded():
    program = "for i in range(99):\n    with open(f'{i}', 'wb') as file: file.write(bytes(1 << 20))"
    assert run(program).error == "OSError: [Errno 28] No space left on device"


@isolated
def test_a_crash_names_its_signal():
    outcome = run("import ctypes; ctypes.string_at(0)")
    assert (outcome.status, outcome.error) == ("killed", "SIGSEGV")


def named(name):
    """How many processes of this machine go by the name."""
    found = 0
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it has just ended
            found += comm.read_text().strip() == name
    return found


def watched(program, look, **limits):
    """The outcome of a program that goes by a name, the most that `look(name)` was during it, and what it is after."""
    name = f"t{secrets.token_hex(6)}"
    preface = f"import ctypes, os, time\nctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\n"
    most, outcomes = 0, []
    thread = threading.Thread(target=lambda: outcomes.append(run(preface + program, **limits)))
    thread.start()
    while thread.is_alive():
        most = max(most, look(name))
        time.sleep(0.02)
    return outcomes[0], most, look(name)


def status_of(field):
    """Looks up the number that /proc/PID/status of the process by a name has in the field."""

    def look(name):
        found = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
                if fields["Name"].strip() == name and field in fields:  # a zombie has fewer
                    found = max(found, int(re.findall(r"\d+", fields[field])[0]))
        return found

    return look


@isolated
def test_a_fork_bomb_stays_within_its_number_and_leaves_nothing():
    bomb = "while True:\n    try: os.fork()\n    except OSError: pass"
    outcome, most, left = watched(bomb, named, timeout=2, processes=4)
    assert outcome.status == "timed out"
    assert 1 < most <= 4
    assert left == 0


@isolated
def test_threads_count_as_processes():
    program = "import threading, time\nfor _ in range(8): threading.Thread(target=time.sleep, args=(60,)).start()"
    assert "can't start new thread" in run(program, processes=4).error


@isolated
def test_page_tables_stay_small():
    program = """
import os
libc = ctypes.CDLL(None)
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
for i in range(10000):  # far from each other, each with tables of its own
    address = libc.mmap(0x100000000000 + (i << 30), 4096, 1, 0x22, -1, 0)
    if address and address != 2**64 - 1: ctypes.string_at(address, 1)
time.sleep(1)
"""  # noqa: E501
    outcome, most, _ = watched(program, status_of("VmPTE"), timeout=20)
    assert outcome.status == "passed"
    assert 0 < most < 4000  # KiB


@isolated
def test_signals_that_wait_are_few():
    program = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [40])
for _ in range(5000): os.kill(os.getpid(), 40)
time.sleep(1)
"""
    outcome, most, _ = watched(program, status_of("SigQ"), timeout=20)
    assert outcome.status == "passed"
    assert 0 < most <= 64


@isolated
@pytest.mark.parametrize(
    "program",
    [
        "import asyncio\nasync def f(): return await asyncio.to_thread(sum, [1, 2])\nassert asyncio.run(f()) == 3",
        "import multiprocessing as m\nm = m.get_context('fork')\na, b = m.Pipe()\n"
        "p = m.Process(target=b.send, args=(1,))\np.start()\nassert a.recv() == 1\np.join()\nassert p.exitcode == 0",
        "from concurrent.futures import ThreadPoolExecutor as T\nwith T(2) as t: assert list(t.map(abs, [-1])) == [1]",
        "import shutil, tempfile\nopen('a', 'w').write('x')\nshutil.copy2('a', 'b')\nshutil.copytree('.', 'c')\n"
        "with tempfile.TemporaryFile() as f: f.write(b'x')",
        "import sqlite3\nassert sqlite3.connect(':memory:').execute('select 1').fetchone() == (1,)",
        "import mmap\nf = open('a', 'wb+')\nf.write(bytes(8192))\nf.flush()\nmmap.mmap(f.fileno(), 8192)[8191] = 1",
        "import signal, time\nsignal.signal(signal.SIGALRM, lambda *_: exec('raise EOFError'))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.01)\ntry: time.sleep(9)\nexcept EOFError: pass\nelse: assert False",
        "assert len([0] * 30_000_000) + len(bytes(100_000_000))",
        "import decimal, hashlib, random, re, ssl, statistics, unittest, uuid, zoneinfo\nuuid.uuid4()\nrandom.random()",
    ],
    ids=["asyncio", "processes", "threads", "files", "sqlite", "mmap", "alarm", "much memory", "modules"],
)
def test_the_standard_library_works(program):
    assert run(program, timeout=30).error == ""


def test_numbers_of_system_calls_are_the_kernels():
    headers = [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h")]
    if not all(header.exists() for header in headers):
        pytest.skip("no headers of the kernel here")
    listed = re.findall(r"(\w+) (\d+|-) (\d+|-)", system_calls._FREE)
    listed += [(name, str(x86), str(arm)) for name, (x86, arm), _ in system_calls._CHECKED]
    for column, header in enumerate(headers, 1):
        numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", header.read_text()))
        known = {call[0]: call[column] for call in listed if call[0] in numbers and call[column] != "-"}
        assert known == {name: numbers[name] for name in known}
        assert len(known) > 100


@isolated
def test_a_daemon_does_not_outlive_its_program():
    daemon = (
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\n    os._exit(0)\ntime.sleep(1)"
    )
    outcome, most, left = watched(daemon, named, timeout=10)
    assert outcome.status == "passed"
    assert most > 1
    assert left == 0


@isolated
def test_a_program_ends_with_its_caller():
    name = f"t{secrets.token_hex(6)}"
    program = f"import ctypes, time\nctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\ntime.sleep(600)"
    request = sandbox._request(program, timeout=600, memory=512, processes=1)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-I", "-S", str(sandbox._JAIL)], stdin=pipe, stdout=pipe, env={}) as jail:
        jail.stdin.write(json.dumps(request).encode() + b"\n")
        jail.stdin.flush()
        while not named(name) and jail.poll() is None:
            time.sleep(0.02)
        assert named(name) == 1
        jail.stdin.close()
        jail.wait()
        assert named(name) == 0


@isolated
@pytest.mark.parametrize("family", ["AF_INET", "AF_VSOCK"])
def test_no_connection_reaches_a_local_listening_socket(family):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = server.getsockname() if family == "AF_INET" else (2, 1)
        outcome = run(f"import socket\nsocket.socket(socket.{family}).connect({address!r})")
        with pytest.raises(BlockingIOError):
            server.accept()
    assert outcome.error == "PermissionError: [Errno 1] Operation not permitted"


@isolated
def test_no_file_outside_is_written(tmp_path):
    file = tmp_path / "precious"
    file.write_text("kept")
    assert run(f"open({str(file)!r}, 'w').write('lost')").status == "failed"
    assert file.read_text() == "kept"


@isolated
def test_no_file_of_the_user_is_read(tmp_path):
    (tmp_path / "secret").write_text("secret")
    assert "FileNotFoundError" in run(f"open({str(tmp_path / 'secret')!r})").error


@isolated
def test_the_library_is_not_writable():
    assert run("import os\nassert os.statvfs(os.__file__).f_flag & os.ST_RDONLY").status == "passed"


@isolated
def test_scratch_files_are_gone_in_the_next_run():
    assert run("open('here', 'w').close()").status == "passed"
    assert run("import os\nassert os.listdir('.') == []").status == "passed"


@isolated
def test_the_environment_stays_outside(monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    assert (
        run("import os\nassert not os.environ, os.environ\nassert not os.path.exists('/proc/self')").status == "passed"
    )


@isolated
def test_open_files_stay_outside(tmp_path):
    with open(tmp_path / "open", "w", encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), True)
        program = "import os\nopen_ = []\nfor fd in range(64):\n    try: open_.append((fd, os.fstat(fd).st_ino))\n"
        outcome = run(f"{program}    except OSError: pass\nraise ValueError(len(open_))")
    assert outcome.error == "ValueError: 4"  # three to nowhere, and the one that the report goes to


@isolated
def test_a_flood_of_output_goes_nowhere(capfd):
    assert run("for _ in range(10**4): print('x' * 10**4)", timeout=60).status == "passed"
    assert capfd.readouterr() == ("", "")


@isolated
def test_a_long_error_is_cut():
    assert len(run("raise ValueError('x' * 10**6)").error) == 1000


@isolated
def test_what_a_program_rebinds_does_not_hide_its_end():
    assert run("import os, traceback\nos.write = os._exit = os.getpid = None").status == "passed"


@pytest.mark.parametrize("limit", [{"timeout": 0}, {"processes": 0}, {"memory": 1}])
def test_limits_that_allow_nothing_are_refused(limit):
    with pytest.raises(InputError, match="above 0 s"):
        run("x = 1", **limit)


@pytest.fixture
def fresh():
    available.cache_clear()
    yield
    available.cache_clear()


def test_without_namespaces_nothing_is_run(fresh, monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(InputError, match="isolation or not at all, which can't be had here: it needs Linux"):
        run("x = 1")


def test_a_kernel_that_denies_is_quoted(fresh, monkeypatch, tmp_path):
    jail = tmp_path / "jail.py"
    jail.write_text(
        'import os\ninput()\nos.write(1, b\'{"refused": "no new user namespace: Operation not permitted"}\')'
    )
    monkeypatch.setattr(sandbox, "_JAIL", jail)
    with pytest.raises(InputError, match=r"no new user namespace: Operation not permitted .*user namespaces"):
        run("x = 1")


@pytest.mark.parametrize("wall", [r"_give_up_privileges\(\)", r"_restrict_system_calls\(request.*\)"])
def test_a_wall_that_does_not_hold_is_noticed(fresh, monkeypatch, tmp_path, wall):
    source, walls = re.subn(rf"\n        {wall}\n", "\n", sandbox._JAIL.read_text())
    assert walls == 1
    jail = tmp_path / "jail.py"
    jail.write_text(source)
    monkeypatch.setattr(sandbox, "_JAIL", jail)
    assert available() is not None


def test_a_machine_whose_system_calls_are_not_known_is_refused(fresh, monkeypatch):
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(sandbox.sys, "platform", "linux")
    with pytest.raises(InputError, match="not known for riscv64, only for x86_64 and aarch64"):
        run("x = 1")
