"""adapt: from raw domain files to a fine-tuned pocket vision-language model."""

__version__ = "0.1.0"
