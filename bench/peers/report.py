"""Markdown tables of the newest results of each server."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from bench.peers.cells import MEMORY_BOUND, OUR_CELLS, RATE, TARGETS, Cell, Result, figure, peer_cells


def newest(file: Path) -> dict[str, list[Result]]:
    """Server → the lines of its last run."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    last = {line["server"]: line["run"] for line in lines}
    found: dict[str, list[Result]] = {server: [] for server in last}
    for line in lines:
        if line["run"] == last[line["server"]]:
            found[line["server"]].append(line)
    return found


def report(file: Path) -> str:
    """All tables, and what did not work."""
    found = newest(file)
    parts = [_against_targets(found["ours"])] if "ours" in found else []
    parts += [_ratios(found), _cores(found), _memory(found), _troubles(found), _machine(found)]
    return "\n\n".join(part for part in parts if part)


def _cells(lines: list[Result]) -> dict[Cell, list[Result]]:
    cells: dict[Cell, list[Result]] = defaultdict(list)
    for line in lines:
        if line["what"] == "cell":
            cells[Cell(line["model"], line["connections"], line["form"], line["precision"])].append(line)
    return cells


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def _against_targets(lines: list[Result]) -> str:
    cells = _cells(lines)
    rows = ["| cell | figure | wanted | measured, median [range] | |", "|---|---|---|---|---|"]
    for target in TARGETS:
        values = [v for result in cells[target.cell] if (v := figure(result, target.figure)) is not None]
        if values:
            state = "ok" if target.reached(statistics.median(values)) else "missed"
            rows.append(f"| {target.cell.name} | {target.figure} | {target.wanted} | {_range(values)} | {state} |")
    for line in lines:
        if line["what"] == "memory":
            ratio = line["pss_mb"] / line["naive_pss_mb"]
            state = "ok" if ratio <= MEMORY_BOUND else "missed"
            told = f"{ratio:.2f} ({line['pss_mb']:.0f} of {line['naive_pss_mb']:.0f} MiB)"
            rows.append(f"| three models loaded | memory / naive's | ≤ {MEMORY_BOUND:g} | {told} | {state} |")
    return "\n".join(rows)


def _ratios(found: dict[str, list[Result]]) -> str:
    """Rates over naive's, a column a server."""
    cells = {server: measured for server, lines in found.items() if (measured := _cells(lines))}
    rows = [f"| rate / naive's | naive, /s | {' | '.join(cells)} |", "|---" * (len(cells) + 2) + "|"]
    for cell in sorted({*OUR_CELLS, *peer_cells(binary=True)}):
        naive = [result["naive_rps"] for measured in cells.values() for result in measured.get(cell, [])]
        if naive:
            entries = " | ".join(_ratio(measured.get(cell, [])) for measured in cells.values())
            rows.append(f"| {cell.name} | {statistics.median(naive):,.0f} | {entries} |")
    return "\n".join(rows) if cells else ""


def _ratio(results: list[Result]) -> str:
    ratios = [ratio for result in results if (ratio := figure(result, RATE)) is not None]
    return f"{statistics.median(ratios):.2f}" if ratios else "-"


def _cores(found: dict[str, list[Result]]) -> str:
    """How the cores were split at the small model's full load."""
    rows = ["| mlp json 64 | /s | cores: server | client |", "|---|---|---|---|"]
    for server, lines in found.items():
        if results := _cells(lines).get(Cell("mlp", 64)):
            rps, us, client_us = (
                statistics.median(r.get(key, 0.0) for r in results) for key in ("rps", "cpu_us", "client_us")
            )
            rows.append(f"| {server} | {rps:,.0f} | {rps * us / 1e6:.2f} | {rps * client_us / 1e6:.2f} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def _memory(found: dict[str, list[Result]]) -> str:
    rows = ["| server | memory, MiB | naive's | ratio |", "|---|---|---|---|"]
    for server, lines in found.items():
        for line in lines:
            if line["what"] == "memory":
                ours, naive = line["pss_mb"], line["naive_pss_mb"]
                rows.append(f"| {server}{line.get('note', '')} | {ours:.0f} | {naive:.0f} | {ours / naive:.2f} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def _troubles(found: dict[str, list[Result]]) -> str:
    told: Iterator[str] = (
        f"- {server}: {line.get('cell', '')} {line['why']}".replace("  ", " ")
        for server, lines in found.items()
        for line in lines
        if line["what"] == "failed"
    )
    text = "\n".join(told)
    return f"Did not work:\n\n{text}" if text else ""


def _machine(found: dict[str, list[Result]]) -> str:
    rows = []
    for server, lines in found.items():
        others = [line["others"] for line in lines if line["what"] == "cell"]
        checked = [line for line in lines if line["what"] == "checked"]
        if others:
            answers, worst = sum(c["answers"] for c in checked), max((c["worst"] for c in checked), default=0.0)
            rows.append(
                f"- {server}, {lines[0]['run']}: {answers} answers compared with ONNX Runtime's, "
                f"largest difference {worst:.1g}; others used {statistics.median(others):.2f} cores (median)"
            )
    return "\n".join(rows)
