"""A smaller and faster network that is no worse than a budget allows, and the proof of it."""
