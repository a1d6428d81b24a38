"""The plain server that everything is compared with: FastAPI as a developer writes it first, one uvicorn worker.

It runs in this repository's own environment.
"""

from bench.peers.peer import SERVERS, Peer, application

PEER = Peer("naive", application(SERVERS, "naive_app:app"), installed=False)
