"""Programs in the sandbox that are looked at from outside."""

import contextlib
import re
import secrets
import threading
import time
from pathlib import Path

import pytest

from lit_spectral.scoring.code_execution import available, run

REASON = available()


isolated = pytest.mark.skipif(REASON is not None, reason=f"no isolation here: {REASON}")


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
