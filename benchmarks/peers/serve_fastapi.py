"""A plain FastAPI application with a thread for each processor, or one for a lone client.

Run: python serve_fastapi.py BUNDLE PORT.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager

import anyio.to_thread
import uvicorn
from fastapi import FastAPI, UploadFile
from serving_model import CORES, LONE, Model

model = Model(sys.argv[1], threads=CORES, streams=1 if LONE else CORES)


@asynccontextmanager
async def lifespan(_: FastAPI):
    """Let two requests be worked on at once."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1 if LONE else CORES
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(file: UploadFile) -> dict:
    """Name the picture."""
    return model.predict(file.file.read())


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="warning")
