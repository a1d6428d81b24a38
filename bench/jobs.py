"""`make bench-jobs`: the queue and the lists, through the public API of a running platform.

Prints, for the embedded defaults: POST to the child's first line of work with a warm spare, enqueues per second, the
time of a page of 10,000 queued jobs, and the time from a cancel to the end of the process.
"""

import asyncio
import statistics
import tempfile
import time
from datetime import datetime
from typing import Any

import httpx
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
PAGE = 50
CANCELS = 5


def start_times(platform: Platform) -> list[float]:
    """Seconds from POST to the child's first line, a warm spare waiting each time."""
    found = []
    for number in range(STARTS):
        time.sleep(8)  # long enough for the spare to have imported what it needs
        sent = time.time()
        job = platform.submit(**quick(f"start-{number}"))
        platform.wait(job["id"], "succeeded")
        lines = platform.call("GET", f"/api/v1/jobs/{job['id']}/logs")["items"]
        first = next(line["at"] for line in lines if line["message"] == "attempt 1 has started")
        found.append(_epoch(first) - sent)
    return found


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def enqueue(url: str, count: int) -> float:
    """Jobs queued per second over HTTP."""
    limits = httpx.Limits(max_connections=CONNECTIONS)
    left = iter(range(count))
    async with httpx.AsyncClient(base_url=url, headers={"x-api-key": KEY}, limits=limits, timeout=60) as client:

        async def send() -> None:
            for number in left:
                answer = await client.post("/api/v1/jobs", json=quick(f"queued-{number}", priority=2))
                answer.raise_for_status()

        started = time.perf_counter()
        await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
        return count / (time.perf_counter() - started)


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
    table = Table("what", "median", "worst", "wanted")
    with Platform(AIMASS_WORKER_SPARE="true") as platform:
        platform.upload("tumours", breast_cancer_csv())
        starts = start_times(platform)
        table.add_row(
            "POST to the child's first line, warm spare", _ms(statistics.median(starts)), _ms(max(starts)), "< 500 ms"
        )
        cancels = cancel_times(platform)
        table.add_row("cancel to process gone", _ms(statistics.median(cancels)), _ms(max(cancels)), "< 1,000 ms")
    with Platform(workers=0) as platform:
        platform.send("tumours", breast_cancer_csv())  # nobody parses it: the jobs wait for it
        assert platform.url is not None
        rate = asyncio.run(enqueue(platform.url, QUEUED))
        table.add_row(f"POST /jobs, {CONNECTIONS} connections: jobs/s", f"{rate:,.0f}", "", "")
        pages, seen = page_times(platform)
        table.add_row(
            f"a page of {PAGE} of {seen:,} queued jobs", _ms(statistics.median(pages)), _ms(max(pages)), "< 50 ms"
        )
    table.add_row("enqueues/s of the queue itself", f"{statistics.median(enqueue_rates()):,.0f}", "", "≥ 500")
    Console(width=110).print(table)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms"


if __name__ == "__main__":
    main()
