"""Judges of pictures, and what they measure."""
