"""The groups of options of a training, by what they decide. :mod:`danlu.tune.config` puts them together."""
