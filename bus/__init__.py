"""Puna's NATS layer: connected for as long as the process lives. The only package that imports nats."""
