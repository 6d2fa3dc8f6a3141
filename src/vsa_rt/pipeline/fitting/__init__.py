"""What training a head needs: frozen features, splits, and what the folds show."""
