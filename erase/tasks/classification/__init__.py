"""Forgetting in classifiers."""
