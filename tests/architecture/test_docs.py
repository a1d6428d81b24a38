"""What a page documents equals what exists."""

import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import app.gateway
import app.telemetry.metrics
import app.telemetry.residency
from app.settings import describe

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
METRIC = re.compile(r"\baimass_[a-z_]+")


def test_the_readme_lists_every_setting() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "aimass"), "settings", "--markdown"],
        capture_output=True,
        text=True,
        check=True,
    )
    readme = (ROOT / "README.md").read_text()
    table = readme.split("<!-- settings: made by `aimass settings --markdown` -->\n")[1].split(
        "<!-- end of settings -->"
    )[0]
    assert table == done.stdout
    assert len(describe()) == table.count("`AIMASS_")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    linked = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:app|workers|tests|docs|bench|docker|migrations)/[\w./-]+)`", text)
    missing = [link for link in linked if not (page.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_operations_names_every_metric_and_no_other() -> None:
    rooms = (app.telemetry.metrics, app.telemetry.residency)
    exist = {value for room in rooms for value in vars(room).values() if str(value).startswith("aimass_")}
    page = (ROOT / "docs" / "operations.md").read_text()
    table = {name for line in page.splitlines() if line.startswith("| `aimass_") for name in METRIC.findall(line)}
    assert table == exist
    assert {re.sub("_(total|bucket)$", "", name) for name in METRIC.findall(page)} == exist


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    plain = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in shown.splitlines()} == phony


def test_the_lock_names_versions_only() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in lines)
    assert "torch==2.13.0" in lines


class TestDocker:
    """The files are parsed where no engine can build them."""

    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())

    def test_compose_brings_up_the_four_and_prepares_them(self) -> None:
        assert set(self.compose["services"]) == {"gateway", "worker", "postgres", "redis", "prepare"}
        for name in ("gateway", "worker"):
            assert self.compose["services"][name]["depends_on"]["prepare"] == {
                "condition": "service_completed_successfully"
            }

    def test_every_variable_that_compose_sets_is_a_setting(self) -> None:
        known = {name for name, _, _ in describe()} | {"AIMASS_API_KEY"}
        used = {
            key
            for service in self.compose["services"].values()
            for key in service.get("environment", {})
            if key.startswith("AIMASS_")
        }
        assert used <= known

    def test_every_volume_and_dockerfile_exists(self) -> None:
        for service in self.compose["services"].values():
            for volume in service.get("volumes", []):
                assert volume.split(":")[0] in self.compose["volumes"]
            if "build" in service:
                assert (ROOT / service["build"]["dockerfile"]).is_file()

    @pytest.mark.parametrize(
        ("image", "extra", "module"),
        [("gateway", "gateway", "app.gateway.main"), ("worker", "worker", "workers.agent")],
    )
    def test_each_image_installs_its_own_extra_alone(self, image: str, extra: str, module: str) -> None:
        lines = instructions(ROOT / "docker" / f"{image}.Dockerfile")
        assert lines[0][0] == "FROM"
        assert re.findall(r"'\.\[(\w+)\]'", " ".join(argument for _, argument in lines)) == [extra]
        assert ("CMD", f'["python", "-m", "{module}"]') in lines
        assert ("USER", "aimass") in lines
        for keyword, argument in lines:
            if keyword == "COPY":
                assert all((ROOT / source).exists() for source in argument.split()[:-1])


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(keyword, argument) of each instruction, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", dockerfile.read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]
    assert {keyword for keyword, _ in found} <= {
        "FROM",
        "WORKDIR",
        "COPY",
        "RUN",
        "USER",
        "ENV",
        "VOLUME",
        "EXPOSE",
        "HEALTHCHECK",
        "CMD",
        "ARG",
    }
    return found


def test_every_field_of_a_response_is_described() -> None:
    """In the models of answers, of which the OpenAPI document is made."""
    bare = []
    for found in pkgutil.walk_packages(app.gateway.__path__, "app.gateway."):
        module = importlib.import_module(found.name)
        for name, model in inspect.getmembers(module, inspect.isclass):
            if issubclass(model, BaseModel) and model.__module__ == module.__name__ and name.endswith("Out"):
                bare += [f"{name}.{field}" for field, told in model.model_fields.items() if not told.description]
    assert not bare
