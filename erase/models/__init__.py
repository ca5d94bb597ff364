"""Opening a pipeline, and what a family of pipelines is."""
