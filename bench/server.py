"""python server.py APP PORT: one baseline server, run as the product's gateway runs uvicorn, on its own HTTP class."""

import sys

import uvicorn

if __name__ == "__main__":
    app, port = sys.argv[1:]
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
    )
