"""The machine: device, precision, threads, the processes that train together, signals."""
