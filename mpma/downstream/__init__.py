"""What a pre-trained model is worth: one module per task, one contract, figures with intervals."""
