"""Deep metric learning, reproduced: models, samplers, losses, metrics and the tools of the book."""
