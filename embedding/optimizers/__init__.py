"""How a gradient becomes an update of a row: rules, one for each optimizer, and their kernels.

Which rows are updated is decided in `table`.
"""
