"""The prediction paths, as a bare ASGI application in front of FastAPI."""
