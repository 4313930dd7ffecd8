"""A run's network as a Core ML package, for Apple's systems: converted, and not proved, for nothing else runs it.

From Keras on JAX by way of StableHLO, without TensorFlow. The packages that it needs hold JAX at a version of theirs
(docs/phones.md), so that they have an environment of their own and are no extra of this one.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tellapart.errors import InputError
from tellapart.evaluation.predict import load
from tellapart.run_folder import RunFolder

_STATE = "Converted, not proved: no system but Apple's runs it. Compare some photos with tellapart predict."
_BROADCAST = ("add", "mul", "sub", "real_div", "maximum", "minimum")


def export_coreml(run: str | os.PathLike[str], to: str | os.PathLike[str]) -> Path:
    """Write a Core ML package that takes a picture and names its class, with all probabilities.

    Args:
        run: a finished run folder.
        to: the package to make, NAME.mlpackage; one that stands there is replaced.

    Returns:
        The package.

    Raises:
        RunError: `run` has no model.
        InputError: `to` is called otherwise, or the packages or Keras on JAX are missing.
    """
    target = Path(to)
    if target.suffix != ".mlpackage":
        raise InputError(f"{target} is no name of a Core ML package. Expected one that ends with .mlpackage.")
    ct, converter = _packages()
    classifier = load(run)
    model, image_px = classifier.model, classifier.image_px
    program = converter.convert(_stablehlo(model, image_px), minimum_deployment_target=ct.target.iOS18)
    # Its input by the name that the converter gave it: the program is asked for it by that name.
    (name,) = program.functions["main"].inputs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input, ", UserWarning)  # "has been renamed": it is renamed again below
        package = ct.convert(
            program,
            source="milinternal",
            inputs=[ct.ImageType(name=name, shape=(1, 3, image_px, image_px), color_layout=ct.colorlayout.RGB)],
            classifier_config=ct.ClassifierConfig(list(classifier.classes)),
            minimum_deployment_target=ct.target.iOS18,
            pass_pipeline=_pipeline(ct, converter),
        )
    package = _described(package, ct, RunFolder(Path(run)), image_px)
    part = target.with_name(f".{target.stem}.part.mlpackage")
    shutil.rmtree(part, ignore_errors=True)
    package.save(str(part))
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    return target


def _packages() -> tuple[Any, Any]:
    """Return coremltools and the converter."""
    if keras.backend.backend() != "jax":
        raise InputError(
            "Core ML packages are made on JAX. Set KERAS_BACKEND=jax, in an environment with the packages that "
            "docs/phones.md names."
        )
    try:
        import coremltools
        import stablehlo_coreml
    except ImportError as error:
        raise InputError(
            f"Core ML packages need {error.name}, which is not installed here. It holds JAX at a version of its own: "
            "make an environment as docs/phones.md says."
        ) from error
    return coremltools, stablehlo_coreml


def _stablehlo(model: keras.Model, image_px: int) -> Any:
    """Return the network as a module of StableHLO, from (1, 3, image_px, image_px) float32 levels to probabilities."""
    import jax
    from jax._src.interpreters import mlir
    from jax._src.lib.mlir import ir
    from jax.export import export

    def predict(picture: Any) -> Any:
        # Core ML hands out the planes of a picture.
        return model(jax.numpy.transpose(picture, (0, 2, 3, 1)), training=False)

    exported = export(jax.jit(predict))(jax.ShapeDtypeStruct((1, 3, image_px, image_px), jax.numpy.float32))
    return ir.Module.parse(exported.mlir_module(), context=mlir.make_ir_context())


def _pipeline(ct: Any, converter: Any) -> Any:
    """Return the converter's passes, and one of ours after constants were computed."""
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY, register_pass

    name = "tellapart::small_constants"
    if name not in PASS_REGISTRY:

        @register_pass(namespace="tellapart")
        class small_constants(AbstractGraphPass):  # noqa: N801  named in pipelines as it is here
            """Biases and normalisations, which came spread over whole pictures: MobileNetV2 takes 30 MB with them."""

            def apply(self, prog: Any) -> None:
                for function in prog.functions.values():
                    for operation in list(function.operations):
                        _shrink(function, operation)

    pipeline = ct.PassPipeline(pass_names=list(converter.DEFAULT_HLO_PIPELINE.passes))
    names = list(pipeline.passes)
    names.insert(names.index("common::const_elimination") + 1, name)
    pipeline.passes = names
    return pipeline


def _shrink(function: Any, operation: Any) -> None:
    """Let an operation on a constant that repeats itself take it once, and spread it itself."""
    from coremltools.converters.mil.mil import Builder

    if operation.op_type not in _BROADCAST:
        return
    inputs = {"x": operation.x, "y": operation.y}
    constants = [name for name, value in inputs.items() if value.val is not None and np.ndim(value.val)]
    if len(constants) != 1:
        return
    (name,) = constants
    # Where the constant is what spreads the other input, a smaller one would make a smaller picture.
    if tuple(inputs["y" if name == "x" else "x"].shape) != tuple(operation.outputs[0].shape):
        return
    smaller = smallest_alike(np.asarray(inputs[name].val))
    if smaller.size == np.size(inputs[name].val):
        return
    with function:
        inputs[name] = Builder.const(val=smaller, before_op=operation)
        output = getattr(Builder, operation.op_type)(**inputs, before_op=operation)
    function.replace_uses_of_var_after_op(anchor_op=operation, old_var=operation.outputs[0], new_var=output)
    function.remove_ops([operation])


def smallest_alike(values: np.ndarray) -> np.ndarray:
    """Return the array with one place along each axis on which all are equal: broadcast, it is the array."""
    for axis in range(values.ndim):
        first = np.take(values, [0], axis=axis)
        if (values == first).all():
            values = first
    return values


def _described(package: Any, ct: Any, run: RunFolder, image_px: int) -> Any:
    """Return the package with the usual names of input and output, and with what it is, which Xcode shows."""
    spec = package.get_spec()
    ct.utils.rename_feature(spec, spec.description.input[0].name, "image")
    named = ct.models.MLModel(spec, weights_dir=package.weights_dir, skip_model_load=True)
    test = run.metrics().get("test", {})
    accuracy = f" Accuracy on test photos, by Keras: {test['accuracy']:.3f}." if test else ""
    named.short_description = f"Made by Tellapart of run {run.record().run_id}.{accuracy} {_STATE}"
    picture = f"upright, RGB, shrunk to {image_px} × {image_px} px by areas, proportions not kept"
    named.input_description["image"] = picture
    return named
