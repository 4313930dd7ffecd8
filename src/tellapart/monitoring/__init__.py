"""What happens to a model after it was shipped: A/B tests now; drift and accuracy without labels later. No Keras."""
