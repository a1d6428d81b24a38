"""The same ONNX models under the same load on other model servers, on a plain FastAPI server, and on this platform.

    python -m bench.peers                    # everything; sets up what is missing
    python -m bench.peers ours kserve        # a selection; naive runs beside each
    python -m bench.peers --report           # the tables of the newest results

Each peer has a module of its own here, which says how to address and start it, the script that its environment runs in
`servers/`, and its pinned packages in `requirements/`. Environments, models, logs and results are in `.bench/`.
"""
