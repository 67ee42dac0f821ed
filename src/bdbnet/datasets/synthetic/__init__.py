"""Synthetic datasets for demos, tests and publishable pictures; `readers` has the two readers."""
