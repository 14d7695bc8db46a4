"""Many runs at once: jobs, the pool, Hydra's launchers, the search's space, study and trials."""
