"""Entries of a shared folder: whole or not there, made by one process, left behind by none."""

import logging
import multiprocessing
import os
import time

import pytest

from lit_spectral.files import locked, written


def make(entry, content):
    with locked(entry) as trouble, written(entry) as scratch:
        assert trouble is None
        scratch.mkdir()
        (scratch / "file").write_text(content)


def test_an_entry_appears_flushed_from_the_inside_out(tmp_path, monkeypatch):
    entry, events = tmp_path / "entry", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: events.append(os.readlink(f"/proc/self/fd/{fd}")) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *paths: events.append(entry.exists()) or replace(*paths))
    make(entry, "whole")
    scratch = str(tmp_path / "entry.part")
    assert events == [f"{scratch}/file", scratch, False, str(tmp_path)]
    assert (entry / "file").read_text() == "whole"


def test_after_an_exception_there_is_what_was_there_before(tmp_path):
    entry = tmp_path / "entry"
    entry.write_text("before")
    with locked(entry), pytest.raises(UnicodeEncodeError), written(entry) as scratch:
        scratch.write_text("half \ud800")
    assert entry.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"entry", "locks"}


def test_who_may_read_the_folder_may_read_what_a_library_wrote_for_its_user_alone(tmp_path):
    tmp_path.chmod(0o750)
    entry = tmp_path / "entry"
    with locked(entry), written(entry) as scratch:
        scratch.touch(0o600)
    assert entry.stat().st_mode & 0o777 == 0o640


def test_what_a_killed_process_left_goes_at_the_next_run_and_what_a_living_one_makes_stays(tmp_path):
    for name in ("dead.part", "living.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "dead file.part").touch()
    with multiprocessing.get_context("spawn").Pool(1) as other:
        held = locked(tmp_path / "living")
        with held:
            (tmp_path / "living.part").mkdir()  # the first one was a dead process's
            other.apply(make, (tmp_path / "new", "x"))
        assert {path.name for path in tmp_path.iterdir()} == {"living.part", "new", "locks"}


def make_if_missing(entry, ready, made, said):
    logging.getLogger("lit_spectral.files").addHandler(handler := logging.Handler())
    handler.emit = lambda record: said.put(record.getMessage())
    ready.wait()
    with locked(entry):
        if not entry.exists():
            with written(entry) as scratch:
                time.sleep(0.5)  # for the other to meet the lock
                scratch.touch()
            with made.get_lock():
                made.value += 1


def test_of_two_processes_one_makes_an_entry_and_the_other_waits_which_it_says_in_one_line(tmp_path):
    context = multiprocessing.get_context("spawn")
    made, ready, said = context.Value("i", 0), context.Barrier(2), context.SimpleQueue()
    arguments = (tmp_path / "entry", ready, made, said)
    processes = [context.Process(target=make_if_missing, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert made.value == 1
    assert said.get() == f"waiting for {tmp_path / 'entry'}, which another process is making"
    assert said.empty()


def test_where_nothing_may_be_written_there_are_no_locks_which_is_told_why(read_only_folder):
    with locked(read_only_folder / "entry") as trouble:
        assert isinstance(trouble, PermissionError)
