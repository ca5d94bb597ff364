"""The artefact: weights, recipe, card, algebra, loading and exports."""
