"""Segment organs and lesions in 3-D medical images from few labels."""

__version__ = "0.1.0"
