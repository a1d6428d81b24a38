"""The files of a model version, by name.

External data of an imported model lies beside its graph, under plain names that are none of these.
"""

import re

MODEL = "model.onnx"
SIGNATURE = "signature.json"
GOLDEN = "golden.json"
CARD = "card.json"
SKETCH = "sketch.json"
SPLIT = "split.parquet"  # which rows were for training, validation and test
EVALUATION = "evaluation.json"  # the numbers behind the plots
PLOTS = "plots"  # folder of SVG and PNG files
PAGE = "card.html"  # the model card as a page of its own
MANIFEST = "manifest.json"
EVALUATIONS = "evaluations"  # folder with one for each evaluate and compress job, by its id
REPORT_PAGE = "report.html"  # in it, of an evaluate job, beside `evaluation.json` and `plots`
COMPRESSION = "compression.json"  # in it, of a compress job: everything that was tried
COMPRESSION_PAGE = "compression.html"  # the same as a page
NAMES = frozenset({MODEL, SIGNATURE, GOLDEN, CARD, SKETCH, SPLIT, EVALUATION, PLOTS, PAGE, MANIFEST, EVALUATIONS})
_PICTURES = {"svg": "image/svg+xml", "png": "image/png"}
EXTERNAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,199}")


def shown_as(path: str) -> str | None:
    """The media type of a file that is made to be looked at; None for any other, which is only downloaded."""
    if path == PAGE or path.endswith((f"/{COMPRESSION_PAGE}", f"/{REPORT_PAGE}")):
        return "text/html"
    *_, folder, name = ["", *path.split("/")]
    return _PICTURES.get(name.rpartition(".")[2]) if folder == PLOTS else None
