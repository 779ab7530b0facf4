"""What untrusted programs may do, and may not."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time

import pytest
from sandboxed import isolated, named, watched

from lit_spectral.errors import InputError
from lit_spectral.scoring.code_execution import available, run, sandbox


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


@isolated
def test_scratch_space_is_bounded():
    program = "for i in range(99):\n    with open(f'{i}', 'wb') as file: file.write(bytes(1 << 20))"
    assert run(program).error == "OSError: [Errno 28] No space left on device"


@isolated
def test_a_crash_names_its_signal():
    outcome = run("import ctypes; ctypes.string_at(0)")
    assert (outcome.status, outcome.error) == ("killed", "SIGSEGV")


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
