"""Bytes from a source to the disk: resumed, checked, limited, and stopped at once."""
