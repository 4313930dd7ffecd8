"""A race: several ways to a classifier share one time, and validation decides."""
