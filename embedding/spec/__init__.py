"""What a table is set to, as frozen values: dimension, optimizer, admission, eviction, composition.

No arrays and no kernels.
"""
