"""How the bundled model, its judge and their drawings are made."""
