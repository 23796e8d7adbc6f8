"""How long requests wait for a slot, against the best that any queue could do. See bench/README.md."""
