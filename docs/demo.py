"""`make demo`: real data to compressed models behind endpoints, through the public HTTP API alone.

Starts the platform on its embedded defaults in a temporary folder, and stops it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_digits

console = Console(width=max(120, Console().width))
LOAD_S = 2.0
CONNECTIONS = 16


def breast_cancer_csv() -> bytes:
    """569 tumours, 30 measurements, and whether each was malignant."""
    data = load_breast_cancer()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*data.feature_names, "diagnosis"])
    for row, label in zip(data.data, data.target, strict=True):
        writer.writerow([*row, data.target_names[label]])
    return text.getvalue().encode()


def digits_zip() -> bytes:
    """1,797 handwritten digits of 8x8 pixels as PNG files in a folder per class."""
    data = load_digits()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, (picture, label) in enumerate(zip(data.images, data.target, strict=True)):
            png = io.BytesIO()
            Image.fromarray((picture * 255 / 16).astype("uint8")).save(png, "PNG")
            archive.writestr(f"digits/{label}/{number}.png", png.getvalue())
    return packed.getvalue()


@dataclass
class Platform:
    """A running platform and a client of it."""

    process: subprocess.Popen[str]
    client: httpx.Client
    key: str

    def call(self, method: str, path: str, **options: Any) -> Any:
        """One request; the JSON of its answer."""
        answer = self.client.request(method, path, **options)
        if answer.is_error:
            sys.exit(f"{method} {path} answered {answer.status_code}: {answer.text}")
        return answer.json()


def start(folder: str) -> Platform:
    """Run `aimass up` and wait for its lines."""
    command = [str(Path(sys.executable).parent / "aimass"), "up", "--port", "0", "--data-dir", folder]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "AIMASS_LOG_LEVEL": "warning", "AIMASS_GATEWAY_GRPC_PORT": "0"},
    )
    key = url = ""
    assert process.stdout is not None
    for line in process.stdout:
        console.print(line.rstrip() if "key" not in line.lower() else "API key received")
        if line.startswith("API key"):
            key = line.split()[-1]
        if line.startswith("ready "):
            url = line.split()[1]
            break
    if not url:
        sys.exit("the platform did not start")
    return Platform(process, httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60), key)


def stop(platform: Platform) -> None:
    """SIGTERM, as an operator would, and wait."""
    platform.client.close()
    platform.process.send_signal(signal.SIGTERM)
    platform.process.wait(60)


def upload(platform: Platform, name: str, filename: str, content: bytes) -> None:
    """Upload a data set and wait until it has been parsed."""
    version = platform.call("POST", "/api/v1/datasets", data={"name": name}, files={"file": (filename, content)})
    follow(platform, [(f"parse {name}", version["links"]["job"].rsplit("/", 1)[-1])])
    shown = platform.call("GET", f"/api/v1/datasets/{name}/versions/{version['version']}")
    columns = len(shown["schema"]["columns"])
    console.print(f"  {name}: {shown['rows']} rows, {columns} columns, {shown['rejected_rows']['count']} unreadable")


def follow(platform: Platform, jobs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Progress bars of jobs, live from their event streams, until each has ended."""
    columns = (
        TextColumn("  {task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} % {task.fields[step]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        for title, job_id in jobs:
            follow_one(platform, job_id, bars, bars.add_task(title, total=1.0, step="queued"))
    ended = [platform.call("GET", f"/api/v1/jobs/{job_id}") for _, job_id in jobs]
    for job in ended:
        if job["state"] != "succeeded":
            sys.exit(f"{job['kind']} job {job['state']}: {json.dumps(job['error'])}")
    return ended


def follow_one(platform: Platform, job_id: str, bars: Progress, bar: TaskID) -> None:
    """One job's event stream to one bar."""
    with platform.client.stream("GET", f"/api/v1/jobs/{job_id}/events", timeout=300) as stream:
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and kind == "progress":
                data = json.loads(line.removeprefix("data: "))
                bars.update(bar, completed=data["fraction"], step=data["step"][:40])
            elif line.startswith("data: ") and kind == "state":
                state = json.loads(line.removeprefix("data: "))["state"]
                bars.update(bar, completed=1.0 if state == "succeeded" else None, step=state)


def submit(platform: Platform, **spec: Any) -> str:
    """Queue a job; its id."""
    return str(platform.call("POST", "/api/v1/jobs", json=spec)["id"])


def predict(platform: Platform, name: str, instance: Any, oip: dict[str, Any]) -> str:
    """One prediction by each protocol; they have to agree."""
    mine = platform.call("POST", f"/api/v1/endpoints/{name}/predict", json={"instances": [instance]})
    probabilities = mine["predictions"][0]["probabilities"]
    other = platform.call("POST", f"/v2/models/{name}/infer", json=oip)
    outputs = next(output["data"] for output in other["outputs"] if output["name"] == "probabilities")
    if any(abs(a - b) > 1e-5 for a, b in zip(probabilities.values(), outputs, strict=True)):
        sys.exit(f"{name}: the two protocols disagree: {probabilities} and {outputs}")
    return str(mine["predictions"][0]["label"])


async def load(platform: Platform, path: str, body: bytes) -> float:
    """Requests/s of `CONNECTIONS` connections that send one request after the other for `LOAD_S` seconds."""
    url = platform.client.base_url
    head = (
        f"POST {path} HTTP/1.1",
        f"host: {url.host}",
        f"x-api-key: {platform.key}",
        f"content-length: {len(body)}",
        "",
        "",
    )
    request = "\r\n".join(head).encode() + body
    done = 0

    async def client() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection(url.host, url.port)
        while time.perf_counter() < end:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"{path} answered {answer[:100]!r}")
            length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            done += 1
        writer.close()

    started = time.perf_counter()
    end = started + LOAD_S
    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return done / (time.perf_counter() - started)


def show(platform: Platform, rows: list[tuple[str, float]]) -> None:
    """What came out."""
    headers = ("model", "version", "served", "test metric", "size", "p50 at batch 1", "items/s", "HTTP requests/s")
    table = Table(
        *headers, title="before → after compression (a variant that is not better, or costs accuracy, is not served)"
    )
    for name, rate in rows:
        endpoint = platform.call("GET", f"/api/v1/endpoints/{name}")
        version = platform.call("GET", f"/api/v1/models/{name}/versions/{endpoint['version']}")
        variants = {variant["name"]: variant for variant in version["variants"]}
        base = variants.pop("fp32")
        metric = version["main_metric"]
        for after in variants.values():
            pairs = (
                f"{metric} {base['metrics'][metric]:.4f} → {after['metrics'][metric]:.4f}",
                f"{base['bytes'] / 1024:.0f} → {after['bytes'] / 1024:.0f} KiB",
                f"{base['latency']['p50_ms']:.3f} → {after['latency']['p50_ms']:.3f} ms",
                f"{base['latency']['items_per_s']:,.0f} → {after['latency']['items_per_s']:,.0f}",
            )
            served = f"{endpoint['variant']}" + ("" if after["state"] == "accepted" else f" ({after['name']} rejected)")
            table.add_row(name, str(endpoint["version"]), served, *pairs, f"{rate:,.0f}")
    console.print(table)


def main() -> None:
    """The whole way."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="aimass-demo-") as folder:
        platform = start(folder)
        try:
            run(platform)
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                stop(platform)
    console.print(f"everything stopped after {time.perf_counter() - started:.0f} s")


def run(platform: Platform) -> None:
    """Upload, train, compress, deploy, predict, measure."""
    console.print("[bold]upload[/bold]")
    upload(platform, "tumours", "breast_cancer.csv", breast_cancer_csv())
    upload(platform, "digits", "digits.zip", digits_zip())
    console.print("[bold]train[/bold]")
    common = {"kind": "train", "task": "classification"}
    trees = submit(platform, **common, model="tumours", dataset="tumours@1", target="diagnosis", family="gbdt")
    net = submit(
        platform,
        **common,
        model="digits",
        dataset="digits@1",
        target="label",
        family="cnn",
        training={"epochs": 15, "batch_size": 64},
    )
    follow(platform, [("gbdt on tumours", trees), ("cnn on digits", net)])
    console.print("[bold]compress[/bold]")
    jobs = [
        (f"compress {name}", submit(platform, kind="compress", model=name, version=1, budget={"max_metric_drop": 0.01}))
        for name in ("tumours", "digits")
    ]
    follow(platform, jobs)
    console.print("[bold]deploy and predict[/bold]")
    for name in ("tumours", "digits"):
        platform.call("PUT", f"/api/v1/endpoints/{name}", json={"model": name, "routes": [{"version": 1}]})
    bodies = requests()
    rates = []
    for name, (instance, oip) in bodies.items():
        label = predict(platform, name, instance, oip)
        body = json.dumps({"instances": [instance]}).encode()
        rates.append((name, asyncio.run(load(platform, f"/api/v1/endpoints/{name}/predict", body))))
        console.print(f"  {name}: predicted {label!r} by both protocols")
    show(platform, rates)


def requests() -> dict[str, tuple[Any, dict[str, Any]]]:
    """For each endpoint an instance, and the same row as Open Inference Protocol tensors."""
    tumours = load_breast_cancer()
    row = [float(value) for value in tumours.data[0]]
    named = dict(zip((str(name) for name in tumours.feature_names), row, strict=True))
    numeric = {"name": "numeric", "datatype": "FP32", "shape": [1, len(row)], "data": row}
    pixels = (load_digits().images[0] * 255 / 16).astype("uint8")
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": pixels.ravel().tolist()}
    return {
        "tumours": (named, {"inputs": [numeric]}),
        "digits": ({"image": pixels.tolist()}, {"inputs": [image]}),
    }


if __name__ == "__main__":
    main()
