"""A trained model at work: predictions of files and of arrays."""
