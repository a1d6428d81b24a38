"""Every hostile file, uploaded to one running platform: the right answer, and a platform that is none the worse."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx
import psutil
import pytest

from tests.acceptance.problems import check_problem
from tests.support.jobs import quick
from tests.support.platform import Platform, breast_cancer_csv
from tests.support.servers import wait_until
from tests.unit.data.test_hostile import ACCEPTED, REFUSED

pytestmark = pytest.mark.slow  # each file by itself: tests/unit/data/test_hostile.py
EMPTY = {"24_empty.csv", "83_empty.onnx"}  # refused at the door, since there is nothing to keep
NAMES = sorted([*ACCEPTED, *REFUSED])
KEPT = [name for name in NAMES if name not in EMPTY]
MARKS = ("PICKLE_WAS_EXECUTED", "evil.csv", "evil_abs.csv", "evil_win.csv", "evil_tar.csv", "hard", "fifo")
GROWTH = 150 << 20  # bytes that the gateway may grow by
CHILD = 1 << 30  # bytes that a job child may take


class Memory:
    """The largest resident size, bytes, of the gateway and of any job child, sampled in a thread."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        [self._gateway] = platform.processes("app.gateway.main")
        self.first = self.gateway = self._gateway.memory_info().rss
        self.child = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.gateway = max(self.gateway, self._gateway.memory_info().rss)
            for child in self._platform.children():
                try:
                    self.child = max(self.child, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@dataclass
class Outcome:
    """What the platform said to each file, and what it was like meanwhile."""

    platform: Platform
    folder: Path
    answers: dict[str, httpx.Response]
    memory: Memory
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    outside: list[Path] = field(default_factory=list)  # what there was in the temporary and home folders afterwards


@pytest.fixture(scope="module")
def outcome(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """Eight at a time, all files, each as a data set of its own; then wait until all are parsed."""
    folder = shared_data / "hostile"
    temporary, home = tmp_path_factory.mktemp("tmpdir"), tmp_path_factory.mktemp("home")
    with Platform(workers=2, TMPDIR=str(temporary), HOME=str(home)) as platform, Memory(platform) as memory:

        def upload(name: str) -> httpx.Response:
            with (folder / name).open("rb") as file:
                return platform.client.post(
                    "/api/v1/datasets", data={"name": _dataset(name), "kind": "auto"}, files={"file": (name, file)}
                )

        with ThreadPoolExecutor(8) as pool:
            answers = dict(zip(NAMES, pool.map(upload, NAMES), strict=True))
        made = Outcome(platform, folder, answers, memory)
        wait_until(lambda: _counted(platform, "queued") + _counted(platform, "running") == 0, 200, "all are parsed")
        made.outside = [path for root in (temporary, home) for path in root.iterdir()]
        made.versions = {name: platform.call("GET", f"{_path(name)}") for name in KEPT}
        yield made


def _dataset(name: str) -> str:
    return f"hostile-{NAMES.index(name):02d}"


def _path(name: str) -> str:
    return f"/api/v1/datasets/{_dataset(name)}/versions/1"


def _counted(platform: Platform, state: str) -> int:
    return len(platform.call("GET", "/api/v1/jobs", params={"state": state, "limit": 500})["items"])


def test_all_92_were_sent(outcome: Outcome) -> None:
    assert len(outcome.answers) == 92
    assert {name for name, answer in outcome.answers.items() if answer.status_code != 201} == EMPTY


@pytest.mark.parametrize("name", sorted(EMPTY))
def test_an_empty_file_is_refused_at_once(outcome: Outcome, name: str) -> None:
    check_problem(outcome.answers[name], 422, "invalid_input", ["file"], "empty")
    outcome.platform.call("GET", f"/api/v1/datasets/{_dataset(name)}", 404)


@pytest.mark.parametrize("name", sorted(set(REFUSED) - EMPTY))
def test_refused(outcome: Outcome, name: str) -> None:
    version = outcome.versions[name]
    assert version["state"] == "failed"
    assert (version["error"]["code"], version["error"]["retryable"]) == ("invalid_data", False)
    assert REFUSED[name] in version["error"]["detail"]
    assert "Traceback" not in str(version)
    assert (version["rows"], version["schema"]) == (None, {"columns": []})
    check_problem(outcome.platform.client.get(f"{_path(name)}/rows"), 404, "not_found")
    job = outcome.platform.call("GET", version["links"]["job"])
    assert (job["state"], job["attempt"]) == ("failed", 1)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(outcome: Outcome, name: str) -> None:
    rows, types, lines, word = ACCEPTED[name]
    version = outcome.versions[name]
    assert (version["state"], version["rows"], version["error"]) == ("ready", rows, None)
    assert {column["name"]: column["type"] for column in version["schema"]["columns"]} == types
    assert version["rejected_rows"]["count"] == len(lines)
    assert [row["line"] for row in version["rejected_rows"]["first"]] == lines
    assert any(word in warning for warning in version["warnings"]) or not word
    shown = outcome.platform.call("GET", f"{_path(name)}/rows", params={"limit": 100})
    assert len(shown["items"]) == shown["previewed"] == min(rows, 100)
    assert all(list(row) == list(types) for row in shown["items"])


@pytest.mark.parametrize("name", KEPT)
def test_the_original_comes_back_as_it_was_sent(outcome: Outcome, name: str) -> None:
    answer = outcome.platform.client.get(f"{_path(name)}/original")
    assert answer.status_code == 200
    assert answer.content == (outcome.folder / name).read_bytes()
    assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{quote(name)}"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert outcome.versions[name]["filename"] == name


def test_ids_beyond_double_precision_are_exact(outcome: Outcome) -> None:
    shown = outcome.platform.call("GET", f"{_path('32_huge_ints.csv')}/rows")["items"]
    assert [row["id"] for row in shown[:4]] == [
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "00123",
    ]


def test_script_in_a_cell_is_json_and_nothing_else(outcome: Outcome) -> None:
    answer = outcome.platform.client.get(f"{_path('28_csv_injection.csv')}/rows")
    assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == ("application/json", "nosniff")
    assert answer.json()["items"][3]["name"] == "<script>alert(1)</script>"


def test_a_target_without_labels_is_refused_before_it_is_queued(outcome: Outcome) -> None:
    _refuse_target(outcome, "29_all_missing_target.csv", "every value of 'label' is missing")


def test_a_target_with_one_class_is_refused_before_it_is_queued(outcome: Outcome) -> None:
    _refuse_target(outcome, "30_single_class_target.csv", "one class only")


def _refuse_target(outcome: Outcome, name: str, word: str) -> None:
    spec = quick("never", dataset=f"{_dataset(name)}@1", target="label")
    check_problem(outcome.platform.client.post("/api/v1/jobs", json=spec), 422, "invalid_spec", ["target"], word)
    outcome.platform.call("GET", "/api/v1/models/never", 404)


def test_infinite_numbers_do_not_reach_the_answers(outcome: Outcome, strict: Callable[[bytes], Any]) -> None:
    name = "31_inf_nan_numbers.csv"
    job = outcome.platform.submit(**quick("finite", dataset=f"{_dataset(name)}@1", target="label"))
    outcome.platform.wait(job["id"], "succeeded")
    for path in (
        _path(name),
        f"{_path(name)}/profile",
        f"{_path(name)}/rows",
        f"/api/v1/jobs/{job['id']}",
        "/api/v1/models/finite/versions/1",
        "/api/v1/models/finite/versions/1/card",
    ):
        strict(outcome.platform.client.get(path).content)


def test_the_service_still_works(outcome: Outcome) -> None:
    assert outcome.platform.call("GET", "/readyz", 200)["status"] == "ok"
    assert outcome.platform.upload("after", breast_cancer_csv())["rows"] == 569
    assert len(outcome.platform.call("GET", "/api/v1/workers")["items"]) == 2


def test_memory_stayed_bounded(outcome: Outcome) -> None:
    assert outcome.memory.gateway - outcome.memory.first < GROWTH
    assert 0 < outcome.memory.child < CHILD


def test_no_process_and_no_file_is_left(outcome: Outcome) -> None:
    platform = outcome.platform
    wait_until(lambda: not platform.children(), 10, "the last child has ended")
    assert outcome.outside == []
    assert [path.name for path in platform.folder.iterdir()] == ["data"]
    assert {path.name for path in platform.data_dir.iterdir()} <= {
        "jobs",
        "launcher.lock",
        "signing.key",
        "redis",
        "redis.sock",
        "gateway-0.sock",
        "registry.db",
        "registry.db-shm",
        "registry.db-wal",
        "serving",
        "store",
    }
    wait_until(lambda: not list((platform.data_dir / "jobs").glob("*/*")), 10, "job folders are removed")
    assert list((platform.data_dir / "store" / "tmp").iterdir()) == []


def test_no_pickle_ran_and_nothing_was_unpacked_outside(outcome: Outcome) -> None:
    found = [path for path in outcome.platform.folder.rglob("*") if path.name in MARKS]
    around = [Path("/"), Path("/etc"), Path.cwd(), Path.home(), *outcome.platform.folder.parents]
    found += [folder / mark for folder in around for mark in MARKS if (folder / mark).exists()]
    assert found == []
