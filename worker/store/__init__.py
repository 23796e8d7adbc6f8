"""The models on this node's disks: each file once, whole, and away again. See `store.py`."""
