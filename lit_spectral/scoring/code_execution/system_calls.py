"""Which system calls an untrusted program may make: those that Python's standard library needs and no others.

What the kernel keeps for a caller beside his address space (semaphores, message queues, watches,
timers, keys, registered buffers, whatever comes next) is under no limit of a process, so the list
says what is allowed. A few allowed calls are so with certain arguments only.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["MACHINES", "rules"]

# Of each machine, as uname names it: its name to the kernel's filters, and its column of numbers below.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Name, number on x86-64, number on 64-bit ARM; "-" where it has none.
_FREE = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
preadv2 327 286, pwritev2 328 287, sendfile 40 71, copy_file_range 326 285, lseek 8 62, close 3 57,
close_range 436 436, dup 32 23, dup2 33 -, dup3 292 24, open 2 -, openat 257 56, openat2 437 437, creat 85 -,
access 21 -, faccessat 269 48, faccessat2 439 439, stat 4 -, lstat 6 -, fstat 5 80, newfstatat 262 79, statx 332 291,
statfs 137 43, fstatfs 138 44, getdents 78 -, getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50, mkdir 83 -,
mkdirat 258 34, rmdir 84 -, link 86 -, linkat 265 37, unlink 87 -, unlinkat 263 35, symlink 88 -, symlinkat 266 36,
readlink 89 -, readlinkat 267 78, rename 82 -, renameat 264 38, renameat2 316 276, mknod 133 -, mknodat 259 33,
chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54,
umask 95 166, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, truncate 76 45, ftruncate 77 46,
fallocate 285 47, fsync 74 82, fdatasync 75 83, flock 73 32, getxattr 191 8, lgetxattr 192 9, fgetxattr 193 10,
listxattr 194 11, llistxattr 195 12, flistxattr 196 13, pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73,
select 23 -, pselect6 270 72,

sendto 44 206, recvfrom 45 207, shutdown 48 210, getsockopt 55 209, getsockname 51 204, getpeername 52 205,

munmap 11 215, mprotect 10 226, madvise 28 233, msync 26 227, brk 12 214, membarrier 324 283,

fork 57 -, vfork 58 -, clone 56 220, clone3 435 435, exit 60 93, exit_group 231 94, wait4 61 260, waitid 247 95,
pidfd_open 434 434, getpid 39 172, getppid 110 173, gettid 186 178, getpgid 121 155, getpgrp 111 -, setpgid 109 154,
getsid 124 156, setsid 112 157, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148,
getresgid 120 150, getgroups 115 158, getpriority 140 141, getrlimit 97 163, setrlimit 160 164, prlimit64 302 261,
getrusage 98 165, times 100 153, uname 63 160, sysinfo 99 179, getcpu 309 168, getrandom 318 278, futex 202 98,
rseq 334 293, set_tid_address 218 96, set_robust_list 273 99, sched_yield 24 124, sched_getaffinity 204 123,
sched_getparam 143 121, sched_getscheduler 145 120, sched_get_priority_max 146 125, sched_get_priority_min 147 126,
sched_rr_get_interval 148 127,

rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137,
rt_sigsuspend 130 133, sigaltstack 131 132, restart_syscall 219 128, kill 62 129, tkill 200 130, tgkill 234 131,
pause 34 -, alarm 37 -, getitimer 36 102, setitimer 38 103, nanosleep 35 101, clock_nanosleep 230 115,
clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -
"""
_NEWEST = 452  # what is numbered beyond is answered as by a kernel that lacks it, so that C libraries do without

_ALL = 0xFFFFFFFF
_NEAR = None  # stands for the addresses round the C library, which only the process itself knows
# Name, numbers, and of its arguments: position, whether the upper half of its 64 bits, mask, and the values allowed.
_CHECKED: tuple[tuple[str, tuple[int, int], list[tuple[int, bool, int, list[int | None]]]], ...] = (
    # Shared memory without a file (0x21) stays whole for as long as one page of it is mapped. Pages
    # strewn over all addresses cost twice their size in page tables, which no limit counts.
    ("mmap", (9, 222), [(3, False, 0x2F, [0x01, 0x02, 0x03, 0x22]), (0, True, _ALL, [0, _NEAR])]),
    ("mremap", (25, 216), [(3, False, _ALL, [0, 1])]),  # to no address of its own choice
    # Duplicates and flags. No locks on parts of files, which are under no limit, nor bigger pipes.
    ("fcntl", (72, 25), [(1, False, _ALL, [0, 1, 2, 3, 4, 1030, 1032])]),
    # What isatty, get_terminal_size, set_blocking and set_inheritable ask, and how much there is to read.
    ("ioctl", (16, 29), [(1, False, _ALL, [0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451])]),
    # Streams, as asyncio and multiprocessing make them: what is in one counts towards its sender's buffer.
    ("socketpair", (53, 199), [(1, False, 0xF, [1])]),
    ("prctl", (157, 167), [(0, False, _ALL, [1, 15, 16])]),  # the signal at a parent's death, and names
)


def rules(machine: str) -> dict[str, Any]:
    """What jail.py makes a seccomp filter of, in what JSON can hold.

    Args:
        machine: one of `MACHINES`.

    Returns:
        `architecture` and `newest`, numbers; `free`, numbers of the calls that are allowed; `checked`,
        pairs of a call's number and its conditions [offset in struct seccomp_data, mask, values].
    """
    architecture, column = MACHINES[machine]
    numbers = re.findall(r"\w+ (\d+|-) (\d+|-)", _FREE)
    checked = [
        (both[column], [(16 + 8 * position + 4 * upper, mask, values) for position, upper, mask, values in conditions])
        for _, both, conditions in _CHECKED
    ]
    free = [int(both[column]) for both in numbers if both[column] != "-"]
    return {"architecture": architecture, "newest": _NEWEST, "free": free, "checked": checked}
