"""Learning from answers that the model itself gives: sampling them, scoring them, and what follows for each token.

Tokens of many answers lie side by side, as everywhere in danlu: T answer tokens in one row and ``owners`` (T), the
number of the answer that each belongs to, in rising order. Nothing is padded, so nothing has to be masked.
"""
