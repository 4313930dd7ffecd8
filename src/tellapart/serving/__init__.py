"""Serving: bundles behind HTTP. Knows nothing about training, Keras or TensorFlow."""
