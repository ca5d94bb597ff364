"""Tasks: what a method may ask of a model and its data."""
