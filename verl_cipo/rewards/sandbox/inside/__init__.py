"""What runs inside a sandbox. Standard library only, and no import but of one another: a sandbox sees nothing else.

`launch.program` sends the sources as one text. The verifier imports `values`, to encode what it sends.
"""
