"""A plain FastAPI application with a thread for each processor, or one for a lone client.

Run: python serve_fastapi.py BUNDLE PORT. With PEER_PROCESSES=yes: with a process of one thread for each processor.
"""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager

import anyio.to_thread
import uvicorn
from fastapi import FastAPI, UploadFile
from serving_model import CORES, LONE, Model

PROCESSES = CORES if os.environ.get("PEER_PROCESSES") else 1
THREADS = CORES // PROCESSES
if PROCESSES == 1 or __name__ == "serve_fastapi":  # the parent of several processes needs none
    model = Model(sys.argv[1], threads=THREADS, streams=1 if LONE else THREADS)


@asynccontextmanager
async def lifespan(_: FastAPI):
    """Let two requests be worked on at once."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1 if LONE else THREADS
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(file: UploadFile) -> dict:
    """Name the picture."""
    return model.predict(file.file.read())


if __name__ == "__main__":
    # By its name where there are several: each imports it again.
    what = app if PROCESSES == 1 else "serve_fastapi:app"
    address = {"host": "127.0.0.1", "port": int(sys.argv[2])}
    uvicorn.run(what, **address, workers=PROCESSES, access_log=False, log_level="warning")
