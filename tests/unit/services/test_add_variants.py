"""New variants never take the place of an accepted one."""

from dataclasses import replace
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


def test_a_file_that_the_version_has_under_another_name_is_not_stored_again():
    """As `int8-3` of an earlier job, beside which another `int8-2` came and went."""
    path = "variants/int8-3/model.onnx"
    there = version(variant("int8"), variant("int8-3", path=path), files=(OLD, replace(NEW, path=path)))
    kept, files = beside(there, [raw()], [NEW, StoredFile("variants/int8/manifest.json", "e" * 64, 5)])
    assert kept == [raw() | {"name": "int8-3", "path": path}]
    assert files == [StoredFile(path, NEW.sha256, 9), StoredFile("variants/int8-3/manifest.json", "e" * 64, 5)]
    again, _ = beside(there, [kept[0]], [StoredFile(path, NEW.sha256, 9)])
    assert again == kept


def test_the_name_of_the_same_file_is_not_given_to_another_one_of_the_job():
    second = raw() | {"name": "int8-2", "path": "variants/int8-2/model.onnx"}
    there = version(variant("int8-2", path="variants/int8-2/model.onnx"), files=(replace(NEW, path=second["path"]),))
    kept, files = beside(there, [raw(), second], [NEW, StoredFile(second["path"], "d" * 64, 8)])
    assert [one["name"] for one in kept] == ["int8-2", "int8-2-2"]
    assert [(file.path, file.sha256[0]) for file in files] == [
        ("variants/int8-2/model.onnx", "b"), ("variants/int8-2-2/model.onnx", "d"),
    ]  # fmt: skip


def test_two_of_one_file_are_one():
    second = raw() | {"name": "int8-3", "path": "variants/int8-3/model.onnx"}
    kept, files = beside(
        version(variant("int8"), files=(OLD,)), [raw(), second], [OLD, replace(OLD, path=second["path"])]
    )
    assert kept == [raw(), raw()]
    assert files == [OLD]


def test_the_full_models_name_is_its_own():
    base = variant("fp32", path="model.onnx")
    kept, _ = beside(version(base, files=(StoredFile("model.onnx", NEW.sha256, 9),)), [raw()], [NEW])
    assert kept[0]["name"] == "int8"
