"""What to forget, and the prompts that say so."""
