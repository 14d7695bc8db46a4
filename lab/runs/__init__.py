"""The run directory: named, written, checkpointed, logged, resumed, loaded, read."""
