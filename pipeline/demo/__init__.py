"""A simulated fleet, and the demonstration that runs it through the whole pipeline."""
