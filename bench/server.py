"""python server.py APP PORT joining|auto: one benchmark server, with the product's HTTP protocol class or uvicorn's."""

import sys

import uvicorn

from app.gateway.predict.protocol import JoiningProtocol

if __name__ == "__main__":
    app, port, protocol = sys.argv[1:]
    http = JoiningProtocol if protocol == "joining" else "auto"
    uvicorn.run(app, host="127.0.0.1", port=int(port), access_log=False, log_level="warning", http=http)
