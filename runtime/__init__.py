"""What every role uses: files that are there whole or not at all, JSON, checked values, figures.

Nothing of tables, shards, workers or jobs.
"""
