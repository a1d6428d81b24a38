"""Who may import whom: the contracts of pyproject.toml, the libraries of each room, and probes of real processes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A library, and the only places that may import it.
KNOWN_BY: dict[str, tuple[str, ...]] = {
    "pydantic_settings": ("app/settings.py",),
    "pydantic": ("app/settings.py", "app/specs", "app/gateway", "app/cli"),
    "prometheus_client": ("app/telemetry", "app/serving", "app/gateway"),
    "redis": ("app/queue",),
    "sqlalchemy": ("app/registry",),
    "alembic": ("app/registry",),
    "obstore": ("app/store",),
    "httpcore": ("app/store",),
    "cryptography": ("app/store",),
    "onnxruntime": ("app/serving", "workers/export", "workers/compression", "workers/evaluation", "workers/intake"),
    "fastapi": ("app/gateway",),
    "starlette": ("app/gateway",),
    "grpc": ("app/gateway/grpc",),
    "opentelemetry": ("app/telemetry/tracing.py",),
    "google": ("app/gateway/grpc", "workers"),
    "tritonclient": ("app/gateway/grpc",),
    "uvicorn": ("app/gateway",),
    "typer": ("app/cli",),
    "rich": ("app/cli",),
    "torch": ("workers/families", "workers/training", "workers/export", "workers/host.py"),
    "torch_pruning": ("workers/training",),
    "lightning": ("workers/training", "workers/families"),
    "sklearn": ("workers/families", "workers/features", "workers/automl", "workers/data", "workers/evaluation"),
    "lightgbm": ("workers/families",),
    "transformers": ("workers/families",),
    "peft": ("workers/families",),
    "schedulefree": ("workers/training",),
    "xgboost": ("workers/families",),
    "fastexcel": ("workers/data",),
    "duckdb": ("workers/data/sql.py",),
    "optuna": ("workers/compression",),
    "polars": ("workers/data", "workers/jobs"),
    "pyarrow": ("workers/data", "workers/jobs"),
    "PIL": ("app/serving", "workers/data"),
    "pickle": (),
    "joblib": (),
    "dill": (),
    "cloudpickle": (),
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


SOURCES = sorted(path.relative_to(ROOT) for top in ("app", "workers") for path in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("library", KNOWN_BY)
def test_a_library_is_imported_only_in_its_rooms(library: str) -> None:
    outside = [str(p) for p in SOURCES if library in imports_of(ROOT / p) and not str(p).startswith(KNOWN_BY[library])]
    assert outside == []


def test_the_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def loaded_by(module: str) -> set[str]:
    """Top-level modules in memory after a fresh interpreter has imported `module`."""
    code = f"import {module}, sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("app.gateway.main", {"torch", "lightning", "sklearn", "lightgbm", "polars", "pyarrow", "onnx", "workers"}),
        ("app.gateway.main", {"httpx", "rich", "obstore"}),  # memory of every gateway, for a few of them alone
        ("workers.agent", {"fastapi", "starlette", "uvicorn", "torch", "sklearn", "polars", "onnxruntime"}),
        ("workers.child", {"fastapi", "sqlalchemy", "redis", "obstore", "httpx", "torch"}),
        ("workers.jobs.train", {"torch", "optuna", "onnxscript", "sympy"}),  # seconds of each start, for some alone
        ("app.cli.main", {"fastapi", "torch", "onnxruntime", "sklearn", "workers"}),
    ],
)
def test_a_process_does_not_load_what_it_must_not(module: str, forbidden: set[str]) -> None:
    loaded = loaded_by(module)
    assert module.partition(".")[0] in loaded
    assert loaded & forbidden == set()


def test_no_file_and_no_function_grows_out_of_view() -> None:
    long_files = [str(p) for p in SOURCES if len((ROOT / p).read_text().splitlines()) > 400]
    long_functions = [
        f"{path}:{node.lineno} {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno > 60
    ]
    assert (long_files, long_functions) == ([], [])
