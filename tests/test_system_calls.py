"""What untrusted programs may ask of the kernel: nothing that no limit covers."""

import os
import re
from pathlib import Path

import pytest
from sandboxed import REASON, isolated, status_of, watched

from lit_spectral.scoring.code_execution import run, system_calls

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
