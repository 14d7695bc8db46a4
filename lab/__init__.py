"""What surrounds an experiment: a researcher need not open it."""
