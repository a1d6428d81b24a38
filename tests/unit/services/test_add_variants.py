"""New variants never take the place of an accepted one."""

from typing import Any

from app.core.resources import ModelVersion, StoredFile, Variant
from app.services.add_variants import beside

PATH = "variants/int8/model.onnx"
OLD = StoredFile(PATH, "a" * 64, 10)
NEW = StoredFile(PATH, "b" * 64, 9)


def raw(state: str = "accepted", path: str | None = PATH) -> dict[str, Any]:
    return {"name": "int8", "state": state, "path": path, "bytes": 9}


def version(*variants: Variant, files: tuple[StoredFile, ...] = ()) -> ModelVersion:
    return ModelVersion(
        "id", "m", 1, "ready", "classification", "mlp", "accuracy", {}, {}, {}, {}, "f" * 64, 0.0, variants, files
    )


def variant(name: str, state: Any = "accepted", path: str | None = PATH) -> Variant:
    return Variant(name, state, None, {}, path, 10, {}, {})


def test_the_first_keeps_its_name():
    assert beside(version(), [raw()], [NEW]) == ([raw()], [NEW])


def test_another_file_gets_another_name():
    kept, files = beside(version(variant("int8"), files=(OLD,)), [raw()], [NEW])
    assert kept == [raw() | {"name": "int8-2", "path": "variants/int8-2/model.onnx"}]
    assert files == [StoredFile("variants/int8-2/model.onnx", NEW.sha256, 9)]


def test_the_next_free_name_is_taken():
    there = version(variant("int8"), variant("int8-2", path="variants/int8-2/model.onnx"), files=(OLD,))
    kept, _ = beside(there, [raw()], [NEW])
    assert kept[0]["name"] == "int8-3"


def test_the_same_file_is_the_same_variant():
    assert beside(version(variant("int8"), files=(OLD,)), [raw()], [OLD]) == ([raw()], [OLD])


def test_a_rejected_one_does_not_replace_an_accepted_one():
    kept, _ = beside(version(variant("int8"), files=(OLD,)), [raw("rejected", None)], [])
    assert kept == [raw("rejected", None) | {"name": "int8-2"}]


def test_a_rejected_one_is_replaced():
    kept, files = beside(version(variant("int8", "rejected", None)), [raw()], [NEW])
    assert (kept, files) == ([raw()], [NEW])


def test_other_files_stay_where_they_are():
    card = StoredFile("report.json", "c" * 64, 3)
    assert beside(version(variant("int8"), files=(OLD,)), [raw()], [NEW, card])[1][1] == card


def test_variants_of_one_job_do_not_take_the_names_of_each_other():
    second = raw() | {"name": "int8-2", "path": "variants/int8-2/model.onnx"}
    other = StoredFile("variants/int8-2/model.onnx", "d" * 64, 8)
    kept, files = beside(version(variant("int8"), files=(OLD,)), [raw(), second], [NEW, other])
    assert [(one["name"], one["path"]) for one in kept] == [
        ("int8-3", "variants/int8-3/model.onnx"),
        ("int8-2", "variants/int8-2/model.onnx"),
    ]
    assert {file.path: file.sha256 for file in files} == {
        "variants/int8-3/model.onnx": NEW.sha256,
        "variants/int8-2/model.onnx": other.sha256,
    }
