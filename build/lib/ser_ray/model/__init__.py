"""What answers: a trained model."""
