"""`make bench-jobs`: the queue and the lists, through the public API of a running platform.

Prints, for the embedded defaults: POST to the child's first line of work with a warm spare, enqueues per second, the
time of a page of 10,000 queued jobs, and the time from a cancel to the end of the process. The load comes from wrk,
which takes a tenth of a core: a client in Python would take as much of the two cores as the gateway.
"""

import asyncio
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from app.core.jobs import NewJob
from app.registry.ledger import SqlLedger
from app.registry.migrate import upgrade
from app.registry.session import Database
from tests.support.jobs import long, quick
from tests.support.platform import KEY, Platform, breast_cancer_csv

STARTS = 10
QUEUED = 10_000
CONNECTIONS = 16
ROUND_S = 5
PAGE = 50
CANCELS = 5
# Every job has a name of its own, and with an argument an Idempotency-Key of its own.
LUA = """
local n, keys = 0, false
function init(args) keys = args[1] == "keys" end
function request()
  n = n + 1
  local headers = {["Host"] = wrk.host, ["Content-Type"] = "application/json", ["X-API-Key"] = "%s"}
  if keys then headers["Idempotency-Key"] = os.time() .. "-" .. n end
  return wrk.format("POST", "/api/v1/jobs", headers, (string.gsub('%s', "NUMBER", n)))
end
function done(s, l, r)
  local bad = s.errors.connect + s.errors.read + s.errors.write + s.errors.status + s.errors.timeout
  io.write(string.format('RESULT {"jobs":%%d,"seconds":%%.3f,"p99_ms":%%.2f,"bad":%%d}\\n',
    s.requests, s.duration / 1e6, l:percentile(99) / 1e3, bad))
end
"""


def start_times(platform: Platform) -> list[float]:
    """Seconds from POST to the child's first line, a warm spare waiting each time."""
    found = []
    for number in range(STARTS):
        _wait_for_spare(platform)
        sent = time.time()
        job = platform.submit(**quick(f"start-{number}"))
        platform.wait(job["id"], "succeeded")
        lines = platform.call("GET", f"/api/v1/jobs/{job['id']}/logs")["items"]
        first = next(line["at"] for line in lines if line["message"] == "attempt 1 has started")
        found.append(_epoch(first) - sent)
    return found


def _wait_for_spare(platform: Platform) -> None:
    """Until the only child has imported what it needs: it has used a second of its core or more, and uses none now."""
    used, before = 0.0, -1.0
    while used < 1 or used > before:
        time.sleep(1)
        before, used = used, sum(sum(child.cpu_times()[:2]) for child in platform.children())


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def load(platform: Platform, *words: str) -> dict[str, float]:
    """What wrk tells of one round of `POST /jobs`. Every answer must be a 202."""
    [gateway] = platform.processes("app.gateway.main")
    used_s = sum(gateway.cpu_times()[:2])
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA % (KEY, json.dumps(quick("queued-NUMBER", priority=2))))
        script.flush()
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{ROUND_S}s", "--timeout", "30s", "-s", script.name]
        arguments = [str(platform.url), "--", *words] if words else [str(platform.url)]
        out = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True).stdout
    match = re.search(r"^RESULT (.*)$", out, re.MULTILINE)
    assert match, out
    result: dict[str, float] = json.loads(match[1])
    assert result["bad"] == 0, out
    return result | {"core_ms": (sum(gateway.cpu_times()[:2]) - used_s) / result["jobs"] * 1e3}


def fill(platform: Platform) -> Iterator[tuple[bool, dict[str, float]]]:
    """(with keys?, what wrk tells), by turns until enough jobs are queued."""
    told = 0.0
    while told < QUEUED:
        for keys in (False, True):
            result = load(platform, *(["keys"] if keys else []))
            told += result["jobs"]
            yield keys, result


def enqueue_rates(rounds: int = 5, count: int = 400) -> list[float]:
    """Jobs per second that one process puts into an SQLite queue, one transaction each, without HTTP."""

    async def run(url: str) -> list[float]:
        database = Database(url)
        ledger = SqlLedger(database)
        job = NewJob(kind="train", spec=quick("enqueued"))
        found = []
        for _ in range(rounds):
            started = time.perf_counter()
            for _ in range(count):
                await ledger.enqueue(job)
            found.append(count / (time.perf_counter() - started))
        await database.close()
        return found

    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/registry.db"
        upgrade(url)
        return asyncio.run(run(url))


def page_times(platform: Platform) -> tuple[list[float], int]:
    """(seconds of each page, jobs seen) of walking all queued jobs."""
    found: list[float] = []
    seen = 0
    query: dict[str, Any] = {"limit": PAGE, "state": "queued"}
    while True:
        started = time.perf_counter()
        page = platform.call("GET", "/api/v1/jobs", params=query)
        found.append(time.perf_counter() - started)
        seen += len(page["items"])
        if page["next_cursor"] is None:
            return found, seen
        query["cursor"] = page["next_cursor"]


def cancel_times(platform: Platform) -> list[float]:
    """Seconds from POST cancel until the job's process is gone."""
    found = []
    for number in range(CANCELS):
        job = platform.submit(**long(f"cancel-{number}", priority=0))
        while platform.job(job["id"])["progress"]["fraction"] == 0:
            time.sleep(0.05)
        [child] = [c for c in platform.children() if job["id"] in c.cwd()]
        started = time.perf_counter()
        platform.call("POST", f"/api/v1/jobs/{job['id']}/cancel", 202)
        while child.is_running() and child.status() != "zombie":
            time.sleep(0.002)
        found.append(time.perf_counter() - started)
    return found


def main() -> None:
    if shutil.which("wrk") is None:
        raise SystemExit("this benchmark needs wrk (apt-get install wrk)")
    table = Table("what", "median", "worst", "wanted")
    with Platform(AIMASS_WORKER_SPARE="true") as platform:
        platform.upload("tumours", breast_cancer_csv())
        starts = start_times(platform)
        table.add_row("POST to the child's first line, warm spare", *_summary(starts), "< 500 ms")
        cancels = cancel_times(platform)
        table.add_row("cancel to process gone", *_summary(cancels), "< 1,000 ms")
    with Platform(workers=0) as platform:
        platform.send("tumours", breast_cancer_csv())  # nobody parses it: the jobs wait for it
        rounds = list(fill(platform))
        for keys in (False, True):
            mine = [r for with_keys, r in rounds if with_keys == keys]
            rates, costs = [r["jobs"] / r["seconds"] for r in mine], [r["core_ms"] for r in mine]
            what = f"POST /jobs, {CONNECTIONS} connections{', idempotency keys' if keys else ''}"
            table.add_row(f"{what}: jobs/s", f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}", "≥ 500")
            table.add_row(f"{what}: p99", *_summary([r["p99_ms"] / 1e3 for r in mine]), "")
            table.add_row(f"{what}: core ms a job", f"{statistics.median(costs):.2f}", f"{max(costs):.2f}", "")
        pages, seen = page_times(platform)
        answered = sum(r["jobs"] for _, r in rounds)
        # wrk hangs up at the end of a round without waiting for the last answers.
        assert answered <= seen - 1 <= answered + CONNECTIONS * len(rounds), (answered, seen)
        table.add_row(f"a page of {PAGE} of {seen:,} queued jobs", *_summary(pages), "< 50 ms")
    alone = enqueue_rates()
    table.add_row("enqueues/s, one after another", f"{statistics.median(alone):,.0f}", f"{min(alone):,.0f}", "")
    Console(width=120).print(table)


def _summary(seconds: list[float]) -> tuple[str, str]:
    """(median, worst) in ms."""
    return f"{statistics.median(seconds) * 1e3:,.0f} ms", f"{max(seconds) * 1e3:,.0f} ms"


if __name__ == "__main__":
    main()
