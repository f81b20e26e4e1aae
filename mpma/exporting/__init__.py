"""A trained model as a folder that others load: weights, encoders for timm and transformers, model card."""
