"""Bundles: one small folder with all that is needed to run a model, proved equal to it."""
