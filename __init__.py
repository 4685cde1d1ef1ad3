"""OpenVINO graph passes that compress the weights of a model to 8, 4 and fewer bits."""

__version__ = "0.1.0"
