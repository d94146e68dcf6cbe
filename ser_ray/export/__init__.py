"""A trained model as one file that runs without ser_ray."""
