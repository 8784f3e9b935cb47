"""What workers, coordinator and shards say to one another, and its bytes.

Who may say it is decided in `net`.
"""
