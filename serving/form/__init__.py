"""The serving form of a checkpoint: files that processes map into memory and never change."""
