"""What a model still knows of tasks that it was trained on one after another (`lit-spectral continual`)."""
