"""The command `synchromesh`: a module for each of its commands, and what all of them share.

What commands do lies elsewhere: here are only their arguments and what they print.
"""
