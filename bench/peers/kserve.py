"""KServe's own Python server with a custom model: JSON and binary tensors, no batching; logs requests, by default."""

from bench.peers.open_inference import FORMS, PATH
from bench.peers.peer import Peer, script

PEER = Peer("kserve", script("kserve_server.py"), path=PATH, forms=FORMS, binary=True)
