"""Untrusted programs, each in a process of its own that can reach next to nothing, or not at all."""

from __future__ import annotations

import functools
import json
import platform
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from lit_spectral.errors import InputError
from lit_spectral.scoring.code_execution.system_calls import MACHINES, rules

__all__ = ["Outcome", "available", "run"]

_JAIL = Path(__file__).with_name("jail.py")

# Run once inside: ends without an error only if what a program is to be kept from is kept from it.
_PROBE = """
import hashlib, json, os, random, re, socket, threading, time

assert os.getuid() != 0, "it runs as root"
assert not os.environ, "there is an environment"
assert not any(map(os.path.exists, ("/etc/passwd", "/proc/self", "/sys/kernel", "/dev/tty"))), "files are in reach"
try:
    open("/probe", "w")
except OSError:
    pass
else:
    raise AssertionError("the root is writable")
open("/tmp/probe", "w").close()
try:
    socket.socket()
except PermissionError:
    pass
else:
    raise AssertionError("sockets can be made")
try:
    for _ in range(PROCESSES):
        if os.fork() == 0:
            time.sleep(60)
except BlockingIOError:
    pass
else:
    raise AssertionError("the number of processes is not limited")
"""


class Outcome(NamedTuple):
    """What became of a program.

    Attributes:
        status: `passed` (control came back from its last statement), `failed` (an exception, or an
            exit of its own before that), `timed out`, `out of memory` or `killed` (by a signal).
        error: one line: the exception as Python words it, or what else went wrong; empty if passed.
        seconds: wall-clock time from its start, set-up not included.
    """

    status: str
    error: str
    seconds: float


def run(program: str, timeout: float = 3.0, memory: int = 512, processes: int = 4) -> Outcome:
    """Execute a Python program in isolation (standard library only), and wait for its end.

    What holds it, and what doesn't, is in docs/code_execution.md: new user, mount, PID, network, IPC
    and host-name namespaces, a file system with nothing but the interpreter's libraries, an empty
    environment, no privileges, few system calls, resource limits. Its output is thrown away.

    Args:
        program: source text.
        timeout: seconds of wall-clock time; as many of processor time, rounded up, and one more.
        memory: address space in MiB of each of its processes, the interpreter's 30 or so included.
        processes: how many it may have at a time, threads counted, itself included.

    Raises:
        InputError: isolation can't be had here, so that nothing is run; a limit that is not positive.
    """
    if timeout <= 0 or processes < 1 or memory < 64:
        raise InputError("a program needs a timeout above 0 s, at least 1 process and at least 64 MiB of memory")
    reason = available()
    if reason is not None:
        raise InputError(f"untrusted code is run in isolation or not at all, which can't be had here: {reason}")
    answer = _ask(program, timeout, memory, processes)
    if "refused" in answer:  # since it was tried; namespaces may have run out
        raise InputError(f"untrusted code is run in isolation or not at all, which failed: {answer['refused']}")
    return Outcome(answer["status"], answer["error"], answer["seconds"])


@functools.cache
def available() -> str | None:
    """Why programs can't be isolated on this machine, or None if they can; found by trying, once a process."""
    if not sys.platform.startswith("linux"):
        return "it needs Linux's namespaces (run this on Linux 5.14 or newer, or in a virtual machine with it)"
    processes = 3
    answer = _ask(f"PROCESSES = {processes}\n{_PROBE}", timeout=60, memory=512, processes=processes)
    if "refused" in answer:
        return (
            f"{answer['refused']} (it needs Linux 5.14 or newer with unprivileged user namespaces, which "
            "sysctl user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns, and the "
            "settings of a container, can rule out)"
        )
    return (
        None
        if answer["status"] == "passed"
        else f"a program that tries its walls {answer['status']}: {answer['error']}"
    )


def _request(program: str, timeout: float, memory: int, processes: int) -> dict[str, Any]:
    """What jail.py is asked."""
    return {
        "program": program,
        "timeout": timeout,
        "memory": memory << 20,
        "processes": processes,
        "system_calls": rules(platform.machine()),
        "token": secrets.token_hex(16),  # that the end was reached can't be claimed by printing a word
    }


def _ask(program: str, timeout: float, memory: int, processes: int) -> dict[str, Any]:
    """The jail's answer to one request."""
    machine = platform.machine()
    if machine not in MACHINES:
        known = " and ".join(MACHINES)
        return {"refused": f"which system calls to allow is not known for {machine}, only for {known}"}
    request = _request(program, timeout, memory, processes)
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_JAIL)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env={}, cwd="/", start_new_session=True
    ) as jail:
        assert jail.stdin
        assert jail.stdout
        assert jail.stderr
        try:
            jail.stdin.write(json.dumps(request).encode() + b"\n")
            jail.stdin.flush()
            answer = jail.stdout.read()
        except BrokenPipeError:
            answer = b""
        complaint = jail.stderr.read().decode(errors="replace")
    if not answer:
        last = (complaint.strip().splitlines() or ["it said nothing"])[-1]
        return {"refused": f"the process that isolates ended early: {last}"}
    found: dict[str, Any] = json.loads(answer)
    return found
