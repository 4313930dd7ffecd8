"""Looks inside a network: a layer's outputs, and how the score of a class changes with them.

The one place for gradients outside training, on TensorFlow and JAX alike. Knows nothing about heat maps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tellapart.errors import InputError

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reading:
    """What a network showed for a batch of images.

    Attributes:
        probabilities: (num_images, num_classes) float32.
        scores: (num_images,) float32, each image's target class before softmax.
        outputs: of the layer, (num_images, …) float32.
        gradients: of the scores with respect to `outputs`, in their shape.
    """

    probabilities: Floats
    scores: Floats
    outputs: Floats
    gradients: Floats


class LayerReader:
    """A network with one of its layers laid open.

    The layer may stand inside a nested model, as in transfer learning. The score of a class is what goes into the
    final softmax; where the network ends without one, the logarithm of the probability.

    Args:
        model: maps images to probabilities.
        layer: the layer; None: the last one with feature maps, (num_images, height, width, channels).
        batch_size: images that are computed at once.

    Raises:
        InputError: there is no layer with feature maps.
    """

    def __init__(self, model: keras.Model, layer: keras.layers.Layer | None = None, *, batch_size: int = 32) -> None:
        self.model = model
        self.layer = feature_layer(model) if layer is None else layer
        self.batch_size = batch_size
        self._shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
        # Compiled at the first call; `resume` costs another compilation and is made only if it is asked for.
        self._gradient = _with_gradient(self._look, model)
        self._resumed: Callable[..., Any] | None = None

    def read(self, images: Images, targets: NDArray[np.int64], move: Floats | None = None) -> Reading:
        """Return the layer's outputs, and the gradients of the target classes' scores.

        Args:
            images: (num_images, height, width, 3) uint8.
            targets: (num_images,) class numbers.
            move: is added to the layer's outputs before the network goes on, (num_images, …) float32; None: nothing.
        """
        parts = []
        for start in range(0, len(images), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            part, count = images[chosen], len(images[chosen])
            moved = np.zeros((count, *self.shape(part)), np.float32) if move is None else move[chosen]
            full = self.batch_size if len(images) > self.batch_size else count  # a short last batch would compile anew
            arrays = (_filled(array, full) for array in (part, targets[chosen].astype(np.int32), moved))
            parts.append([np.asarray(output, np.float32)[:count] for output in self._gradient(*arrays)])
        return Reading(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def resume(self, image: Images, outputs: Floats) -> Floats:
        """Return what the network says where the layer's outputs are these; nothing before the layer is computed.

        Args:
            image: (1, height, width, 3) uint8, any of the size that the outputs are of.
            outputs: of the layer, (num_images, …) float32.

        Returns:
            (num_images, num_classes) float32 probabilities.
        """
        if self._resumed is None:
            self._resumed = _compiled(self._from_layer, self.model)
        parts = []
        for start in range(0, len(outputs), self.batch_size):
            part = outputs[start : start + self.batch_size]
            full = self.batch_size if len(outputs) > self.batch_size else len(part)
            parts.append(np.asarray(self._resumed(image, _filled(part, full)), np.float32)[: len(part)])
        return np.concatenate(parts)

    def _from_layer(self, image: Any, features: Any) -> Any:
        """Return the probabilities for outputs of the layer: compilers leave out what nothing depends on."""
        # As often as there are outputs: beside the layer's there may be another way through the network, an ensemble's.
        image = keras.ops.repeat(image, features.shape[0], axis=0)
        with _changed(self.layer, lambda outputs: keras.ops.cast(features, outputs.dtype)):
            return keras.ops.cast(self.model(image, training=False), "float32")

    def shape(self, images: Images) -> tuple[int, ...]:
        """Return the shape of the layer's output for one of the images: (height, width, channels)."""
        # Found by running one image: Keras does not know the shape inside a network of any size.
        size = images.shape[1:3]
        if size not in self._shapes:
            seen: list[Any] = []

            def note(outputs: Any) -> Any:
                seen.append(outputs.shape[1:])
                return outputs

            with _changed(self.layer, note):
                self.model(images[:1], training=False)
            self._shapes[size] = tuple(int(side) for side in seen[-1])
        return self._shapes[size]

    def _look(self, images: Any, targets: Any, move: Any) -> tuple[Any, Any, Any]:
        """Return (probabilities, scores, outputs) as tensors."""
        ops, seen = keras.ops, []

        def open_up(outputs: Any) -> Any:
            seen.append(ops.cast(outputs, "float32"))
            # Adding a move of zeros changes nothing, and gradients with respect to it are those of the layer's
            # outputs.
            return outputs + ops.cast(move, outputs.dtype)

        # Scores before softmax: a probability's gradient would mix in those of all other classes.
        with _changed(self.layer, open_up), _without_softmax(self.model) as ends_with_softmax:
            last = ops.cast(self.model(images, training=False), "float32")
        probabilities = ops.softmax(last) if ends_with_softmax else last
        # Without a softmax to take off, logarithms stand for logits: they differ by a constant for each image.
        logits = last if ends_with_softmax else ops.log(ops.maximum(last, 1e-7))
        scores = ops.sum(logits * ops.one_hot(targets, last.shape[-1], dtype="float32"), axis=-1)
        return probabilities, scores, seen[-1]


def layers_of(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield the layers from input to output, those of nested models in place of the models."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer


def feature_maps(model: keras.Model, images: Images, *, at_most: int) -> dict[str, Floats]:
    """Return what layers make of images, those inside nested models included.

    Args:
        model: the network.
        images: (num_images, height, width, 3) uint8.
        at_most: so many layers, evenly spread from the first to the last with feature maps.

    Returns:
        Layer's name → (num_images, height, width, channels) float32, from input to output.
    """
    layers = [layer for layer in layers_of(model) if _has_feature_maps(layer)]
    last = max(len(layers) - 1, 0)
    places = sorted({round(index) for index in np.linspace(0, last, at_most).tolist()}) if layers else []
    seen: dict[str, Floats] = {}

    def noting(name: str) -> Callable[[Any], Any]:
        def note(outputs: Any) -> Any:
            seen[name] = np.asarray(keras.ops.convert_to_numpy(outputs), np.float32)
            return outputs

        return note

    # All layers note their outputs in one forward pass, and are put back together.
    with contextlib.ExitStack() as stack:
        for index in places:
            stack.enter_context(_changed(layers[index], noting(layers[index].name)))
        model(images, training=False)
    return seen


def output_of(model: keras.Model, layer: keras.layers.Layer, images: Any) -> Any:
    """Return what a layer, which may stand inside nested models, makes of images: a tensor, in a graph as well."""
    seen: list[Any] = []

    def note(outputs: Any) -> Any:
        seen.append(outputs)
        return outputs

    with _changed(layer, note):
        model(images, training=False)
    return seen[-1]


@contextlib.contextmanager
def inputs_noted(
    layers: Sequence[keras.layers.Layer], note: Callable[[keras.layers.Layer, Any], None]
) -> Iterator[None]:
    """Call `note(layer, inputs)` each time that one of the layers is called, also inside nested models."""

    def noting(layer: keras.layers.Layer) -> Callable[..., Any]:
        plain = layer.call

        def call(inputs: Any, *args: Any, **options: Any) -> Any:
            note(layer, inputs)
            return plain(inputs, *args, **options)

        return call

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_replaced(layer, "call", noting(layer)))
        yield


def feature_layer(model: keras.Model) -> keras.layers.Layer:
    """Return the last layer with feature maps: what class activation maps look at.

    Raises:
        InputError: there is none.
    """
    layers = [layer for layer in layers_of(model) if _has_feature_maps(layer)]
    if not layers:
        raise InputError(f"The network {model.name!r} has no layer with feature maps (height, width, channels).")
    return layers[-1]


def first_layer(model: keras.Model) -> keras.layers.Layer:
    """Return the first layer whose outputs are the picture as numbers: after scaling, before any convolution.

    Raises:
        InputError: the network does not begin with one.
    """
    layer = next(layers_of(model))
    if _has_feature_maps(layer) and layer.output.shape[-1] == 3 and not layer.trainable_variables:
        return layer
    raise InputError(
        f"The network {model.name!r} begins with {layer.name!r}. Expected a layer that scales the picture, such as "
        "Rescaling, so that gradients can be taken with respect to its outputs."
    )


def _has_feature_maps(layer: keras.layers.Layer) -> bool:
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):  # never called, or called at several places
        return False
    # Maps of one pixel, as a pooling that keeps its axes leaves them, show no place.
    return len(shape) == 4 and (shape[1], shape[2]) != (1, 1)


def _filled(array: NDArray, count: int) -> NDArray:
    # With copies of the first row, which are computed and thrown away: compilers see one shape only.
    return np.concatenate([array, np.repeat(array[:1], count - len(array), axis=0)])


@contextlib.contextmanager
def _replaced(layer: keras.layers.Layer, name: str, value: Any) -> Iterator[None]:
    """Give a layer another attribute for a while."""
    # The layer itself is changed, for every caller: until it is put back, nobody else may call the network.
    plain = getattr(layer, name)
    setattr(layer, name, value)
    try:
        yield
    finally:
        setattr(layer, name, plain)


def _changed(layer: keras.layers.Layer, change: Callable[[Any], Any]) -> contextlib.AbstractContextManager[None]:
    """Let a layer return `change(outputs)`: works at any depth, without building the network anew."""
    plain = layer.call
    return _replaced(layer, "call", lambda *args, **options: change(plain(*args, **options)))


@contextlib.contextmanager
def _without_softmax(model: keras.Model) -> Iterator[bool]:
    """Let the network return what goes into its final softmax; yield whether there is one."""
    # Either a layer of its own or the activation of the last one; a network may end without any.
    last = list(layers_of(model))[-1]
    if isinstance(last, keras.layers.Softmax):
        with _replaced(last, "call", lambda inputs, *_args, **_options: inputs):
            yield True
    elif getattr(last, "activation", None) is keras.activations.softmax:
        with _replaced(last, "activation", keras.activations.linear):
            yield True
    else:
        yield False


def _compiled(function: Callable[..., Any], model: keras.Model) -> Callable[..., Any]:
    """Compile a function of arrays that calls the network."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        run = tf.function(function, autograph=False)
        return lambda *arrays: run(*map(tf.convert_to_tensor, arrays))
    import jax

    def stateless(weights: Any, *arrays: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(model.variables, weights, strict=True))):
            return function(*arrays)

    # Weights go in as arguments: captured, they would become constants of the compiled function.
    compiled = jax.jit(stateless)
    return lambda *arrays: compiled([variable.value for variable in model.variables], *arrays)


def _with_gradient(look: Callable[..., tuple[Any, Any, Any]], model: keras.Model) -> Callable[..., Any]:
    """Compile (images, targets, move) → (probabilities, scores, outputs, gradients with respect to `move`)."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(autograph=False)  # type: ignore[untyped-decorator]
        def run(images: Any, targets: Any, move: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(move)
                probabilities, scores, outputs = look(images, targets, move)
            return probabilities, scores, outputs, tape.gradient(scores, move)

        return lambda *arrays: run(*map(tf.convert_to_tensor, arrays))
    if backend == "jax":
        import jax

        def total(move: Any, weights: Any, images: Any, targets: Any) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(model.variables, weights, strict=True))):
                reading = look(images, targets, move)
            return reading[1].sum(), reading

        compiled = jax.jit(jax.grad(total, has_aux=True))

        def run_jax(images: Any, targets: Any, move: Any) -> Any:
            gradients, reading = compiled(move, [variable.value for variable in model.variables], images, targets)
            return *reading, gradients

        return run_jax
    raise InputError(f"Explanations need TensorFlow or JAX; the Keras backend is {backend}.")


def kernel_gradients(model: keras.Model, layers: Sequence[keras.layers.Layer]) -> Callable[[Images, Any], list[Any]]:
    """Compile (images, class numbers) → gradients of the mean cross-entropy with respect to the layers' kernels.

    The network is as in prediction: no dropout, and normalisations with the statistics that they have.

    Raises:
        InputError: the Keras backend is neither TensorFlow nor JAX.
    """
    kernels, backend = [layer.weights[0] for layer in layers], keras.backend.backend()

    def loss(images: Any, targets: Any) -> Any:
        probabilities = keras.ops.cast(model(images, training=False), "float32")
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(targets, probabilities))

    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(autograph=False)  # type: ignore[untyped-decorator]
        def run(images: Any, targets: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                values = [kernel.value for kernel in kernels]
                for value in values:
                    tape.watch(value)
                total = loss(images, targets)
            return tape.gradient(total, values)

        return lambda images, targets: list(run(tf.convert_to_tensor(images), tf.convert_to_tensor(targets)))
    if backend == "jax":
        import jax

        chosen = {id(kernel) for kernel in kernels}
        others = [variable for variable in model.variables if id(variable) not in chosen]

        def total(values: Any, rest: Any, images: Any, targets: Any) -> Any:
            mapping = [*zip(kernels, values, strict=True), *zip(others, rest, strict=True)]
            with keras.StatelessScope(state_mapping=mapping):
                return loss(images, targets)

        compiled = jax.jit(jax.grad(total))
        return lambda images, targets: list(
            compiled([kernel.value for kernel in kernels], [variable.value for variable in others], images, targets)
        )
    raise InputError(f"Gradients need TensorFlow or JAX; the Keras backend is {backend}.")


def called(layer: Any, *inputs: Any, **options: Any) -> Any:
    """Call a layer in place of another: one that does nothing takes none of the options, such as masks, of that one."""
    return layer(*inputs) if isinstance(layer, keras.layers.Identity) else layer(*inputs, **options)


def plain_clone(layer: Any) -> Any:
    """Return a layer of the same kind without its weights, for `keras.models.clone_model`."""
    if isinstance(layer, keras.Model):
        return keras.models.clone_model(layer, clone_function=plain_clone)
    copy = layer.__class__.from_config(layer.get_config())
    if hasattr(layer, "activation"):  # a change after the layer was made is not in its configuration
        copy.activation = layer.activation
    return copy
