"""Bad uploads: refused at the door, and nothing half-made is left."""

import json
from typing import Any

import pytest

from tests.acceptance.problems import check_problem
from tests.support.platform import Platform

FORM = {"content-type": "multipart/form-data; boundary=B"}
PART = b'--B\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n'
FILE = b'--B\r\ncontent-disposition: form-data; name="file"; filename="a.csv"\r\n\r\na,b\n1,2\n'


class TestUploads:
    @pytest.mark.parametrize(
        ("name", "loc", "word"),
        [
            ("", ["name"], "must be 1-100 letters"),
            ("../../etc", ["name"], "must be 1-100 letters"),
            ("a\nb", ["name"], "must be 1-100 letters"),
            ("x" * 101, ["name"], "must be 1-100 letters"),
            ("x" * 5000, ["name"], "at most 4096 bytes"),
            ("数据", ["name"], "must be 1-100 letters"),
        ],
    )
    def test_bad_name(self, unchanged: Platform, name: str, loc: list[str | int], word: str) -> None:
        self._refused(unchanged, {"data": {"name": name}, "files": {"file": ("a.csv", b"a\n1\n")}}, loc, word)

    @pytest.mark.parametrize(
        ("options", "loc", "word"),
        [
            ({"files": {"file": ("a.csv", b"a\n1\n")}}, ["name"], "must be 1-100 letters"),
            ({"files": {"name": (None, "x")}}, ["file"], "no part called 'file'"),
            ({"data": {"name": "x"}}, ["Content-Type"], "multipart/form-data"),
            ({"content": b"a\n1\n", "headers": {"content-type": "text/csv"}}, ["Content-Type"], "multipart/form-data"),
            ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, ["Content-Type"], "boundary"),
            ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary="}}, ["Content-Type"], ""),
            ({"content": b"x", "headers": {"content-type": 'multipart/form-data; boundary="'}}, ["Content-Type"], ""),
            ({"content": b"no form", "headers": FORM}, ["body"], "not a well-formed multipart/form-data body"),
            ({"data": {"name": "x"}, "files": {"file": ("a.csv", b"")}}, ["file"], "empty"),
            (
                {"data": {"name": "x", "kind": "soup"}, "files": {"file": ("a.csv", b"a\n1\n")}},
                ["kind"],
                "auto, tabular, image",
            ),
            (
                {"data": {"name": "x", "colour": "red"}, "files": {"file": ("a.csv", b"a\n1\n")}},
                ["colour"],
                "there is no such part",
            ),
            ({"data": {"name": "x"}, "files": {"other": ("a.csv", b"a\n1\n")}}, ["other"], "there is no such part"),
            (
                {"data": {"name": "x"}, "files": [("file", ("a.csv", b"a\n1\n")), ("file", ("b.csv", b"b\n2\n"))]},
                ["file"],
                "too often; send it once",
            ),
            (
                {"files": [("name", (None, "x")), ("name", (None, "y")), ("file", ("b.csv", b"b\n2\n"))]},
                ["name"],
                "too often; send it once",
            ),
        ],
    )
    def test_bad_form(
        self, unchanged: Platform, options: dict[str, Any], loc: list[str | int] | None, word: str
    ) -> None:
        self._refused(unchanged, options, loc, word)

    @pytest.mark.parametrize(
        "end", [b"", b"\r", b"\r\n--B", b"\r\n--B\r\n", b"\r\n--B-", b"\r\n" + PART % (b"kind", b"tab")]
    )
    def test_truncated(self, unchanged: Platform, end: bytes) -> None:
        body = PART % (b"name", b"half") + FILE + end
        self._refused(unchanged, {"content": body, "headers": FORM}, ["file"], "ended before its closing boundary")

    def _refused(self, limited: Platform, options: dict[str, Any], loc: list[str | int] | None, word: str) -> None:
        check_problem(limited.client.post("/api/v1/datasets", **options), 422, "invalid_input", loc, word)

    def test_too_large(self, unchanged: Platform) -> None:
        files = {"file": ("a.csv", b"a\n" + b"1\n" * (1 << 20))}
        answer = unchanged.client.post("/api/v1/datasets", data={"name": "large"}, files=files)
        check_problem(answer, 413, "payload_too_large", word="AIMASS_GATEWAY_MAX_UPLOAD_MB")

    @pytest.mark.parametrize("kind", ["text", "audio", "series", "ratings", "baskets", "graph"])
    def test_kinds_that_are_not_built(self, unchanged: Platform, kind: str) -> None:
        files = {"file": ("a.csv", b"a\n1\n")}
        answer = unchanged.client.post("/api/v1/datasets", data={"name": "x", "kind": kind}, files=files)
        check_problem(answer, 501, "not_built", word=f"data sets of kind '{kind}'")

    @pytest.mark.parametrize(
        ("body", "status", "code", "loc", "word"),
        [
            ({"uri": "s3://bucket/x.csv"}, 422, "invalid_spec", ["uri"], "AIMASS_SOURCES_ALLOW"),
            ({"uri": "https://169.254.169.254/latest"}, 422, "invalid_spec", ["uri"], "AIMASS_SOURCES_ALLOW"),
            ({"uri": "file:///etc/passwd"}, 422, "invalid_spec", ["uri"], "https://"),
            ({}, 422, "invalid_input", ["uri"], "is required"),
            ({"uri": 5}, 422, "invalid_input", ["uri"], "string"),
            ({"uri": "s3://lake/raw/x", "url": 1}, 422, "invalid_input", ["url"], "no such field"),
            ({"uri": "s3://lake/raw/x", "name": "a b"}, 422, "invalid_input", ["name"], "must be 1-100 letters"),
            ({"uri": "s3://lake/raw/x", "kind": "table"}, 422, "invalid_input", ["kind"], "must be one of"),
            ({"uri": "s3://lake/raw/x", "kind": "audio"}, 501, "not_built", None, "kind 'audio'"),
            ("{", 400, "malformed", ["body"], "is not valid JSON"),
            ("[" * 200_000, 400, "malformed", None, "nested too deeply"),
            ({"uri": "x" * (2 << 20)}, 413, "payload_too_large", None, "AIMASS_GATEWAY_MAX_BODY_MB"),
        ],
    )
    def test_bad_sources(
        self,
        unchanged: Platform,
        body: dict[str, Any] | str,
        status: int,
        code: str,
        loc: list[str | int] | None,
        word: str,
    ) -> None:
        raw = body if isinstance(body, str) else json.dumps({"name": "x", **body})
        answer = unchanged.client.post("/api/v1/datasets", content=raw, headers={"content-type": "application/json"})
        check_problem(answer, status, code, loc, word)
