"""The targets of the training examples."""
