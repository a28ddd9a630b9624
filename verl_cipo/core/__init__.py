"""The algorithm of CIPO: pure functions and small classes on torch and numpy, without verl.

Only `advantage` and the losses of `aux_loss` import torch: evaluation, which stands on the others, starts without it.
"""
