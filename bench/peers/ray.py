"""Ray Serve: its HTTP proxy, one replica a model, `@serve.batch`; logs requests, by default."""

from bench.peers.peer import Peer, script

PEER = Peer("ray", script("ray_server.py"))
