"""Measurements: what the figures in the README and the changelog come from. Not part of the installed product."""
