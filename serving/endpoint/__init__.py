"""The endpoint: HTTP around sessions."""
