"""What people see of a job: lines, the live view, the page of a run.

Where figures come from is in `run`.
"""
