"""What happens to a model after it was shipped: A/B tests, drift, review, the history of retrainings. No Keras."""
