"""Serves a checkpoint's handler.py with Hugging Face's emulator of Inference Endpoints, on the loopback device.

    python tests/hub/endpoint_emulator.py FOLDER PORT
"""

import os
import sys
from contextlib import asynccontextmanager

import starlette.applications
import uvicorn


class Starlette(starlette.applications.Starlette):
    """Takes start-up functions as it did before 1.0: the emulator was written for that."""

    def __init__(self, *args, on_startup=(), **kwargs):
        @asynccontextmanager
        async def lifespan(app):
            for function in on_startup:
                await function()
            yield

        super().__init__(*args, lifespan=lifespan, **kwargs)


if __name__ == "__main__":
    folder, port = sys.argv[1:]
    os.environ["HANDLER_PATH"] = os.path.join(folder, "handler.py")
    starlette.applications.Starlette = Starlette
    from hf_endpoints_emulator.emulator import app

    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
