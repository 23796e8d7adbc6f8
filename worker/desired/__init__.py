"""Desired state: what the records want of this node's disks, and how that comes to be."""
