"""The weights of several sessions of one model, in memory once.

ONNX Runtime packs the weights of products for its kernels, once a session, and keeps them. Here it writes what it has
made of the model to a file, packed weights and all; sessions that are opened from there map it, and so share its pages.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime as ort

from app.serving.provider import Provider

_LEAST_BYTES = 4 << 20  # of a model's files: less is not worth it
_MOST_BYTES = 2 << 30  # … and more is much to write at each load
_IN_FILE = "1024"  # bytes of a tensor that goes into the file of weights


def can_pack(file_bytes: int, provider: Provider) -> bool:
    """True for a model of such size, run by the CPU."""
    return provider.on_cpu and _LEAST_BYTES <= file_bytes <= _MOST_BYTES


@contextmanager
def packed(onnx: Path, provider: Provider) -> Iterator[tuple[Path, int]]:
    """The model as it is made ready for this machine, for sessions with `session_options(packed=True)`; its bytes.

    Its files are gone at the end; what sessions have mapped stays theirs. OSError if there is no room for them, an
    error of ONNX Runtime if it cannot write this model.
    """
    with TemporaryDirectory(prefix="aimass-packed-") as folder:
        path = Path(folder) / "model.onnx"
        options = provider.session_options(1)
        options.optimized_model_filepath = str(path)
        for name, value in (
            ("session.optimized_model_external_initializers_file_name", "weights.bin"),
            ("session.optimized_model_external_initializers_min_size_in_bytes", _IN_FILE),
            ("session.save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(name, value)
        ort.InferenceSession(str(onnx), options, providers=provider.chain)
        yield path, sum(file.stat().st_size for file in path.parent.iterdir())
