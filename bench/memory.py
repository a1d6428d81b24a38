"""Memory of a process that loads and unloads a model again and again.

    python -m bench.memory [--cycles 200] [--mib 48]

A real host of the gateway loads a model of so many MiB of weights, answers some requests of one row and of a full
batch, and unloads it; after each cycle the process's resident memory is noted. Judged is the growth per cycle between a
tenth of the cycles and the end (least squares): at most a thousandth of the model.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import numpy as np

from app.serving.host import Host
from app.serving.process_memory import resident_bytes, trim
from app.settings import ServingSettings
from tests.support.graphs import heavy, source

MIB = 1 << 20
BATCH = 32


async def cycle(host: Host, folder: Path, version: int) -> tuple[int, int]:
    """Load, ask, unload: resident bytes before the unloading and after it."""
    await host.swap(await host.load(source(folder, "m", version, max_batch=BATCH)))
    with await host.reach("m") as served:
        for rows in (1, BATCH):
            await served.infer((np.ones((rows, 512), np.float32),), rows)
    peak = resident_bytes()
    del served
    await host.remove("m")
    await host.drained()
    return peak, resident_bytes()


async def run(cycles: int, folder: Path) -> tuple[int, list[tuple[int, int]]]:
    """Resident bytes before the first cycle, and of each."""
    host = Host(ServingSettings())
    trim()  # what the making of the file has left
    start = resident_bytes()
    found = []
    for version in range(1, cycles + 1):
        found.append(await cycle(host, folder, version))
        if version % 25 == 0 or version == 1:
            peak, after = found[-1]
            print(f"cycle {version:4d}: {peak / MIB:7.1f} MiB loaded, {after / MIB:7.1f} MiB after", flush=True)
    await host.close()
    return start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--mib", type=int, default=48, help="of weights")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        start, found = asyncio.run(run(arguments.cycles, heavy(Path(name) / "m", arguments.mib)))
    after = np.array([end for _, end in found][len(found) // 10 :]) / MIB
    growth = float(np.polyfit(np.arange(len(after)), after, 1)[0])
    peak = max(peak for peak, _ in found)
    print(
        f"{len(found)} cycles of {arguments.mib} MiB of weights: start {start / MIB:.1f}, peak {peak / MIB:.1f}, ",
        end="",
    )
    print(f"end {after[-1]:.1f} MiB; growth {growth * 1024:.1f} KiB a cycle")
    sys.exit(0 if growth <= arguments.mib / 1000 else 1)


if __name__ == "__main__":
    main()
