"""Writes into a LiteRT file what it takes and gives, and its classes, as Android and MediaPipe look for them.

TensorFlow Lite Metadata: a FlatBuffer of ``metadata_schema.fbs`` (identifier M001) in the model's metadata under
"TFLITE_METADATA", and the classes as ``labels.txt`` in a ZIP that is appended to the file. Interpreters ignore both.
Knows nothing about bundles.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import Any

NAME = "TFLITE_METADATA"
OFFSETS = "TELLAPART_FEATURE_OFFSETS"
"""Float32 for each channel of the last feature maps: what a layer that was taken out before their average had added."""
LABELS = "labels.txt"
_ENTRY, _MODEL = b"M001", b"TFL3"
"""Identifiers of the two FlatBuffers."""
# Numbers of the schema.
_FEATURE, _IMAGE, _RGB, _NORMALIZATION, _AXIS_LABELS = 1, 2, 1, 1, 2
_DESCRIPTIONS = {
    "image": "A photo, turned upright and resized to this size without cropping: RGB, 0 to 255.",
    "probabilities": "The probability of each class, 0 to 1, in the order of labels.txt.",
    "embedding": "What the last layer sees.",
}


def with_metadata(model: bytes, classes: Sequence[str], image_px: int) -> bytes:
    """Return the same LiteRT model with metadata and labels.

    Args:
        model: a LiteRT file with the signature "serving_default".
        classes: in the order of the probabilities.
        image_px: side of the pictures that it takes.
    """
    from tensorflow.lite.python import schema_py_generated as schema

    parsed = schema.ModelT.InitFromPackedBuf(bytearray(model), 0)
    signature = next(one for one in parsed.signatureDefs if one.signatureKey == b"serving_default")
    names = {tensor.tensorIndex: tensor.name.decode() for tensor in signature.outputs}
    outputs = [names[index] for index in parsed.subgraphs[0].outputs]
    file = io.BytesIO(with_buffer(model, NAME, _metadata(outputs, image_px)))
    with zipfile.ZipFile(file, "a") as archive:
        lines = "".join(" ".join(name.split()) + "\n" for name in classes)
        # The ZIP's first day in place of the time: the same model gives the same bytes.
        archive.writestr(zipfile.ZipInfo(LABELS, (1980, 1, 1, 0, 0, 0)), lines)
    return file.getvalue()


def with_buffer(model: bytes, name: str, data: bytes) -> bytes:
    """Return the same LiteRT model with these bytes under a name in its metadata, in place of what stood there."""
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    parsed = schema.ModelT.InitFromPackedBuf(bytearray(model), 0)
    content = schema.BufferT()
    content.data = list(data)
    parsed.buffers.append(content)
    entry = schema.MetadataT()
    entry.name, entry.buffer = name.encode(), len(parsed.buffers) - 1
    parsed.metadata = [known for known in parsed.metadata or [] if known.name != name.encode()] + [entry]
    builder = flatbuffers.Builder(len(model))
    builder.Finish(parsed.Pack(builder), file_identifier=_MODEL)
    return bytes(builder.Output())


def _metadata(outputs: Sequence[str], image_px: int) -> bytes:
    """Return the metadata of a model with one picture as its input, and these outputs."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    size = _table(builder, (0, "Uint32", image_px), (1, "Uint32", image_px))
    image = _table(builder, (0, "Int8", _RGB), (1, None, size))
    # What `tellapart.models` scales is scaled inside the network: nothing is left to do here.
    nothing = _table(builder, (0, None, _floats(builder, 0.0)), (1, None, _floats(builder, 1.0)))
    unit = _table(builder, (0, "Uint8", _NORMALIZATION), (1, None, nothing))
    range_ = _table(builder, (0, None, _floats(builder, 255.0)), (1, None, _floats(builder, 0.0)))
    taken = _tensor(builder, "image", _IMAGE, image, (4, None, _vector(builder, [unit])), (5, None, range_))
    given = []
    for name in outputs:
        feature, labels = _table(builder), []
        if name == "probabilities":
            file = _table(builder, (0, None, builder.CreateString(LABELS)), (2, "Int8", _AXIS_LABELS))
            labels = [(6, None, _vector(builder, [file]))]
        given.append(_tensor(builder, name, _FEATURE, feature, *labels))
    graph = _table(builder, (2, None, _vector(builder, [taken])), (3, None, _vector(builder, given)))
    texts = [builder.CreateString(text) for text in ("Image classifier", "Made by Tellapart.", "1.0.0")]
    name, description, needs = texts
    graphs = _vector(builder, [graph])
    root = _table(builder, (0, None, name), (1, None, description), (3, None, graphs), (7, None, needs))
    builder.Finish(root, file_identifier=_ENTRY)
    return bytes(builder.Output())


def _tensor(builder: Any, name: str, kind: int, properties: int, *fields: tuple[int, str | None, int]) -> int:
    content = _table(builder, (0, "Uint8", kind), (1, None, properties))
    texts = builder.CreateString(name), builder.CreateString(_DESCRIPTIONS[name])
    return _table(builder, (0, None, texts[0]), (1, None, texts[1]), (3, None, content), *fields)


def _table(builder: Any, *fields: tuple[int, str | None, int]) -> int:
    """Write a table of (place in the schema, type or None for what was written before, value)."""
    builder.StartObject(1 + max((slot for slot, _, _ in fields), default=0))
    for slot, kind, value in fields:
        if kind is None:
            builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        else:
            getattr(builder, f"Prepend{kind}Slot")(slot, value, 0)
    return int(builder.EndObject())


def _vector(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _floats(builder: Any, value: float) -> int:
    builder.StartVector(4, 1, 4)
    builder.PrependFloat32(value)
    return int(builder.EndVector())
