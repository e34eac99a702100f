"""Measurements: what the pipeline does on this machine, in one run, beside what the machine can do."""
