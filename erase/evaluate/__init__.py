"""Judges, measurements and reports; nothing here knows a method."""
