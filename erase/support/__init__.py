"""Files, pictures, progress, checks, and work that processes share."""
