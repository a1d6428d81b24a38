"""Processes that are killed, frozen or too large: jobs run to their end once, and never twice at a time."""

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import digits_zip
from tests.faults.conftest import SHORT
from tests.support.file_server import FileServer
from tests.support.jobs import long, quick
from tests.support.platform import Platform, breast_cancer_csv
from tests.support.servers import wait_until


def until_training(platform: Platform, job_id: str, fraction: float = 0.0) -> None:
    """Wait until the child of this job reports progress and a checkpoint can have been stored."""

    def trains() -> bool:
        progress = platform.job(job_id)["progress"]
        return progress["fraction"] > fraction and "epoch" in progress["step"]

    wait_until(trains, 60, "the job trains")


def until_kept(platform: Platform, job_id: str) -> None:
    """Wait until a checkpoint of this job has reached the store."""
    wait_until(lambda: "a checkpoint is kept" in platform.logs(job_id), 60, "a checkpoint is kept")


class TestChild:
    def test_a_killed_child_is_run_again_from_its_checkpoint(self, platform: Platform) -> None:
        job = platform.submit(
            **long(
                "child-killed",
                training={"epochs": 60, "batch_size": 128, "early_stopping": None, "checkpoint_every_s": 0},
            )
        )
        until_kept(platform, job["id"])
        [child] = platform.children()
        child.kill()
        ended = platform.wait(job["id"], "succeeded", 180)
        assert ended["attempt"] == 2
        assert platform.states(job["id"]) == ["queued", "running", "queued", "running", "succeeded"]
        assert "resumed from epoch" in platform.logs(job["id"])
        assert platform.call("GET", "/api/v1/models/child-killed")["latest_version"] == 1

    @pytest.mark.slow  # what a notebook knows after a kill is tested by itself
    def test_a_search_for_smaller_models_goes_on_after_the_last_one_that_was_measured(self, platform: Platform) -> None:
        platform.upload("digits", digits_zip(), "digits.zip")
        training = {"epochs": 6, "batch_size": 64, "optimizer": {"lr": 0.01}}
        job = platform.submit(kind="train", model="digits", dataset="digits@1", task="classification", target="label",
                              family="cnn", params={"channels": [32, 64]}, training=training)  # fmt: skip
        platform.wait(job["id"], "succeeded")
        budget = {"max_metric_drop": 0.2, "time_limit_s": 14}  # with a target int8 might do, and nothing be pruned
        job = platform.submit(kind="compress", model="digits", version=1, budget=budget)

        def measured() -> list[str]:
            return [line for line in platform.logs(job["id"]).splitlines() if line.startswith("tried ")]

        wait_until(lambda: any("prune" in line for line in measured()), 60, "a pruned network is measured")
        until_kept(platform, job["id"])
        before = measured()
        [child] = platform.children()
        child.kill()
        ended = platform.wait(job["id"], "succeeded", 180)
        assert ended["attempt"] == 2
        assert measured()[: len(before)] == before
        candidates = ended["result"]["compression"]["candidates"]
        assert len(candidates) == len(measured()) > len(before)  # none was measured twice, none was forgotten

    def test_a_child_above_its_memory_limit_fails_and_names_the_setting(self, platform: Platform) -> None:
        job = platform.submit(**long("too-large", resources={"memory_mb": 256}))
        ended = platform.wait(job["id"], "failed")
        assert ended["error"]["code"] == "job_memory_exceeded"
        assert "resources.memory_mb = 256" in ended["error"]["detail"]
        assert ended["attempt"] == 1
        platform.call("GET", "/api/v1/models/too-large", 404)

    def test_a_child_above_its_time_limit_fails_and_names_the_setting(self, platform: Platform) -> None:
        job = platform.submit(**long("too-long", timeout_s=4))
        ended = platform.wait(job["id"], "failed")
        assert (ended["error"]["code"], ended["attempt"]) == ("job_timed_out", 1)
        assert "timeout_s = 4" in ended["error"]["detail"]
        assert not platform.children()


class TestFetch:
    def test_an_agent_killed_while_it_fetches_leaves_nothing_and_another_fetches_it_whole(
        self, platform: Platform, files: FileServer
    ) -> None:
        body = {"name": "fetched", "uri": f"{files.url}/slow.csv"}
        version = platform.call("POST", "/api/v1/datasets", 201, json=body)
        assert files.stalls.wait(30)
        [agent] = platform.agents()
        files.stalling = False
        agent.kill()
        path = version["links"]["self"]
        wait_until(lambda: platform.call("GET", path)["state"] == "ready", 60, "it is fetched again")
        assert platform.call("GET", path)["sha256"] == hashlib.sha256(breast_cancer_csv()).hexdigest()
        assert platform.call("GET", version["links"]["job"])["attempt"] == 2
        assert not list((platform.data_dir / "store" / "tmp").iterdir())


class TestCancel:
    def test_a_running_job_is_cancelled_and_its_process_is_gone(self, platform: Platform) -> None:
        job = platform.submit(**long("cancelled"))
        until_training(platform, job["id"])
        [child] = platform.children()
        platform.call("POST", f"/api/v1/jobs/{job['id']}/cancel", 202)
        platform.wait(job["id"], "cancelled", 10)
        assert not child.is_running()
        assert platform.call("POST", f"/api/v1/jobs/{job['id']}/cancel", 202)["state"] == "cancelled"
        platform.call("GET", "/api/v1/models/cancelled", 404)

    def test_a_queued_job_is_cancelled_at_once(self, platform: Platform) -> None:
        first = platform.submit(**long("first"))
        platform.wait(first["id"], "running", 30)
        queued = platform.submit(**quick("never"))
        assert platform.call("POST", f"/api/v1/jobs/{queued['id']}/cancel", 202)["state"] == "cancelled"
        platform.call("POST", f"/api/v1/jobs/{first['id']}/cancel", 202)
        platform.wait(first["id"], "cancelled", 30)


class TestAgent:
    def test_a_killed_agent_takes_its_child_along_and_the_job_is_run_once_more(self, platform: Platform) -> None:
        job = platform.submit(
            **long(
                "agent-killed",
                training={"epochs": 60, "batch_size": 128, "early_stopping": None, "checkpoint_every_s": 0},
            )
        )
        until_kept(platform, job["id"])
        [agent], [child] = platform.agents(), platform.children()
        agent.kill()
        wait_until(
            lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 5, "the child dies with its agent"
        )
        ended = platform.wait(job["id"], "succeeded", 180)
        assert ended["attempt"] == 2
        assert platform.states(job["id"]) == ["queued", "running", "queued", "running", "succeeded"]
        assert "resumed from epoch" in platform.logs(job["id"])
        assert platform.call("GET", "/api/v1/models/agent-killed")["latest_version"] == 1

    def test_a_frozen_agent_loses_its_job_and_writes_nothing_when_it_thaws(self) -> None:
        with Platform(workers=2, **SHORT) as platform:
            platform.upload("tumours", breast_cancer_csv())
            job = platform.submit(**long("frozen"))
            until_training(platform, job["id"])
            [child] = platform.children()
            agent = psutil.Process(child.ppid())
            platform.freeze(agent)
            with contextlib.suppress(psutil.NoSuchProcess):
                wait_until(
                    lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE,
                    20,
                    "the silent agent's child stops itself",
                )
            wait_until(
                lambda: platform.job(job["id"])["attempt"] == 2 and platform.job(job["id"])["state"] == "running",
                30,
                "the other agent takes over",
            )
            second = platform.job(job["id"])["worker"]
            agent.send_signal(signal.SIGCONT)
            wait_until(
                lambda: any("lost its lease" in line for line in platform.output),
                20,
                "the thawed agent sees that it lost",
            )
            now = platform.job(job["id"])
            assert (now["state"], now["attempt"], now["worker"]) == ("running", 2, second)
            assert states_now(platform, job["id"]) == ["queued", "running", "queued", "running"]
            platform.call("POST", f"/api/v1/jobs/{job['id']}/cancel", 202)
            platform.wait(job["id"], "cancelled", 30)

    def test_a_stopped_platform_gives_its_job_back_and_a_new_one_resumes_it(self) -> None:
        platform = Platform(**SHORT)
        try:
            platform.start()
            platform.upload("tumours", breast_cancer_csv())
            job = platform.submit(
                **long(
                    "drained",
                    training={"epochs": 60, "batch_size": 128, "early_stopping": None, "checkpoint_every_s": 60},
                )
            )
            until_training(platform, job["id"])
            assert platform.stop() == 0
            assert platform.processes("") == []
            platform.output.clear()
            with platform:
                ended = platform.wait(job["id"], "succeeded", 180)
                assert ended["attempt"] == 2
                assert "resumed from epoch" in platform.logs(job["id"])
        finally:
            platform.kill_all()


def states_now(platform: Platform, job_id: str) -> list[str]:
    """States so far of a job that still runs: its stream does not end, so it is read until it is silent."""
    import json  # noqa: PLC0415

    found: list[str] = []
    kind = ""
    with (
        contextlib.suppress(Exception),
        platform.client.stream("GET", f"/api/v1/jobs/{job_id}/events", timeout=2) as stream,
    ):
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: ") and kind == "state":
                found.append(json.loads(line.removeprefix("data: "))["state"])
            if len(found) == 4:
                break
    return found


class TestLauncher:
    def test_a_port_in_use_costs_nobody_the_first_key(self, tmp_path: Path) -> None:
        command = [str(Path(sys.executable).parent / "aimass"), "up", "--data-dir", str(tmp_path), "--workers", "0"]
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            refused = subprocess.run([*command, "--port", str(port)], capture_output=True, text=True, check=False)
        assert refused.returncode != 0
        assert "AIMASS_GATEWAY_PORT" in refused.stderr
        assert "API key" not in refused.stdout
        with socket.create_server(("127.0.0.1", 0)) as taken:
            environment = os.environ | {"AIMASS_GATEWAY_GRPC_PORT": str(taken.getsockname()[1])}
            command += ["--port", "0"]
            refused = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert refused.returncode != 0
        assert "AIMASS_GATEWAY_GRPC_PORT" in refused.stderr
        assert "API key" not in refused.stdout
        environment["AIMASS_GATEWAY_GRPC_PORT"] = "0"
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert started.stdout is not None
        with started.stdout:
            assert started.stdout.readline().startswith("API key (shown once): ")
            started.terminate()
            assert started.wait(30) == 0

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("AIMASS_STORE_URL", "ftp://x"),
            ("AIMASS_REDIS_URL", "http://x"),
            ("AIMASS_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/x"),
            ("AIMASS_DATABASE_URL", "mysql://x"),
            ("AIMASS_SIGNING_KEY_FILE", "junk.pem"),
            ("AIMASS_SIGNING_TRUSTED_KEYS", "zzz"),
            ("AIMASS_DATA_DIR", "/proc/x"),
        ],
    )
    def test_a_wrong_setting_is_one_line(self, tmp_path: Path, name: str, value: str) -> None:
        (tmp_path / "junk.pem").write_text("junk")
        command = [str(Path(sys.executable).parent / "aimass"), "up", "--port", "0", "--workers", "0"]
        environment = os.environ | {
            "AIMASS_DATA_DIR": str(tmp_path / "data"),
            "AIMASS_GATEWAY_GRPC_PORT": "0",
            name: value,
        }
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path, timeout=60
        )
        assert done.returncode == 1
        [line] = [line for line in done.stderr.splitlines() if " INFO " not in line]
        assert line.startswith("aimass: ")
        assert name in line

    def test_a_killed_launcher_leaves_no_orphan(self) -> None:
        platform = Platform(**SHORT)
        try:
            platform.start()
            platform.upload("tumours", breast_cancer_csv())
            job = platform.submit(**long("orphan"))
            until_training(platform, job["id"])
            assert len(platform.processes("")) >= 5
            platform.process.kill()
            platform.process.wait()
            wait_until(lambda: platform.processes("") == [], 30, "everything ends with the launcher")
        finally:
            platform.kill_all()
