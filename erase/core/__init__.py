"""The cores every method shares: saliency, masks, masked updates, deltas. Torch only."""
