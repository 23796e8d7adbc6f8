"""What Puna adds between a client and an engine: time, gaps, CPU and memory, against direct access and nginx."""
