"""What the servers of the Open Inference Protocol have in common."""

from bench.peers.bodies import v2
from bench.peers.servers.common import INPUTS

PATH = "/v2/models/{}/infer".format
FORMS = dict.fromkeys(INPUTS, v2)
