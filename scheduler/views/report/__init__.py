"""A page that shows a run: what its directory holds, as charts and tables in one HTML file."""
