"""Downloads measured: see bench/README.md."""
