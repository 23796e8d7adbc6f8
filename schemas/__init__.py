"""What travels between Puna's processes: names, data and errors. Pure: no I/O, no clock, no network."""
