"""Forgetting in text-to-image pipelines."""
