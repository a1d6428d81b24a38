"""wrk as the load generator of the serving benchmark: one closed loop of connections against one server."""

import contextlib
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.platform import KEY

_OVERTIME_S = 30  # what wrk may need beyond its time

LUA = """
local requests, n, i = {}, 0, 0
function init(args)
  for _, b in ipairs(dofile(args[1])) do
    n = n + 1
    local h = {["Host"] = wrk.host, ["Content-Type"] = "application/json", ["X-API-Key"] = "KEY"}
    if b[1] > 0 then
      h["Content-Type"] = "application/octet-stream"
      h["Inference-Header-Content-Length"] = tostring(b[1])
    end
    requests[n] = wrk.format("POST", wrk.path, h, b[2])
  end
end
function request() i = i % n + 1; return requests[i] end
function done(s, l, r)
  local bad = s.errors.connect + s.errors.read + s.errors.write + s.errors.status + s.errors.timeout
  io.write(string.format('RESULT {"requests":%d,"rps":%.2f,"p50":%.3f,"p99":%.3f,"bad":%d}\\n',
    s.requests, s.requests / s.duration * 1e6, l:percentile(50)/1e3, l:percentile(99)/1e3, bad))
end
""".replace("KEY", KEY)


class LoadFailed(Exception):
    """The load could not be offered, or not every request was answered with success."""


def write_script(folder: Path) -> None:
    """Put the script of `load` where the bodies will be."""
    (folder / "wrk.lua").write_text(LUA)


def write_bodies(file: Path, bodies: list[tuple[int, bytes]]) -> Path:
    """Bodies as a Lua table of {length of the inference header or 0, text}."""
    texts = [(length, "".join(f"\\{byte:03d}" for byte in body)) for length, body in bodies]
    rows = ",\n".join(f"{{{length},'{text}'}}" for length, text in texts)
    file.write_text(f"return {{\n{rows}\n}}\n")
    return file


@dataclass(frozen=True)
class Server:
    """A server that runs: its address, and the process whose CPU time counts, with those that it has started."""

    url: str
    process: psutil.Process

    def load(self, path: str, bodies: Path, connections: int, seconds: int) -> dict[str, float]:
        """Requests/s, latencies in ms, CPU µs a request of server and client; LoadFailed if one request failed."""
        options = [f"-c{connections}", f"-d{seconds}s", "-s", str(bodies.parent / "wrk.lua"), f"{self.url}{path}"]
        command = ["wrk", "-t1", "--timeout", "10s", *options, "--", str(bodies)]
        used_s, client_s = self._cpu_s(), _ended_children_s()
        try:
            out = subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=seconds + _OVERTIME_S
            ).stdout
        except subprocess.SubprocessError as error:
            raise LoadFailed(f"{self.url}{path}: {error}") from error
        used_s, client_s = self._cpu_s() - used_s, _ended_children_s() - client_s
        match = re.search(r"^RESULT (.*)$", out, re.MULTILINE)
        if not match:
            raise LoadFailed(out)
        result: dict[str, float] = json.loads(match[1])
        if result["bad"] or not result["requests"]:
            raise LoadFailed(f"{path}: {result['bad']:.0f} requests failed, {result['requests']:.0f} were answered")
        return result | {
            "cpu_us": used_s / result["requests"] * 1e6,
            "client_us": client_s / result["requests"] * 1e6,
        }

    def pss_mb(self) -> float:
        """Proportional set size in MiB: pages that several of its processes share count once."""
        return self._sum(lambda process: process.memory_full_info().pss) / 2**20

    def _cpu_s(self) -> float:
        return self._sum(lambda process: sum(process.cpu_times()[:2]))

    def _sum(self, value: Callable[[psutil.Process], float]) -> float:
        """Of its processes that live."""
        total = 0.0
        for process in [self.process, *self.process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += value(process)
        return total


def _ended_children_s() -> float:
    """CPU seconds of this process's children that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.children_user + times.children_system)
