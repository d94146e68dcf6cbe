"""How features are computed, in torch."""
