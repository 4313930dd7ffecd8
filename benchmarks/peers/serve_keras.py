"""FastAPI with `model.predict`, as tutorials write it: python serve_keras.py model.keras PORT."""

from __future__ import annotations

import io
import sys

import keras
import numpy as np
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

model = keras.saving.load_model(sys.argv[1], compile=False)
side = model.input_shape[1]
app = FastAPI()


@app.post("/predict")
async def predict(file: UploadFile) -> dict:
    """Name the picture."""
    picture = Image.open(io.BytesIO(await file.read())).convert("RGB").resize((side, side))
    row = model.predict(np.asarray(picture)[None], verbose=0)[0]
    return {"class": int(row.argmax()), "probability": float(row.max())}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="warning")
