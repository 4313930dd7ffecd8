"""What each ingredient of a recipe is worth."""
