"""LitServe: one LitAPI a model with one worker each, one API server, batches of its own."""

from bench.peers.peer import Peer, script

PEER = Peer("litserve", script("litserve_server.py"))
