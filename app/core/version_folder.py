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
MANIFEST = "manifest.json"
NAMES = frozenset({MODEL, SIGNATURE, GOLDEN, CARD, SKETCH, SPLIT, MANIFEST})
EXTERNAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,199}")
