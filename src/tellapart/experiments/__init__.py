"""Questions that take more than one run to answer."""
