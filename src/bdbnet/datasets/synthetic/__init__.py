"""Rendered data sets, for the demo, the tests and pictures that may be published."""
