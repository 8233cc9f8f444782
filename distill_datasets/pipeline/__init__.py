"""From a recipe to a finished dataset."""
