"""Relays: processes that gather what workers report and pass it on to the coordinator together.

They hold no leases: whatever becomes of one, its workers say the same again elsewhere.
"""
