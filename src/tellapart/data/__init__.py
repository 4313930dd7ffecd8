"""Photos on disk become splits and uint8 batches. Knows nothing about networks."""
