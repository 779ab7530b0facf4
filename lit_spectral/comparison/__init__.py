"""One config, several methods, several seeds: what each learns and what it forgets."""
