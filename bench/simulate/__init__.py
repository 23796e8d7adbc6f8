"""Simulated nodes: the real worker code on simulated devices and engines. See bench/README.md."""
