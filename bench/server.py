"""python server.py APP PORT joining|auto: one baseline server, run as the product's gateway runs uvicorn.

`joining` gives it the product's HTTP protocol class, `auto` leaves uvicorn's own.
"""

import sys

import uvicorn

from app.gateway.predict.protocol import JoiningProtocol

if __name__ == "__main__":
    app, port, protocol = sys.argv[1:]
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(port),
        http=JoiningProtocol if protocol == "joining" else "auto",
        loop="uvloop",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
    )
