"""Run as a script, `python -I -S jail.py`: shuts itself in, then executes one program that nobody vouches for.

Of the standard library alone, because it runs before anything else is importable. The request is
one line of JSON on standard input, which stays open: when it closes, the caller is gone and the
program is killed. The answer is JSON on standard output. What holds the program is described in
docs/code_execution.md; the order of the steps below matters, since each needs a privilege that a
later one gives up.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import sysconfig
import time
import traceback
import types
from typing import Any

# Flags of unshare(2), mount(2), umount2(2), mount_setattr(2) and prctl(2), the same on every architecture.
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 442, -100, 0x8000, 1, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_SET_THP_DISABLE = 1, 4, 22, 38, 41
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3 = 0x20080522

NOBODY = 65534  # whom the program runs as, seen from inside; root's processes would be under no limit of number
SCRATCH = "/tmp"
SCRATCH_BYTES = 16 << 20  # of all files together, and of each: a file in memory counts towards no process
OPEN_FILES = 64
PENDING_SIGNALS = 64
LONGEST_REPORT = 1000

libc = ctypes.CDLL(None, use_errno=True)


class RefusedError(Exception):
    """A step of the isolation failed; nothing has been run."""


def main() -> None:
    """Answer one request."""
    os.environ.clear()  # Python adds a locale to the empty one that it was given
    os.umask(0o022)  # the program, as nobody, must get at what is made here
    request = json.loads(_request())
    answer: dict[str, Any]
    try:
        _enter_namespaces()
        _replace_file_system()
        _give_up_privileges()
        _restrict_system_calls(request["system_calls"], request["memory"])
    except (RefusedError, OSError) as error:
        answer = {"refused": str(error)}
    else:
        answer = _supervise(request)
    os.write(1, json.dumps(answer).encode())


def _request() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1 << 16)
        if not part:
            sys.exit(1)  # the caller is gone
        line += part
    return line


def _enter_namespaces() -> None:
    """Fresh user, mount, PID, network, IPC and host-name namespaces, with all rights inside for now.

    Whoever made a user namespace can't map users other than himself from within, so a helper that
    stays outside does it. Root maps nobody beside himself, and becomes nobody later.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        try:
            os.setgroups([])
        except OSError as error:
            raise RefusedError(f"root can't leave its groups: {error.strerror}") from None
    reading, writing = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(writing)
        try:
            made = os.read(reading, 1)
            if made:
                _map_users(os.getppid(), uid, gid)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    os.close(reading)
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    failed = libc.unshare(flags) != 0 and ctypes.get_errno()
    if not failed:
        os.write(writing, b".")
    os.close(writing)
    _, status = os.waitpid(mapper, 0)
    if failed:
        raise RefusedError(f"no new user namespace: {os.strerror(failed)}")
    if status:
        raise RefusedError(f"users can't be mapped: {os.strerror(os.waitstatus_to_exitcode(status))}")
    _check(libc.sethostname(b"sandbox", 7), "no host name can be given")
    # A user namespace of the program's own would give it rights, and mounts, that no limit here covers.
    with open("/proc/sys/user/max_user_namespaces", "w", encoding="ascii") as file:
        file.write("0")


def _map_users(pid: int, uid: int, gid: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 0 1\n{NOBODY} {NOBODY} 1\n" if uid == 0 else f"{NOBODY} {uid} 1\n"),
        ("gid_map", f"0 {gid} 1\n{NOBODY} {NOBODY} 1\n" if uid == 0 else f"{NOBODY} {gid} 1\n"),
    ):
        file = os.open(f"/proc/{pid}/{name}", os.O_WRONLY)
        os.write(file, text.encode())
        os.close(file)


def _replace_file_system() -> None:
    """A root of its own: the interpreter's libraries, two devices, all read-only, and an empty scratch folder."""
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    # The new root needs a mount point that hides none of its sources; /proc is there on every
    # Linux, is needed no more, and is covered in this namespace only.
    root = "/proc"
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in _visible():
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):  # /lib is usr/lib on most systems
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(path, target, None, MS_BIND | MS_REC)
    os.makedirs(root + SCRATCH)
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    what = (SYS_MOUNT_SETATTR, AT_FDCWD, root.encode(), AT_RECURSIVE, attributes, ctypes.sizeof(attributes))
    _check(libc.syscall(*what), "mounts can't be made read-only")
    options = f"size={SCRATCH_BYTES},nr_inodes=1024,mode=777"
    _mount("tmpfs", root + SCRATCH, "tmpfs", MS_NOSUID | MS_NODEV, options)
    os.chdir(root)
    _check(libc.pivot_root(b".", b"."), "root can't be replaced")
    _check(libc.umount2(b".", MNT_DETACH), "the old root can't be detached")
    os.chdir(SCRATCH)


def _visible() -> list[str]:
    """What the interpreter reads after it has started: its modules, the shared libraries of those, and devices."""
    prefixes = ["", "/usr", *(os.path.realpath(prefix) for prefix in (sys.base_prefix, sys.base_exec_prefix))]
    libraries = [f"{prefix}/{name}" for prefix in prefixes for name in ("lib", "lib64")]
    modules = [os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    wanted = [*libraries, *modules, "/etc/ld.so.cache", "/dev/null", "/dev/urandom"]
    chosen: list[str] = []
    for path in wanted:
        inside = any(path == other or path.startswith(other + "/") for other in chosen if not os.path.islink(other))
        if os.path.exists(path) and not inside:
            chosen.append(path)
    return chosen


def _give_up_privileges() -> None:
    """Become nobody, with no capability, no way to get one, and a memory that no other process may look into."""
    if os.getuid() == 0:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _check(libc.capset(header, none), "capabilities can't be dropped")
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "privileges can't be ruled out")
    _check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "memory can't be hidden")
    # Of a huge page all is kept for as long as any of it is mapped.
    _check(libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), "huge pages can't be ruled out")


def _restrict_system_calls(rules: dict[str, Any], memory: int) -> None:
    """A seccomp filter (classic BPF over struct seccomp_data), as of system_calls.py: the rest fails with EPERM."""
    # Where the kernel puts mappings that ask for no address; all of them are within `memory` of each other.
    here, reach = ctypes.cast(libc.mmap, ctypes.c_void_p).value or 0, memory + (1 << 30)
    near = (max(here - reach, 0) >> 32, (here + reach) >> 32)
    load, mask_, give = 0x20, 0x54, 0x06  # BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_RET|K
    equal, above, at_least = 0x15, 0x25, 0x35  # BPF_JMP|JEQ|K, JGT, JGE: steps skipped if so, and if not
    allow, kill = (give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x80000000)
    deny, unknown = ((give, 0, 0, 0x00050000 | error) for error in (errno.EPERM, errno.ENOSYS))
    steps = [(load, 0, 0, 4), (equal, 1, 0, rules["architecture"]), kill, (load, 0, 0, 0)]
    for number in rules["free"]:
        steps += [(equal, 0, 1, number), allow]
    for number, conditions in rules["checked"]:
        block = []
        for offset, mask, values in conditions:
            ranges = [near if value is None else (value, value) for value in values]
            block += [(load, 0, 0, offset), (mask_, 0, 0, mask)]
            for left, (low, high) in zip(reversed(range(len(ranges))), ranges, strict=True):
                block += [(at_least, 0, 1, low), (above, 0, 2 * left + 1, high)]
            block.append(deny)
        block.append(allow)
        steps += [(equal, 0, len(block), number), *block]
    steps += [(above, 0, 1, rules["newest"]), unknown, deny]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HL", len(steps), ctypes.addressof(code))
    _check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0), "system calls can't be forbidden")


def _supervise(request: dict[str, Any]) -> dict[str, Any]:
    """Execute the program in a child, end it when its time is up, and say what became of it."""
    reading, writing = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _execute(request, writing)
    os.close(writing)
    child = os.pidfd_open(pid)
    events = select.poll()
    events.register(child, select.POLLIN)
    events.register(0, 0)  # 0: only hang-ups, when the caller is gone
    ended = dict(events.poll(request["timeout"] * 1000))
    # The child is the first process of its PID namespace: none that it started outlives it.
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - started
    report = os.read(reading, 1 << 16).decode("utf-8", "replace")
    if child not in ended:
        outcome = ("timed out", f"no end after {request['timeout']:g} s")
    elif report == "passed " + request["token"]:
        outcome = ("passed", "")
    elif report == "memory":
        outcome = ("out of memory", f"more than {request['memory'] >> 20} MiB")
    elif report.startswith("failed "):
        outcome = ("failed", report.removeprefix("failed ")[:LONGEST_REPORT])
    elif os.WIFSIGNALED(status):
        outcome = ("killed", signal.Signals(os.WTERMSIG(status)).name)
    else:
        outcome = ("failed", f"left before its end, with exit status {os.WEXITSTATUS(status)}")
    return {"status": outcome[0], "error": outcome[1], "seconds": seconds}


def _execute(request: dict[str, Any], writing: int) -> None:
    """The program as `__main__`; a report goes into the pipe when control comes back from it. Never returns."""
    # Held by name, since the program may rebind what modules hold.
    write, leave, process, describe = os.write, os._exit, os.getpid, traceback.format_exception_only
    report = b"failed before the program was reached"
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        null = os.open("/dev/null", os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.closerange(3, writing)
        os.closerange(writing + 1, 1024)
        _limit(request)
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(request["program"], "<program>", "exec"), module.__dict__)
        report = b"passed " + request["token"].encode()
    except MemoryError:
        report = b"memory"  # what else is said would need memory
    except BaseException as error:  # SystemExit too: the end was not reached
        last = describe(type(error), error)[-1].strip()[:LONGEST_REPORT]
        report = b"failed " + last.encode("utf-8", "backslashreplace")
    finally:
        if process() == 1:  # else a copy that the program made of itself
            write(writing, report)
        leave(0)


def _limit(request: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_AS: request["memory"],
        resource.RLIMIT_CPU: math.ceil(request["timeout"]) + 1,
        # One more: this process's parent is counted too, being of the same user in the same namespace.
        resource.RLIMIT_NPROC: request["processes"] + 1,
        resource.RLIMIT_FSIZE: SCRATCH_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_SIGPENDING: PENDING_SIGNALS,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    source_, kind_, options_ = (None if text is None else text.encode() for text in (source, kind, options))
    done = libc.mount(source_, target.encode(), kind_, ctypes.c_ulong(flags), options_)
    _check(done, f"{source or 'mounts'} can't be mounted on {target}")


def _check(returned: int, failure: str) -> None:
    if returned != 0:
        raise RefusedError(f"{failure}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
