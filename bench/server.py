"""python server.py APP PORT: one benchmark server.

The product runs with its own HTTP protocol class, the others with uvicorn's.
"""

import sys

import uvicorn

from app.gateway.predict.protocol import JoiningProtocol

if __name__ == "__main__":
    app, port = sys.argv[1:]
    http = JoiningProtocol if app.startswith("served_app") else "auto"
    uvicorn.run(app, host="127.0.0.1", port=int(port), access_log=False, log_level="warning", http=http)
