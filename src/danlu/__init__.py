"""danlu 丹炉: label, tune, evaluate, judge, export and serve open language models."""

__version__ = "0.1.0"
