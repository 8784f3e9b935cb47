"""Making data: converters of public sets, generated samples with a known best AUC.

Training does not need it.
"""
