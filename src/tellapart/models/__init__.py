"""The networks. Knows nothing about data or training."""
