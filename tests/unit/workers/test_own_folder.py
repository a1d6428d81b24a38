"""Folders of agents that were killed, and of those that live."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workers import own_folder
from workers.own_folder import ABANDONED_S, LOCK, OwnFolder

MAKE = "import sys, time; from pathlib import Path; from workers.own_folder import OwnFolder; "
MAKE += "made = OwnFolder(Path(sys.argv[1]), sys.argv[2]); print(flush=True); time.sleep(600)"


Make = Callable[[str], OwnFolder]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """An agent's folder beside the others, for as long as the test lasts."""
    made: list[OwnFolder] = []

    def start(worker: str) -> OwnFolder:
        made.append(OwnFolder(tmp_path, worker))
        return made[-1]

    yield start
    for folder in made:
        folder.remove()


def killed(parent: Path, worker: str) -> Path:
    """What an agent leaves that is killed in the middle of a job."""
    process = subprocess.Popen([sys.executable, "-c", MAKE, str(parent), worker], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        process.kill()
    process.wait()
    (parent / worker / "job-1" / "input").mkdir(parents=True)
    return parent / worker


def of_another_machine(parent: Path, worker: str) -> Path:
    """A folder whose agent's lock is not seen here."""
    folder = killed(parent, worker)
    (folder / LOCK).write_text("another-kernel 1")
    return folder


def age(path: Path, seconds: float) -> None:
    at = path.stat().st_mtime - seconds
    os.utime(path, (at, at))


def test_what_a_killed_agent_left_is_removed_whatever_its_host_was_called_and_whoever_has_its_pid(
    tmp_path: Path, make: Make
):
    left = [killed(tmp_path, "gone-4711-abc"), killed(tmp_path, f"{os.uname().nodename}-{os.getpid()}-abc")]
    own = make("new-1-def")
    assert not any(folder.exists() for folder in left)
    late = killed(tmp_path, "later-1-abc")
    own.sweep()
    assert [late.exists(), own.path.exists()] == [False, True]


def test_a_live_agent_keeps_its_folder_though_its_pid_is_not_seen_and_nothing_has_touched_it_for_days(make: Make):
    live = make(f"{os.uname().nodename}-4194305-abc")  # more than any pid
    age(live.path / LOCK, 9 * ABANDONED_S)
    make("new-1-def")
    assert live.path.exists()


@pytest.mark.parametrize("idle_s", [ABANDONED_S - 60, ABANDONED_S + 60])
def test_where_the_lock_is_not_seen_a_folder_stays_until_it_was_not_touched_for_a_day(
    tmp_path: Path, make: Make, idle_s: float
):
    left = of_another_machine(tmp_path, "other-1-abc")
    age(left / LOCK, idle_s)
    make("new-1-def")
    assert left.exists() is (idle_s < ABANDONED_S)


@pytest.mark.parametrize("idle_s", [0.0, ABANDONED_S + 60])
def test_where_kernels_have_no_name_a_free_lock_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make, idle_s: float
):
    monkeypatch.setattr(own_folder, "_BOOT", tmp_path / "nothing")
    live = make("other-1-abc")
    live._lock.close()  # under another kernel, with a number for the mount that happens to be the same
    age(live.path / LOCK, idle_s)
    make("new-1-def")
    assert live.path.exists() is (idle_s < ABANDONED_S)


@pytest.mark.parametrize("idle_s", [0.0, ABANDONED_S + 60])
def test_without_locks_a_folder_stays_until_it_was_not_touched_for_a_day(
    monkeypatch: pytest.MonkeyPatch, make: Make, idle_s: float
):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    left = make("other-1-abc")
    age(left.path / LOCK, idle_s)
    make("new-1-def")
    assert left.path.exists() is (idle_s < ABANDONED_S)


def test_touching_keeps_a_folder_whose_lock_is_not_seen(make: Make):
    live = make("other-1-abc")
    (live.path / LOCK).write_text("another-kernel 1")
    age(live.path / LOCK, 2 * ABANDONED_S)
    live.touch()
    live._lock.close()  # nor would it be held there
    make("new-1-def")
    assert live.path.exists()


@pytest.mark.parametrize("idle_s", [0.0, ABANDONED_S + 60])
def test_an_agent_that_was_killed_before_it_had_a_lock(tmp_path: Path, make: Make, idle_s: float):
    left = tmp_path / "other-1-abc"
    left.mkdir()
    age(left, idle_s)
    make("new-1-def")
    assert left.exists() is (idle_s < ABANDONED_S)


def test_a_folder_ends_with_its_agent(tmp_path: Path):
    own = OwnFolder(tmp_path / "jobs", "new-1-def")
    own.remove()
    assert not list((tmp_path / "jobs").iterdir())
