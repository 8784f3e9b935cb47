"""One batch from pulled rows to gradients, without threads or sockets.

Models are in `models`, the threads around it in `worker.loop`.
"""
