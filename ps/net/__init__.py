"""Who may talk: sockets, the handshake that proves the job's secret, listeners.

What is said is in `messages`.
"""
