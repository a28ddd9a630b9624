"""The algorithm of CIPO: pure functions and small classes on torch and numpy, without verl.

Only `advantage` and `losses` import torch: evaluation, which stands on the others, starts without it.
"""
