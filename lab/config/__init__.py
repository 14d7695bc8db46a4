"""From what is typed to checked values: the one place that knows Hydra."""
